"""Where half precision is too little."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, PyTree, Shaped, checked


@checked
def at_least_float32(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Widens integers and half precision to float32; leaves float32 and float64 as they are.

    Losses sum differences of logits and moments accumulate changes of a thousandth: bfloat16, with 8 significant
    bits, loses both.
    """
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is floating-point, of any precision: counters and codes are not to be averaged.

    Args:
        leaf: array, shape or number.
    """
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


@checked
def widened(tree: PyTree) -> PyTree:
    """A tree with every leaf at least float32: arrays, or the shapes that an optimizer is initialised from."""

    def widen(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=jnp.promote_types(leaf.dtype, jnp.float32))
        return at_least_float32(leaf)

    return jax.tree.map(widen, tree)
