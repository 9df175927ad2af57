"""Regret of online learners, and the two quantities that bound it between stochastic and adversarial losses."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked


@checked
def static_regret(
    losses: Float[Array, "time"], comparator_losses: Float[Array, "time comparators"]
) -> Float[Array, ""]:
    r"""What a learner lost more than the best fixed point in hindsight.

    .. math:: \sum_t f_t(x_t) - \min_u \sum_t f_t(u)

    Args:
        losses: of the learner, round by round.
        comparator_losses: of each fixed point that it is compared with.

    Returns:
        The regret.

    References:
        Hazan, *Introduction to Online Convex Optimization*, arXiv 1909.05207.
    """
    return jnp.sum(at_least_float32(losses)) - jnp.min(jnp.sum(at_least_float32(comparator_losses), axis=0))


@checked
def dynamic_regret(losses: Float[Array, "time"], comparator_losses: Float[Array, "time"]) -> Float[Array, ""]:
    r"""What a learner lost more than a moving point.

    .. math:: \sum_t f_t(x_t) - f_t(u_t)

    Args:
        losses: of the learner, round by round.
        comparator_losses: of the moving point.

    Returns:
        The regret.

    References:
        Chen et al., *Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex
        Optimization*, JMLR 2024, arXiv 2302.04552.
    """
    return jnp.sum(at_least_float32(losses) - at_least_float32(comparator_losses))


@checked
def path_length(points: Float[Array, "time dim"]) -> Float[Array, ""]:
    r"""How far a moving point moves, which dynamic regret has to grow with.

    .. math:: P_T = \sum_{t=2}^T \|u_t - u_{t-1}\|

    Args:
        points: ``u_t``.

    Returns:
        The length.

    References:
        Chen et al., *Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex
        Optimization*, JMLR 2024, arXiv 2302.04552.
    """
    return jnp.sum(jnp.linalg.norm(jnp.diff(at_least_float32(points), axis=0), axis=1))


class SeaQuantities(NamedTuple):
    """Result of :func:`sea_quantities`.

    Attributes:
        variance: ``sigma^2``, total variance of the gradients, 0 for adversarial losses.
        variation: ``Sigma^2``, total squared change of their means, 0 for independent, identically distributed losses.
    """

    variance: Float[Array, ""]
    variation: Float[Array, ""]


@checked
def sea_quantities(
    gradients: Float[Array, "time *samples dim"], mean_gradients: Float[Array, "time dim"]
) -> SeaQuantities:
    r"""How stochastic and how adversarial a sequence of losses is (stochastically extended adversarial model).

    .. math:: \sigma^2_{1:T} = \sum_t \mathbb E \|\nabla f_t - \nabla F_t\|^2, \qquad
        \Sigma^2_{1:T} = \sum_{t=2}^T \|\nabla F_t - \nabla F_{t-1}\|^2

    The paper takes the supremum over the domain; for linear losses all points are alike.

    Args:
        gradients: of the losses ``f_t`` at one point, one or more samples a round.
        mean_gradients: of their expectations ``F_t`` there.

    Returns:
        Both, summed over the rounds.

    References:
        Chen et al., *Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex
        Optimization*, JMLR 2024, arXiv 2302.04552.
    """
    gradients, means = at_least_float32(gradients), at_least_float32(mean_gradients)
    noise = gradients.reshape(gradients.shape[0], -1, gradients.shape[-1]) - means[:, None]
    variance = jnp.sum(jnp.mean(jnp.sum(jnp.square(noise), axis=-1), axis=-1))
    return SeaQuantities(variance, jnp.sum(jnp.square(jnp.diff(means, axis=0))))
