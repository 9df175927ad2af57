"""Manifold intrusion: mixtures of examples that look like a real example of another class."""

import jax
import jax.numpy as jnp

from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def intrusion_rate(
    mixed: Float[Array, "mixtures *shape"],
    mixed_targets: Float[Array, "mixtures classes"],
    real: Float[Array, "examples *shape"],
    labels: Int[Array, "examples"],
    *,
    radius: ScalarLike,
    share: ScalarLike = 0.5,
) -> Float[Array, ""]:
    r"""Share of the mixtures that lie where real examples lie, with a target that contradicts them.

    A mixture intrudes if its nearest real example, by Euclidean distance, is within the radius and belongs to a class
    to which the mixture's target gives less than a given share.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import intrusion_rate
    >>> real, labels = jnp.array([[-2.0], [0.0], [2.0]]), jnp.array([0, 1, 0])
    >>> middle_of_both_ends = jnp.array([[0.1]])
    >>> float(intrusion_rate(middle_of_both_ends, jnp.array([[1.0, 0.0]]), real, labels, radius=0.5))
    1.0

    Args:
        mixed: the mixtures, such as those of :func:`jaxreg.data.mixup`.
        mixed_targets: one-hot labels, mixed likewise.
        real: examples that tell where the data lie.
        labels: their classes.
        radius: positive, in the unit of the inputs: how close to an example counts as on the data. The distance of
            typical examples to their nearest neighbour is a sensible choice.
        share: in (0, 1], how much of the target that class should have at least (our choice: half).

    Returns:
        The share in [0, 1]; NaN if a mixture or an example is.

    Raises:
        ValueError: ``radius`` or ``share`` is outside its range.

    References:
        Guo et al., *MixUp as Locally Linear Out-Of-Manifold Regularization*, AAAI 2019, arXiv 1809.02499 (the notion;
        the measure is ours).
    """
    check_range("radius", radius, "(0, inf)")
    check_range("share", share, "(0, 1]")
    x, y = (at_least_float32(points.reshape(points.shape[0], -1)) for points in (mixed, real))

    def intrudes(mixture):
        point, target = mixture
        distances = jnp.linalg.norm(y - point, axis=-1)
        nearest = jnp.argmin(distances)
        distance, given = distances[nearest], target[jnp.asarray(labels)[nearest]]
        return unless_nan((distance <= radius) & (given < share), distance, given)

    # One mixture at a time: differences of all pairs would not fit into memory.
    return jnp.mean(jax.lax.map(intrudes, (x, mixed_targets)))
