"""Rendered shapes with the class of every pixel, right and with objects that are too large or too small."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, Int, PRNGKeyArray, checked

CLASSES = 4
"""The background, discs, squares and diamonds."""

_COLORS = jnp.array([[0.5, 0.5, 0.5], [0.8, 0.4, 0.4], [0.4, 0.8, 0.4], [0.4, 0.4, 0.8]])


class Shapes(NamedTuple):
    """Images and their labels.

    Attributes:
        images: red, green and blue, around 1/2.
        labels: the class of each pixel; what is drawn later hides what is drawn before.
        noisy_labels: the same with every object dilated or eroded.
    """

    images: Float[Array, "count side side 3"]
    labels: Int[Array, "count side side"]
    noisy_labels: Int[Array, "count side side"]


@checked
def render_shapes(
    key: PRNGKeyArray, count: int, *, side: int = 24, shift: tuple[int, int] = (1, 3), noise: float = 0.2
) -> Shapes:
    """Images of a disc, a square and a diamond each, in colours of which each class has its own, more or less.

    Args:
        key: of everything.
        count: number of images.
        side: pixels; objects have radii from a sixth to a quarter of it.
        shift: by how many pixels objects are too large or too small in the noisy labels, from and to; each object for
            itself, the sign with equal odds.
        noise: standard deviation of every pixel's colour; an object's as a whole has half of it.

    Returns:
        The images and labels.
    """
    keys = jax.random.split(key, 6)
    centre = jax.random.uniform(keys[0], [count, 3, 2], minval=side / 5, maxval=side - 1 - side / 5)
    radius = jax.random.uniform(keys[1], [count, 3, 1, 1], minval=side / 6, maxval=side / 4)
    amount = jax.random.randint(keys[2], [count, 3, 1, 1], shift[0], shift[1] + 1)
    sign = jax.random.rademacher(keys[3], [count, 3, 1, 1])
    row, column = jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij")
    y, x = jnp.abs(row - centre[..., :1, None]), jnp.abs(column - centre[..., 1:, None])
    disc, square, diamond = jnp.hypot(y, x), jnp.maximum(y, x), (y + x) / jnp.sqrt(2.0)
    from_centre = jnp.stack([disc[:, 0], square[:, 1], diamond[:, 2]], axis=1)

    def classes(radius):
        return jnp.max(jnp.where(from_centre <= radius, jnp.arange(1, CLASSES)[:, None, None], 0), axis=1)

    labels = classes(radius)
    color = _COLORS + noise / 2 * jax.random.normal(keys[4], [count, CLASSES, 3])
    is_class = jax.nn.one_hot(labels, CLASSES)
    images = jnp.einsum("nhwk,nkc->nhwc", is_class, color)
    images += noise * jax.random.normal(keys[5], images.shape)
    return Shapes(images, labels, classes(radius + sign * amount))
