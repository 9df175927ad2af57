"""Noise levels next to what they belong to."""

from jaxreg.typing import Array, Float, checked


@checked
def per_example(values: Float[Array, "batch"], x: Float[Array, "batch *features"]) -> Float[Array, "batch ..."]:
    """A number for each example, with axes to multiply the examples by.

    Args:
        values: such as noise levels.
        x: the examples.

    Returns:
        The values, with an axis of size 1 for every axis of features.
    """
    return values.reshape(-1, *[1] * (x.ndim - 1))
