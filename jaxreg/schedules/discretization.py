"""How finely consistency training divides the noise levels, and which of them it visits.

A consistency model is trained on neighbouring points of a grid of noise levels. The grid starts coarse, which gives a
biased but quick signal, and is refined as training goes on: ``N`` below is its number of points.
"""

import math

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def doubling_steps(step: ScalarLike, *, total_steps: int, s0: int = 10, s1: int = 1280) -> Int[Array, ""]:
    r"""The curriculum of iCT: the number of intervals doubles at equal stretches of training.

    .. math:: N(k) = \min\bigl(s_0 2^{\lfloor k / K' \rfloor}, s_1\bigr) + 1,
        \qquad K' = \Bigl\lfloor \frac{K}{\log_2 \lfloor s_1 / s_0 \rfloor + 1} \Bigr\rfloor

    >>> from jaxreg.schedules import doubling_steps
    >>> [int(doubling_steps(step, total_steps=400_000)) for step in (0, 50_000, 400_000)]
    [11, 21, 1281]

    Args:
        step: ``k``, steps taken; may be traced.
        total_steps: ``K >= 1`` (paper: 400,000).
        s0: intervals at first, at least 1 (paper: 10).
        s1: intervals at last, at least ``s0`` (paper: 1280).

    Returns:
        ``N``, the number of grid points.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Song and Dhariwal, *Improved Techniques for Training Consistency Models*, ICLR 2024, arXiv 2310.14189.
    """
    check_range("total_steps", total_steps, "[1, inf)")
    check_range("s0", s0, "[1, inf)")
    check_range("s1", s1, f"[{s0}, inf)")
    stretch = max(int(total_steps / (math.log2(s1 // s0) + 1)), 1)
    doublings = jnp.asarray(step) // stretch
    # Doublings beyond the last one that matters would overflow.
    doublings = jnp.clip(doublings, 0, ((s1 - 1) // s0).bit_length()).astype(jnp.int32)
    return jnp.minimum(s0 * jnp.left_shift(1, doublings), s1) + 1


@checked
def karras_sigma(
    index: ScalarLike | Int[Array, "*batch"],
    n: ScalarLike,
    *,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> Float[Array, "*batch"]:
    r"""The grid of noise levels, in ascending order.

    .. math:: \sigma_i = \Bigl(\sigma_{\min}^{1/\rho}
        + \tfrac{i}{N - 1} \bigl(\sigma_{\max}^{1/\rho} - \sigma_{\min}^{1/\rho}\bigr)\Bigr)^\rho

    Args:
        index: ``i`` from 0 (``sigma_min``) to ``N - 1`` (``sigma_max``); papers count from 1.
        n: ``N >= 2``, the number of points; may be traced, see :func:`doubling_steps`.
        sigma_min: > 0, the lowest level (paper: 0.002).
        sigma_max: the highest (paper: 80).
        rho: > 0; the larger, the denser are the low levels (paper: 7).

    Returns:
        The noise levels, at least float32.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022,
        arXiv 2206.00364.
    """
    _check_grid(n, sigma_min, sigma_max, rho)
    low, high = _roots(sigma_min, sigma_max, rho)
    position = at_least_float32(jnp.asarray(index)) / (n - 1)
    # Between the ends rather than from one of them, so that both are exact up to the power.
    return ((1 - position) * low + position * high) ** rho


@checked
def karras_index(
    sigma: Float[Array, "*batch"],
    n: ScalarLike,
    *,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> Int[Array, "*batch"]:
    r"""The interval of the grid that a noise level lies in, ``sigma_i <= sigma < sigma_{i+1}``.

    Args:
        sigma: noise levels; outside of the grid they belong to its first or last interval.
        n: ``N >= 2``, the number of points; may be traced.
        sigma_min: see :func:`karras_sigma`, as are the other arguments.
        sigma_max: the highest level.
        rho: how the points are spaced.

    Returns:
        ``i`` from 0 to ``N - 2``.

    Raises:
        ValueError: an argument is outside its range.
    """
    _check_grid(n, sigma_min, sigma_max, rho)
    low, high = _roots(sigma_min, sigma_max, rho)
    sigma = at_least_float32(sigma)
    position = (sigma ** (1 / rho) - low) / (high - low) * (n - 1)
    index = jnp.clip(jnp.floor(position), 0, n - 2).astype(jnp.int32)
    # Rounding may have taken a point of the grid, or its neighbour, into the interval beside its own.
    lower, upper = (karras_sigma(i, n, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho) for i in (index, index + 1))
    index = index + jnp.where(sigma < lower, -1, jnp.where(sigma >= upper, 1, 0))
    return jnp.clip(index, 0, n - 2).astype(jnp.int32)


@checked
def lognormal_index_probs(
    n: int,
    *,
    p_mean: ScalarLike = -1.1,
    p_std: ScalarLike = 2.0,
    sigma_min: ScalarLike = 0.002,
    sigma_max: ScalarLike = 80.0,
    rho: ScalarLike = 7.0,
) -> Float[Array, "intervals"]:
    r"""How often iCT visits each interval of the grid: as a lognormal noise level would fall into it.

    .. math:: p(i) \propto \operatorname{erf}\Bigl(\frac{\log \sigma_{i+1} - P_m}{\sqrt2 P_s}\Bigr)
        - \operatorname{erf}\Bigl(\frac{\log \sigma_i - P_m}{\sqrt2 P_s}\Bigr)

    Args:
        n: ``N >= 2``, the number of grid points. The number of probabilities is one less, so it cannot be traced;
            :func:`jaxreg.diffusion.sample_sigma_pair` draws for a traced one.
        p_mean: ``P_m``, mean of the level's logarithm (paper: -1.1).
        p_std: ``P_s > 0``, its standard deviation (paper: 2).
        sigma_min: see :func:`karras_sigma`, as are the other arguments.
        sigma_max: the highest level.
        rho: how the points are spaced.

    Returns:
        The probabilities of the ``N - 1`` intervals, lowest noise first.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Song and Dhariwal, *Improved Techniques for Training Consistency Models*, ICLR 2024, arXiv 2310.14189.
    """
    check_range("p_std", p_std, "(0, inf)")
    sigmas = karras_sigma(jnp.arange(n), n, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    mass = jnp.diff(jax.scipy.special.erf((jnp.log(sigmas) - p_mean) / (math.sqrt(2) * p_std)))
    return mass / jnp.sum(mass)


@checked
def adaptive_c(n: ScalarLike, *, a: ScalarLike = 1.18, b: ScalarLike = 0.72) -> Float[Array, ""]:
    r"""The scale of the Cauchy loss, which shrinks as the grid becomes finer and neighbours come closer.

    .. math:: c = \exp\bigl(-a \log (N - 1) - b\bigr)

    Args:
        n: ``N >= 2``, the number of grid points; may be traced.
        a: how fast it shrinks, at least 0 (paper: 1.18).
        b: minus its logarithm for a single interval (paper: 0.72).

    Returns:
        ``c`` for :func:`jaxreg.losses.cauchy`.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Dao et al., *Improved Training Technique for Latent Consistency Models*, ICLR 2025, arXiv 2502.01441.
    """
    check_range("n", n, "[2, inf)")
    check_range("a", a, "[0, inf)")
    return jnp.exp(-a * jnp.log(at_least_float32(jnp.asarray(n - 1))) - b)


def _check_grid(n, sigma_min, sigma_max, rho):
    check_range("n", n, "[2, inf)")
    check_range("sigma_min", sigma_min, "(0, inf)")
    check_range("sigma_max", sigma_max, "(0, inf)")
    check_range("rho", rho, "(0, inf)")


def _roots(sigma_min, sigma_max, rho):
    return (jnp.asarray(sigma, jnp.float32) ** (1 / rho) for sigma in (sigma_min, sigma_max))
