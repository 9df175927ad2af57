"""Interval bounds of any function: no input within a box leads to an output outside of them.

The function is traced, and every operation of it carries intervals instead of numbers. Linear maps with constant
weights map the centre and the radius of a box, ``W c`` and ``|W| r``, all that is monotone maps both ends. Bounds of
one affine layer are the tightest possible; bounds of several grow looser with every layer, for an interval forgets
which entries move together. Rounding is not accounted for.

What depends on constants only, such as the parameters that the function closes over, is computed as ever. Bounds can be
differentiated, jitted and vmapped like the function::

    logits = interval_bounds(lambda x: model.apply(params, x), images - 0.1, images + 0.1)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxreg.robustness.interval_rules import (
    DIRECTIONS,
    RULES,
    Bounds,
    bind,
    has_varying_indices,
    lower_end,
    monotone_outputs,
    outputs_bent_at_zero,
    upper_end,
)
from jaxreg.typing import PyTree, checked

MONOTONE = (
    "celu",
    "elu",
    "hard_sigmoid",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "relu",
    "relu6",
    "selu",
    "soft_sign",
    "softplus",
    "squareplus",
)
"""Functions of ``jax.nn`` that are made of several operations and never decrease."""

BENT_AT_ZERO = ("celu", "elu", "leaky_relu", "squareplus")
"""Those of them that have a parameter. With a negative one they may fall on one side of 0."""


class NetworkBounds(NamedTuple):
    """Result of :func:`network_bounds`.

    Attributes:
        lower: of the outputs, in their tree.
        upper: likewise.
        preactivations: bounds of what goes into each monotone activation, in the order in which they run.
    """

    lower: PyTree
    upper: PyTree
    preactivations: tuple[Bounds, ...]


@checked
def interval_bounds(
    fn: Callable[[Any], Any], lower: PyTree, upper: PyTree, *, monotone: Sequence[str] = MONOTONE
) -> Bounds:
    r"""Bounds of a function's outputs over a box of inputs.

    .. math:: \underline{f} \le f(x) \le \overline{f} \quad \text{for all } \underline{x} \le x \le \overline{x}

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.robustness import interval_bounds
    >>> weights = jnp.array([1.0, -2.0])
    >>> bounds = interval_bounds(lambda x: jax.nn.relu(x @ weights), jnp.array([0.0, 0.0]), jnp.array([1.0, 1.0]))
    >>> float(bounds.lower), float(bounds.upper)
    (0.0, 1.0)

    Args:
        fn: any function of one argument, an array or a tree of arrays. Products of matrices and convolutions, dense
            or grouped, arithmetic, monotone functions, pooling, normalization with constant statistics and all that
            moves entries around have rules; loops over intervals have none.
        lower: least inputs, as the argument of ``fn``.
        upper: largest inputs, nowhere below ``lower``.
        monotone: names of functions under ``jax.jit`` that never decrease in any argument, taken as a whole: their
            parts alone may have looser bounds, or no rule.

    Returns:
        The bounds, each in the tree of the outputs; infinite where an interval is divided by one that contains zero.

    Raises:
        ValueError: ``lower`` and ``upper`` differ in structure or shape.
        NotImplementedError: an operation on intervals has no rule.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """
    return Bounds(*network_bounds(fn, lower, upper, monotone=monotone)[:2])


@checked
def network_bounds(
    fn: Callable[[Any], Any], lower: PyTree, upper: PyTree, *, monotone: Sequence[str] = MONOTONE
) -> NetworkBounds:
    r"""Bounds of a network's outputs and of what goes into its activations.

    Activations are the ``monotone`` functions, ``jax.nn.tanh`` and ``jax.nn.sigmoid``; a bare ``jnp.maximum`` counts as
    arithmetic.

    Args:
        fn: see :func:`interval_bounds`.
        lower: least inputs, as the argument of ``fn``.
        upper: largest inputs, nowhere below ``lower``.
        monotone: see :func:`interval_bounds`.

    Returns:
        The bounds of the outputs and of the inputs of all activations.

    Raises:
        ValueError: ``lower`` and ``upper`` differ in structure or shape.
        NotImplementedError: an operation on intervals has no rule.

    References:
        Gowal et al., *On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models*,
        arXiv 1810.12715.
    """
    lowers, structure = jax.tree.flatten(lower)
    uppers, other = jax.tree.flatten(upper)
    if structure != other or any(jnp.shape(a) != jnp.shape(b) for a, b in zip(lowers, uppers, strict=True)):
        raise ValueError(
            f"lower and upper must have the same shapes, got {jax.tree.map(jnp.shape, lower)} and "
            f"{jax.tree.map(jnp.shape, upper)}"
        )
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(lower)
    inputs = [Bounds(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(lowers, uppers, strict=True)]
    outputs, preactivations = _interpret(closed.jaxpr, closed.consts, inputs, tuple(monotone))
    tree = jax.tree.structure(shapes)
    ends = (tree.unflatten([end(output) for output in outputs]) for end in (lower_end, upper_end))
    return NetworkBounds(*ends, tuple(preactivations))


def _interpret(jaxpr, consts, arguments, monotone):
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    preactivations = []
    for eqn in jaxpr.eqns:
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        outputs, recorded = _propagate(eqn, operands, monotone)
        preactivations += recorded
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars], preactivations


def _propagate(eqn, operands, monotone):
    """Outputs of one operation, and the intervals that went into an activation."""
    name = eqn.primitive.name
    intervals = [operand for operand in operands if isinstance(operand, Bounds)]
    if not intervals:
        return bind(eqn, operands), []
    if name in _CALLS:
        called = _called(eqn)
        if called in BENT_AT_ZERO and called in monotone:
            x, *parameters = operands
            if not any(isinstance(parameter, Bounds) for parameter in parameters):
                return outputs_bent_at_zero(eqn, x, parameters), intervals
        elif called in monotone:
            return monotone_outputs(eqn, operands, "+"), intervals
        return _call(eqn, operands, monotone)
    if name in DIRECTIONS and not has_varying_indices(DIRECTIONS[name], operands):
        return monotone_outputs(eqn, operands, DIRECTIONS[name]), intervals if name in ("tanh", "logistic") else []
    if name in RULES:
        return [RULES[name](eqn, *operands)], []
    known = ", ".join(sorted({*_CALLS, *DIRECTIONS, *RULES}))
    raise NotImplementedError(f"interval_bounds has no rule for {name!r} of intervals, only for {known}")


_CALLS = {
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat", "remat2",
}  # fmt: skip


def _call(eqn, operands, monotone):
    jaxpr = _body(eqn)

    def inside(operands):
        return _interpret(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), operands, monotone)

    if "prevent_cse" in eqn.params:
        inside = jax.checkpoint(inside, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return inside(operands)


def _body(eqn):
    return next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)


def _called(eqn):
    """The name of what is called. That of a function with a gradient of its own is only known to the ``jit`` in it."""
    if "name" not in eqn.params and "jvp_jaxpr_fun" in eqn.params and len(_body(eqn).eqns) == 1:
        return _body(eqn).eqns[0].params.get("name")
    return eqn.params.get("name")
