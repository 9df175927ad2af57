r"""The generalized Gaussian distribution: from spikes with heavy tails over Laplace and Gauss to the uniform.

Its density falls like :math:`\exp(-|x / \alpha|^\nu)`. The shape :math:`\nu` is 1 for Laplace's distribution and 2 for
Gauss' one. Trained weights and the errors of images are of shapes between 0.5 and 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaincc, gammaln

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range

LOW_SHAPE, HIGH_SHAPE = 0.05, 50.0


@checked
def ggd_log_prob(
    x: Float[Array, "*batch"],
    *,
    shape: ScalarLike | Float[Array, "*#batch"],
    scale: ScalarLike | Float[Array, "*#batch"],
) -> Float[Array, "*batch"]:
    r"""Logarithm of the density of the generalized Gaussian; its negative is the loss of a heteroscedastic model.

    .. math:: \log \frac{\nu}{2 \alpha \Gamma(1 / \nu)} - \Bigl(\frac{|x|}{\alpha}\Bigr)^\nu

    Args:
        x: values, or errors of predictions.
        shape: ``nu > 0``, one for all or for each. Below 1 the gradient grows without bound towards ``x = 0``; at 0
            it is 0.
        scale: ``alpha > 0``, one for all or for each.

    Returns:
        The log-density of each value, at least float32.

    Raises:
        ValueError: ``shape`` or ``scale`` is not positive.

    References:
        Nadarajah, *A Generalized Normal Distribution*, Journal of Applied Statistics 32, 2005.
    """
    check_range("shape", shape, "(0, inf)")
    check_range("scale", scale, "(0, inf)")
    x, nu, alpha = at_least_float32(x), _wide(shape), _wide(scale)
    size = jnp.abs(x) / alpha
    # The power through a logarithm, which has no gradient at zero to be multiplied by infinity.
    power = jnp.where(size > 0, jnp.exp(nu * jnp.log(jnp.where(size > 0, size, 1.0))), 0.0)
    return jnp.log(nu) - jnp.log(2.0 * alpha) - gammaln(1.0 / nu) - power


@checked
def ggd_sample(
    key: PRNGKeyArray, dims: tuple[int, ...] = (), *, shape: ScalarLike, scale: ScalarLike
) -> Float[Array, "..."]:
    r"""Draws from the generalized Gaussian.

    .. math:: x = \pm \alpha\, G^{1 / \nu}, \qquad G \sim \operatorname{Gamma}(1 / \nu, 1)

    Args:
        key: source of randomness.
        dims: dimensions of the result.
        shape: ``nu > 0``.
        scale: ``alpha > 0``.

    Returns:
        Independent values, float32.

    Raises:
        ValueError: ``shape`` or ``scale`` is not positive.

    References:
        Nardon and Pianca, *Simulation Techniques for Generalized Gaussian Densities*, Journal of Statistical
        Computation and Simulation 79, 2009.
    """
    check_range("shape", shape, "(0, inf)")
    check_range("scale", scale, "(0, inf)")
    key_size, key_sign = jax.random.split(key)
    nu = _wide(shape)
    # The logarithm does not underflow where 1 / nu is small.
    size = jnp.exp(jax.random.loggamma(key_size, 1.0 / nu, dims) / nu)
    return scale * jax.random.rademacher(key_sign, dims, size.dtype) * size


@checked
def ggd_quantile(
    probability: Float[Array, "*batch"], *, shape: ScalarLike, scale: ScalarLike = 1.0
) -> Float[Array, "*batch"]:
    r"""Quantiles of the generalized Gaussian, by halving an interval.

    .. math:: \operatorname{sign}(p - \tfrac12)\, \alpha\, Q^{-1}\bigl(\tfrac1\nu, 2 \min(p, 1 - p)\bigr)^{1 / \nu}

    with the regularized upper incomplete gamma function ``Q``. Far tails are exact for small probabilities; by symmetry
    for others take ``-ggd_quantile(1 - p)`` if ``1 - p`` is known better than it can be computed from ``p``.

    Args:
        probability: ``p`` in (0, 1).
        shape: ``nu > 0``.
        scale: ``alpha > 0``.

    Returns:
        The quantiles, at least float32.

    Raises:
        ValueError: ``shape`` or ``scale`` is not positive.

    References:
        Nadarajah, *A Generalized Normal Distribution*, Journal of Applied Statistics 32, 2005.
    """
    check_range("shape", shape, "(0, inf)")
    check_range("scale", scale, "(0, inf)")
    p, nu = at_least_float32(probability), _wide(shape)
    tail = 2.0 * jnp.minimum(p, 1.0 - p)

    def halve(_, interval):
        low, high = interval
        middle = 0.5 * (low + high)
        beyond = gammaincc(1.0 / nu, jnp.exp(nu * middle)) < tail
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    # Of the logarithm of the quantile over the scale: exp(nu * high) is 150, where nothing of the tail is left.
    low, high = jnp.full_like(tail, -20.0), jnp.full_like(tail, jnp.log(150.0) / nu)
    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    size = jnp.where(tail < 1.0, jnp.exp(0.5 * (low + high)), 0.0)
    return scale * jnp.sign(p - 0.5) * size


@checked
def ggd_variance(*, shape: ScalarLike, scale: ScalarLike = 1.0) -> Float[Array, ""]:
    r"""Variance of the generalized Gaussian.

    .. math:: \alpha^2\, \Gamma(3 / \nu) / \Gamma(1 / \nu)

    Args:
        shape: ``nu > 0``.
        scale: ``alpha > 0``.

    Returns:
        The variance.

    Raises:
        ValueError: ``shape`` or ``scale`` is not positive.

    References:
        Nadarajah, *A Generalized Normal Distribution*, Journal of Applied Statistics 32, 2005.
    """
    check_range("shape", shape, "(0, inf)")
    check_range("scale", scale, "(0, inf)")
    nu = _wide(shape)
    return jnp.square(_wide(scale)) * jnp.exp(gammaln(3.0 / nu) - gammaln(1.0 / nu))


@checked
def ggd_kurtosis(*, shape: ScalarLike) -> Float[Array, ""]:
    r"""Kurtosis of the generalized Gaussian: 3 for Gauss, 6 for Laplace.

    .. math:: \Gamma(5 / \nu)\, \Gamma(1 / \nu) / \Gamma(3 / \nu)^2

    Args:
        shape: ``nu > 0``.

    Returns:
        The fourth moment over the squared variance.

    Raises:
        ValueError: ``shape`` is not positive.

    References:
        Nadarajah, *A Generalized Normal Distribution*, Journal of Applied Statistics 32, 2005.
    """
    check_range("shape", shape, "(0, inf)")
    nu = _wide(shape)
    return jnp.exp(gammaln(5.0 / nu) + gammaln(1.0 / nu) - 2.0 * gammaln(3.0 / nu))


class GgdFit(NamedTuple):
    """Result of :func:`ggd_fit`.

    Attributes:
        shape: ``nu``, within [0.05, 50].
        scale: ``alpha``.
    """

    shape: Float[Array, ""]
    scale: Float[Array, ""]


@checked
def ggd_fit(x: Float[Array, "..."]) -> GgdFit:
    r"""Fits the generalized Gaussian to values around 0, by their first two absolute moments.

    .. math:: \frac{\Gamma(1 / \nu)\, \Gamma(3 / \nu)}{\Gamma(2 / \nu)^2} = \frac{\mathbb E x^2}{(\mathbb E |x|)^2},
        \qquad \alpha = \mathbb E |x|\, \frac{\Gamma(1 / \nu)}{\Gamma(2 / \nu)}

    The left side falls with the shape: :math:`\tfrac{10}3` at 0.5, 2 at 1, :math:`\tfrac\pi2` at 2.

    Args:
        x: values, at least one. Outliers are the signal: do not clip them before.

    Returns:
        Shape and scale; without a gradient. If all values are zero the scale is 0.

    References:
        Mallat, *A Theory for Multiresolution Signal Decomposition: The Wavelet Representation*, IEEE TPAMI 11, 1989.
    """
    x = jax.lax.stop_gradient(jnp.abs(at_least_float32(x)))
    largest = jnp.max(x)
    x = x / jnp.where(largest > 0, largest, 1.0)
    mean, square = jnp.mean(x), jnp.mean(jnp.square(x))
    target = jnp.where(largest > 0, jnp.log(square) - 2.0 * jnp.log(mean), jnp.log(jnp.pi / 2))

    def halve(_, interval):
        low, high = interval
        middle = 0.5 * (low + high)
        inverse = jnp.exp(-middle)
        ratio = gammaln(inverse) + gammaln(3.0 * inverse) - 2.0 * gammaln(2.0 * inverse)
        too_small = ratio > target
        return jnp.where(too_small, middle, low), jnp.where(too_small, high, middle)

    bounds = jnp.log(jnp.asarray(LOW_SHAPE, x.dtype)), jnp.log(jnp.asarray(HIGH_SHAPE, x.dtype))
    low, high = jax.lax.fori_loop(0, 40, halve, bounds)
    nu = jnp.exp(0.5 * (low + high))
    scale = jnp.where(largest > 0, largest * mean * jnp.exp(gammaln(1.0 / nu) - gammaln(2.0 / nu)), 0.0)
    return GgdFit(nu, scale)


def _wide(value):
    return at_least_float32(jnp.asarray(value))
