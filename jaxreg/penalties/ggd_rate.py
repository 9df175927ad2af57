"""What weights cost to store: by a generalized Gaussian, as a penalty, and by exp-Golomb codes."""

import jax
import jax.numpy as jnp

from jaxreg.losses.generalized_gaussian import ggd_fit, ggd_log_prob
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def backslash_rate(
    params: PyTree[Float[Array, "..."]], *, shape: ScalarLike | None = None, eps: ScalarLike = 1e-8
) -> Float[Array, ""]:
    r"""BackSlash: the part of the code length of generalized Gaussian weights that depends on the weights.

    .. math:: \tfrac1n \sum_i (|w_i| + \epsilon)^\nu

    Added to the loss, times a strength, it trades accuracy for bits. It is the mean over all arrays together.

    Args:
        params: ``w``.
        shape: ``nu > 0``; by default fitted to the current weights, and taken as given by the gradient.
        eps: ``epsilon > 0`` (paper: 1e-8). The gradient, ``nu eps**(nu - 1)`` at most, is unbounded without it for
            shapes below 1.

    Returns:
        The rate; 0 without weights.

    Raises:
        ValueError: ``shape`` or ``eps`` is not positive.

    References:
        Wu et al., *It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs*,
        arXiv 2506.00486; Wu et al., *BackSlash: Rate Constrained Optimized Training of Large Language Models*,
        arXiv 2504.16968.
    """
    check_range("shape", shape, "(0, inf)")
    check_range("eps", eps, "(0, inf)")
    weights = _flat(params)
    if weights.size == 0:
        return jnp.zeros([])
    nu = ggd_fit(weights).shape if shape is None else shape
    sizes = weights * jax.lax.stop_gradient(jnp.sign(weights))  # unlike that of abs its gradient is 0 at 0
    return jnp.mean((sizes + eps) ** nu)


@checked
def ggd_bits(params: PyTree[Float[Array, "..."]], *, step: ScalarLike) -> Float[Array, ""]:
    r"""Bits per weight that an ideal code takes for rounded weights, if their fitted generalized Gaussian is true.

    .. math:: -\tfrac1n \sum_i \log_2 \bigl(\delta\, f(w_i)\bigr)

    It holds for steps that are small beside the weights.

    Args:
        params: ``w``, all arrays together, at least one value that is not zero.
        step: ``delta > 0``, distance of the values that weights are rounded to.

    Returns:
        The bits.

    Raises:
        ValueError: ``step`` is not positive.

    References:
        Wu et al., *It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs*,
        arXiv 2506.00486.
    """
    check_range("step", step, "(0, inf)")
    weights = _flat(params)
    shape, scale = ggd_fit(weights)
    nats = -jnp.mean(ggd_log_prob(weights, shape=shape, scale=scale)) - jnp.log(step)
    return nats / jnp.log(2.0)


@checked
def exp_golomb_bits(q: Int[Array, "*shape"], *, k: int = 0) -> Int[Array, "*shape"]:
    r"""Length of the exponential Golomb code of signed integers.

    .. math:: 2 \lfloor \log_2(\lfloor m / 2^k \rfloor + 1) \rfloor + 1 + k, \qquad
        m = 2 q - 1 \text{ for } q > 0, \quad -2 q \text{ otherwise}

    >>> import jax.numpy as jnp
    >>> exp_golomb_bits(jnp.array([0, 1, -1, 2, -2, 3])).tolist()
    [1, 3, 3, 5, 5, 5]

    Args:
        q: integers, of size below ``2**30``.
        k: order of the code, from 0 to 30: integers around ``2**k`` have the shortest codes.

    Returns:
        The bits of each.

    Raises:
        ValueError: ``k`` is outside its range.

    References:
        Teuhola, *A Compression Method for Clustered Bit-Vectors*, Information Processing Letters 7, 1978.
    """
    check_range("k", k, "[0, 30]")
    q = jnp.asarray(q, jnp.int32)
    unsigned = jnp.where(q > 0, 2 * q - 1, -2 * q)
    # The position of the highest bit, counted: a logarithm in float32 is wrong next to powers of two.
    highest = 31 - jax.lax.clz((unsigned >> k) + 1)
    return 2 * highest + 1 + k


def _flat(params):
    return jnp.concatenate([jnp.zeros([0]), *(at_least_float32(w).ravel() for w in jax.tree.leaves(params))])
