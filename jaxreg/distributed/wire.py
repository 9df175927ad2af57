"""What a step puts on the wire, counted from the collectives that it runs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxreg.typing import checked

_COLLECTIVES = {
    *("all_gather", "all_gather_invariant", "all_gather_reduced", "all_to_all", "ragged_all_to_all"),
    *("psum", "psum_invariant", "pmax", "pmin", "ppermute", "psend", "precv"),
    *("reduce_scatter", "unreduced_psum", "unreduced_reduce_scatter"),
}


@checked
def bytes_sent(function: Callable, *args: Any, axes: Mapping[str, int] | None = None) -> int:
    """Counts the bytes that one device hands to collectives in one call of a function.

    The function is traced, not run; every collective in it counts with the size of its operand, in a `scan` as often
    as it runs. What a network makes of that (a ring passes a gathered message on ``devices - 1`` times) is not counted.
    A `vmap` over clients moves nothing: count the function of one client instead, and name its axis.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.distributed import bytes_sent
    >>> bytes_sent(lambda x: jax.lax.pmean(x, "clients"), jnp.zeros(10), axes={"clients": 8})
    40

    Args:
        function: any function of JAX, such as a step under `jit` with a `shard_map` or `pmap` inside.
        args: its arguments, or their shapes.
        axes: name and size of the axes that the function uses but leaves to its caller, if any.

    Returns:
        The number of bytes; of the branches of a `cond` those of the largest.

    Raises:
        ValueError: a loop of unknown length communicates.
    """
    return _count(jax.make_jaxpr(function, axis_env=list((axes or {}).items()))(*args))


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _count_equation(equation) -> int:
    name = equation.primitive.name
    if name in _COLLECTIVES:
        return sum(operand.aval.size * operand.aval.dtype.itemsize for operand in equation.invars)
    inside = [_count(part) for value in equation.params.values() for part in _jaxprs(value)]
    if name == "while" and any(inside):
        raise ValueError("a while loop communicates: it is not known how often")
    if name == "cond":
        return max(inside)
    return equation.params.get("length", 1) * sum(inside) if name == "scan" else sum(inside)


def _jaxprs(value):
    if isinstance(value, tuple | list):
        return [jaxpr for part in value for jaxpr in _jaxprs(part)]
    return [value] if hasattr(getattr(value, "jaxpr", value), "eqns") else []
