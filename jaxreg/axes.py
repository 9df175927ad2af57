"""Numbers next to the arrays that they belong to."""

from jaxreg.typing import Array, Shaped, checked


@checked
def per_example(values: Shaped[Array, "..."], x: Shaped[Array, "batch *features"]) -> Shaped[Array, "..."]:
    """A number for each example, with axes to multiply the examples by.

    >>> import jax.numpy as jnp
    >>> per_example(jnp.ones([4]), jnp.zeros([4, 8, 8])).shape
    (4, 1, 1)

    Args:
        values: such as noise levels, weights or decisions: one for each example, or one for all of them.
        x: the examples.

    Returns:
        The values, with an axis of size 1 for every axis of features.
    """
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))
