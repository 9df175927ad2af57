"""Parameter norms that sharpness amounts to: the path norm of two-layer networks, the l1 norm of diagonal ones.

Flat minima of these two models are minima of small norm: see :mod:`jaxreg.metrics`, ``critical_lr`` and around.
"""

from typing import Literal

import jax.numpy as jnp

from jaxreg.linalg import root
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked


@checked
def path_norm(
    input_weights: Float[Array, "inputs hidden"],
    output_weights: Float[Array, "hidden *outputs"],
    *,
    order: Literal[1, 2] = 2,
) -> Float[Array, ""]:
    r"""Path norm of a two-layer ReLU network: what rescaling a neuron's two sides against each other leaves alone.

    .. math:: \sum_j \|v_j\|_2 \, \|w_j\|_p

    For inputs that come with their negatives, :math:`\operatorname{tr} H \ge \sqrt{d}` times the path norm with
    :math:`p = 2` if their covariance is the identity of size :math:`d`. Equality holds where neurons are balanced,
    :math:`\|w_j\| = \sqrt{d}\, |v_j|`.

    Args:
        input_weights: ``w_j`` in the columns, as in a kernel of flax.
        output_weights: ``v_j`` in the rows, or numbers.
        order: ``p``, of the norm of the input weights.

    Returns:
        The norm, at least float32.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490; Neyshabur et al., *Norm-Based Capacity Control in Neural Networks*, COLT 2015,
        arXiv 1503.00036.
    """
    inner = _norm(at_least_float32(input_weights).T, order)
    outer = _norm(at_least_float32(output_weights).reshape(output_weights.shape[0], -1), 2)
    return jnp.sum(inner * outer)


@checked
def diagonal_net_l1(
    u: Float[Array, "inputs"], v: Float[Array, "inputs"], *, second_moments: Float[Array, "inputs"] | None = None
) -> Float[Array, ""]:
    r"""The l1 norm of the weights that a diagonal linear network stands for.

    .. math:: \sum_j s_j |u_j^2 - v_j^2|, \qquad f(x) = \langle u \odot u - v \odot v, x \rangle

    The trace of its Gauss-Newton matrix, :math:`4 \sum_j s_j (u_j^2 + v_j^2)` with
    :math:`s_j = \mathbb E[x_j^2]`, is at least 4 times as large, and exactly 4 times where :math:`u_j v_j = 0` for all
    :math:`j`.

    Args:
        u: the factors of the positive part.
        v: the factors of the negative part.
        second_moments: ``s_j >= 0``, weights of the inputs; all 1 by default.

    Returns:
        The norm, at least float32.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    u, v = at_least_float32(u), at_least_float32(v)
    sizes = jnp.abs(u - v) * jnp.abs(u + v)  # the difference of nearly equal squares would cancel
    return jnp.sum(sizes if second_moments is None else at_least_float32(second_moments) * sizes)


def _norm(x, order):
    """Row norms, with gradient 0 at rows of zeros."""
    if order == 1:
        return jnp.sum(jnp.abs(x), axis=1)
    return root(jnp.sum(jnp.square(x), axis=1))
