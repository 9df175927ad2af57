"""Densities on the plane to try generative models on, and the ideal denoiser of one of them."""

import math

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def gaussian_ring(
    key: PRNGKeyArray, n: int, *, modes: int = 8, radius: ScalarLike = 0.7, std: ScalarLike = 0.05
) -> Float[Array, "n 2"]:
    r"""Points of equally likely Gaussians whose means are evenly spaced on a circle.

    The first mean is at :math:`(r, 0)`. With the defaults each coordinate has a standard deviation of 0.497.

    Args:
        key: source of randomness.
        n: number of points.
        modes: number of Gaussians, at least 1.
        radius: ``r``, of the circle.
        std: >= 0, standard deviation of each Gaussian, in each coordinate.

    Returns:
        The points.

    Raises:
        ValueError: ``modes`` or ``std`` is outside its range.
    """
    check_range("modes", modes, "[1, inf)")
    check_range("std", std, "[0, inf)")
    key_mode, key_noise = jax.random.split(key)
    mode = jax.random.randint(key_mode, [n], 0, modes)
    return ring_means(modes=modes, radius=radius)[mode] + std * jax.random.normal(key_noise, [n, 2])


@checked
def ring_means(*, modes: int = 8, radius: ScalarLike = 0.7) -> Float[Array, "modes 2"]:
    """The means of :func:`gaussian_ring`, counter-clockwise from the first axis.

    Args:
        modes: how many, at least 1.
        radius: of the circle.

    Returns:
        The means.

    Raises:
        ValueError: ``modes`` is below 1.
    """
    check_range("modes", modes, "[1, inf)")
    angles = jnp.arange(modes) * (2 * math.pi / modes)
    return radius * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@checked
def ring_denoiser(
    x: Float[Array, "*batch 2"],
    sigma: ScalarLike | Float[Array, "*batch"],
    *,
    modes: int = 8,
    radius: ScalarLike = 0.7,
    std: ScalarLike = 0.05,
) -> Float[Array, "*batch 2"]:
    r"""The best estimate of a point of :func:`gaussian_ring` from one that noise was added to.

    .. math::
        \mathbb E[x_0 \mid x = x_0 + \sigma z] = \sum_k w_k \frac{e^2 x + \sigma^2 m_k}{e^2 + \sigma^2},
        \qquad w = \operatorname{softmax}_k \Bigl(-\frac{\|x - m_k\|^2}{2 (e^2 + \sigma^2)}\Bigr)

    The score of the noisy density is :math:`(\mathbb E[x_0 | x] - x) / \sigma^2`.

    Args:
        x: noisy points.
        sigma: standard deviation of the noise, >= 0; one for all or one for each.
        modes: as for :func:`gaussian_ring`.
        radius: as for :func:`gaussian_ring`, the length of the means ``m_k``.
        std: ``e > 0``.

    Returns:
        The estimates.

    Raises:
        ValueError: ``modes`` or ``std`` is outside its range.
    """
    check_range("std", std, "(0, inf)")
    means = ring_means(modes=modes, radius=radius)
    noise = jnp.square(jnp.broadcast_to(at_least_float32(jnp.asarray(sigma)), x.shape[:-1]))[..., None]
    total = jnp.square(std) + noise
    # The square of x is the same for all modes, and would hide their differences far out.
    scores = (x @ means.T - 0.5 * jnp.sum(jnp.square(means), axis=-1)) / total
    centre = jax.nn.softmax(scores, axis=-1) @ means
    return (jnp.square(std) * x + noise * centre) / total


@checked
def two_moons(key: PRNGKeyArray, n: int, *, scale: ScalarLike = 0.7, noise: ScalarLike = 0.05) -> Float[Array, "n 2"]:
    r"""Points of two interleaved half circles, centred.

    .. math:: s\,(\cos a - \tfrac12, \sin a - \tfrac14) \quad\text{or}\quad
        s\,(\tfrac12 - \cos a, \tfrac14 - \sin a), \qquad a \in [0, \pi] \text{ uniform}

    Args:
        key: source of randomness.
        n: number of points.
        scale: ``s``, radius of the half circles.
        noise: >= 0, standard deviation of the normal noise that is added.

    Returns:
        The points.

    Raises:
        ValueError: ``noise`` is negative.
    """
    check_range("noise", noise, "[0, inf)")
    key_side, key_angle, key_noise = jax.random.split(key, 3)
    angle = jax.random.uniform(key_angle, [n], maxval=math.pi)
    moon = jnp.stack([jnp.cos(angle) - 0.5, jnp.sin(angle) - 0.25], axis=-1)
    side = jax.random.rademacher(key_side, [n, 1], moon.dtype)
    return scale * side * moon + noise * jax.random.normal(key_noise, [n, 2])
