"""How far the weights have travelled, and by which law.

At a constant learning rate the distance from the start grows with the logarithm of the number of steps, as that of a
random walk in a random potential does; on a flat loss it would grow with the square root.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, Shaped, checked


@checked
def distance_from_init(params: PyTree, init: PyTree) -> Float[Array, ""]:
    r"""The Euclidean distance of the weights from where they started.

    .. math:: \|w_t - w_0\|_2

    Args:
        params: ``w_t``, floating arrays.
        init: ``w_0``, a tree of the same structure and shapes.

    Returns:
        The distance over all leaves, at least float32.

    References:
        Hoffer et al., *Train longer, generalize better: closing the generalization gap in large batch training of
        neural networks*, NeurIPS 2017, arXiv 1705.08741.
    """
    squares = jax.tree.map(
        lambda w, start: jnp.sum(jnp.square(at_least_float32(w) - at_least_float32(start))), params, init
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares), start=jnp.zeros([], jnp.float32)))


class UltraSlowFit(NamedTuple):
    """What :func:`fit_ultra_slow` finds.

    Attributes:
        slope: growth of the distance when the number of steps grows by a factor of ``e``.
        r2_log: share of the distance's variance that the logarithm explains.
        r2_sqrt: the share that the square root explains.
    """

    slope: Float[Array, ""]
    r2_log: Float[Array, ""]
    r2_sqrt: Float[Array, ""]


@checked
def fit_ultra_slow(steps: Shaped[Array, "times"], distances: Float[Array, "times"]) -> UltraSlowFit:
    r"""Compares two laws for the distance from the start by least squares.

    .. math:: \|w_t - w_0\| \approx a \log t + b \qquad\text{against}\qquad \|w_t - w_0\| \approx a' \sqrt t + b'

    Args:
        steps: ``t >= 1``, numbers of steps taken at a constant learning rate, at least two different ones.
        distances: from :func:`distance_from_init`.

    Returns:
        The slope ``a`` and how well each law fits; 1 is a perfect fit, and NaN means that all distances are equal.

    References:
        Hoffer et al., *Train longer, generalize better: closing the generalization gap in large batch training of
        neural networks*, NeurIPS 2017, arXiv 1705.08741.
    """
    steps, distances = at_least_float32(steps), at_least_float32(distances)

    def fit(x):
        x, y = x - jnp.mean(x), distances - jnp.mean(distances)
        covariance = jnp.vdot(x, y)
        return covariance / jnp.vdot(x, x), jnp.square(covariance) / (jnp.vdot(x, x) * jnp.vdot(y, y))

    slope, r2_log = fit(jnp.log(steps))
    return UltraSlowFit(slope, r2_log, fit(jnp.sqrt(steps))[1])
