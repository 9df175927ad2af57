"""Numbers next to the arrays that they belong to."""

import jax.numpy as jnp

from jaxreg.typing import Array, Int, Shaped, checked


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


@checked
def at_labels(values: Shaped[Array, "... classes"], labels: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """Of every row the entry of its label.

    >>> at_labels(jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.array([1, 0])).tolist()
    [1.0, 2.0]

    Args:
        values: such as logits or log-probabilities.
        labels: class indices in ``[0, classes)``, with the values' other axes, or axes of size 1 in their place.

    Returns:
        The entries, without the axis of the classes.
    """
    return jnp.take_along_axis(values, jnp.asarray(labels)[..., None], axis=-1)[..., 0]
