"""Distances between vectors that outliers cannot dominate.

The squared distance pulls in proportion to the error. The pseudo-Huber distance pulls with bounded strength, Cauchy's
with less and less: an error far above its scale loses its influence.
"""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def pseudo_huber(
    x: Float[Array, "*batch features"], y: Float[Array, "*batch features"], *, c: ScalarLike
) -> Float[Array, "*batch"]:
    r"""Pseudo-Huber distance: quadratic near zero, then the Euclidean distance.

    .. math:: \sqrt{\|x - y\|_2^2 + c^2} - c

    It is one number of the whole vector, not a sum over features.

    Args:
        x: vectors; flatten images.
        y: what they are compared with.
        c: > 0, the error at which it turns from quadratic to linear. Consistency models (iCT): ``0.00054 sqrt(d)``
            for ``d`` features.

    Returns:
        The distances, at least float32.

    Raises:
        ValueError: ``c`` is not positive.

    References:
        Charbonnier et al., *Deterministic Edge-Preserving Regularization in Computed Imaging*, 1997; as used by Song
        and Dhariwal, *Improved Techniques for Training Consistency Models*, ICLR 2024, arXiv 2310.14189.
    """
    check_range("c", c, "(0, inf)")
    squared = _squared_distance(x, y)
    # sqrt(r^2 + c^2) - c, without the difference of nearly equal numbers.
    return squared / (jnp.sqrt(squared + jnp.square(c)) + c)


@checked
def cauchy(
    x: Float[Array, "*batch features"], y: Float[Array, "*batch features"], *, c: ScalarLike
) -> Float[Array, "*batch"]:
    r"""Cauchy loss: quadratic near zero, then logarithmic.

    .. math:: \log \bigl(1 + r^2 / (2 c^2)\bigr), \qquad r = \|x - y\|_2

    Its slope :math:`2r / (2c^2 + r^2)` is largest at :math:`r = \sqrt2\,c` and then falls.

    Args:
        x: vectors; flatten images.
        y: what they are compared with.
        c: > 0, the scale of an ordinary error. Latent consistency models: :func:`jaxreg.schedules.adaptive_c`.

    Returns:
        The losses, at least float32.

    Raises:
        ValueError: ``c`` is not positive.

    References:
        Dao et al., *Improved Training Technique for Latent Consistency Models*, ICLR 2025, arXiv 2502.01441.
    """
    check_range("c", c, "(0, inf)")
    return jnp.log1p(_squared_distance(x, y) / (2 * jnp.square(c)))


def _squared_distance(x, y):
    return jnp.sum(jnp.square(at_least_float32(x) - at_least_float32(y)), axis=-1)
