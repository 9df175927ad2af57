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
    key_objects, key_colors, key_pixels = jax.random.split(key, 3)
    # One draw for all that is uniform: to compile a draw takes longer than to make it.
    drawn = jnp.moveaxis(jax.random.uniform(key_objects, [count, 3, 5]), -1, 0)[..., None, None]
    y, x = side / 5 + drawn[:2] * (0.6 * side - 1)
    radius = side / 6 + drawn[2] * side / 12
    amount = jnp.floor(shift[0] + drawn[3] * (shift[1] + 1 - shift[0]))
    sign = jnp.where(drawn[4] < 0.5, -1, 1)
    row, column = jnp.meshgrid(jnp.arange(side), jnp.arange(side), indexing="ij")
    y, x = jnp.abs(row - y), jnp.abs(column - x)
    disc, square, diamond = jnp.hypot(y, x), jnp.maximum(y, x), (y + x) / jnp.sqrt(2.0)
    from_centre = jnp.stack([disc[:, 0], square[:, 1], diamond[:, 2]], axis=1)

    def classes(radius):
        return jnp.max(jnp.where(from_centre <= radius, jnp.arange(1, CLASSES)[:, None, None], 0), axis=1)

    labels = classes(radius)
    color = _COLORS + noise / 2 * jax.random.normal(key_colors, [count, CLASSES, 3])
    is_class = jax.nn.one_hot(labels, CLASSES)
    images = jnp.einsum("nhwk,nkc->nhwc", is_class, color)
    images += noise * jax.random.normal(key_pixels, images.shape)
    return Shapes(images, labels, classes(radius + sign * amount))
