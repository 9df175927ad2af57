"""Multiplicative noise: gives the gradient of a large batch the noise of a small one's.

Sampling a small batch weighs every example by zero or by a large number. Random weights around one do the same to the
gradient's covariance, whatever the size of the batch.
"""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def multiplicative_noise_gradient(
    key: PRNGKeyArray, per_example_gradients: PyTree[Float[Array, "batch ..."]], *, sigma: ScalarLike
) -> PyTree[Float[Array, "..."]]:
    r"""The mean gradient under random weights of the examples.

    .. math:: \hat g = \frac1B \sum_{n=1}^B z_n g_n, \qquad z_n \sim \mathcal N(1, \sigma^2)

    Its mean is that of the gradients; the noise has the covariance :math:`\sigma^2 / B` times their second moment. An
    example has the same weight in all leaves. With losses in place of gradients, ``jax.grad`` of the result is the
    noisy gradient without any gradients per example.

    Args:
        key: random key.
        per_example_gradients: ``g_n``, examples first in every leaf.
        sigma: ``>= 0``, deviation of the weights. With ``sigma**2 = B / B_0`` the noise is that of batches of about
            ``B_0`` (paper: proportional to ``B``).

    Returns:
        The noisy mean gradient, in the leaves' dtypes.

    Raises:
        ValueError: ``sigma`` is negative.

    References:
        Hoffer et al., *Train longer, generalize better: closing the generalization gap in large batch training of
        neural networks*, NeurIPS 2017, arXiv 1705.08741.
    """
    check_range("sigma", sigma, "[0, inf)")
    leaves = jax.tree.leaves(per_example_gradients)
    if not leaves:
        return per_example_gradients
    weights = 1 + sigma * jax.random.normal(key, leaves[0].shape[:1])

    def mean(gradients):
        wide = at_least_float32(gradients)
        return (jnp.tensordot(weights.astype(wide.dtype), wide, axes=1) / len(weights)).astype(gradients.dtype)

    return jax.tree.map(mean, per_example_gradients)
