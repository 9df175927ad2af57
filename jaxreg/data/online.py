"""Sequences of losses for online learners."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


class SeaLosses(NamedTuple):
    """Linear losses of :func:`sea_losses`.

    Attributes:
        gradients: what the learner sees.
        means: their expectations, by which it is judged.
    """

    gradients: Float[Array, "time dim"]
    means: Float[Array, "time dim"]


@checked
def sea_losses(
    key: PRNGKeyArray, rounds: int, dim: int, *, flip_every: ScalarLike = 100, noise: ScalarLike = 0.0
) -> SeaLosses:
    r"""Linear losses between stochastic and adversarial: a direction that turns round now and then, plus noise.

    .. math:: g_t = (-1)^{\lfloor t / k \rfloor} u + \sigma \epsilon_t, \qquad \|u\| = 1, \quad
        \epsilon_t \sim \mathcal N(0, I / d)

    so that each round adds :math:`\sigma^2` to the variance and each turn 4 to the variation of
    :func:`jaxreg.metrics.sea_quantities`.

    Args:
        key: source of direction and noise.
        rounds: ``T >= 1``.
        dim: ``d >= 1``.
        flip_every: ``k >= 1``, rounds between two turns.
        noise: ``sigma >= 0``.

    Returns:
        Gradients and their means.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Sachs et al., *Between Stochastic and Adversarial Online Convex Optimization: Improved Regret Bounds via
        Smoothness*, NeurIPS 2022, arXiv 2202.07554.
    """
    check_range("rounds", rounds, "[1, inf)")
    check_range("dim", dim, "[1, inf)")
    check_range("flip_every", flip_every, "[1, inf)")
    check_range("noise", noise, "[0, inf)")
    key_direction, key_noise = jax.random.split(key)
    direction = jax.random.normal(key_direction, [dim])
    direction /= jnp.linalg.norm(direction)
    signs = jnp.where(jnp.arange(rounds) // flip_every % 2 == 0, 1.0, -1.0)
    means = signs[:, None] * direction
    return SeaLosses(means + noise * jax.random.normal(key_noise, [rounds, dim]) / jnp.sqrt(dim), means)
