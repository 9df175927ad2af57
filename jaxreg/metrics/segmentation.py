"""How well regions are found in images."""

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, Int, checked


@checked
def class_iou(
    predictions: Int[Array, "*pixels"], labels: Int[Array, "*pixels"], *, num_classes: int
) -> Float[Array, "classes"]:
    r"""Intersection over union of each class, over all pixels of all images together.

    .. math:: \frac{|\{h = k\} \cap \{y = k\}|}{|\{h = k\} \cup \{y = k\}|}

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import class_iou
    >>> class_iou(jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 1, 1]), num_classes=2).tolist()
    [0.5, 0.6666666865348816]

    Args:
        predictions: predicted classes ``h``, an array of any shape.
        labels: ``y``; pixels with a label outside ``[0, num_classes)``, such as 255, do not count.
        num_classes: at least 1.

    Returns:
        The ratio of each class, in [0, 1]; NaN for a class that is neither predicted nor there.
    """
    labels = jnp.asarray(labels)
    counted = (labels >= 0) & (labels < num_classes)
    predicted = (jnp.asarray(predictions)[..., None] == jnp.arange(num_classes)) & counted[..., None]
    actual = jax.nn.one_hot(labels, num_classes, dtype=bool)
    pixels = tuple(range(labels.ndim))
    return jnp.sum(predicted & actual, pixels) / jnp.sum(predicted | actual, pixels)
