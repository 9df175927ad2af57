r"""The network that adds modulo a prime: its weights written down, and pruned by neuron.

One hidden layer of squares is enough: the square of a sum of two waves contains their product, which is a wave of the
sum of the operands.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


class ModularMlp(NamedTuple):
    """Weights of :func:`modular_mlp`.

    Attributes:
        left: ``U``, of the first operand.
        right: ``V``, of the second operand.
        output: ``W``, of the results.
    """

    left: Float[Array, "hidden modulus"]
    right: Float[Array, "hidden modulus"]
    output: Float[Array, "modulus hidden"]


@checked
def modular_mlp(params: ModularMlp, x: Float[Array, "*batch twice_modulus"]) -> Float[Array, "*batch modulus"]:
    r"""The two-layer network with quadratic activation and no biases.

    .. math:: f(m, n) = W\,(U e_m + V e_n)^{\odot 2}

    Args:
        params: from :func:`modular_mlp_init` or :func:`analytic_modular_mlp`.
        x: both operands one-hot, side by side, as in :func:`jaxreg.data.noisy_modular`.

    Returns:
        One score for each possible result.

    References:
        Gromov, *Grokking modular arithmetic*, arXiv 2301.02679.
    """
    hidden = jnp.square(x @ jnp.concatenate([params.left, params.right], axis=1).T)
    return hidden @ params.output.T


@checked
def modular_mlp_init(key: PRNGKeyArray, modulus: int, hidden: int) -> ModularMlp:
    r"""Random weights of :func:`modular_mlp`, with outputs of order one for any width.

    .. math:: U, V, W \sim \mathcal N\bigl(0, (0.5 / (2N)^{1/3})^2\bigr)

    Args:
        key: source of the weights.
        modulus: ``p >= 2``.
        hidden: ``N >= 1``, number of neurons (paper: 500).

    Returns:
        The weights, float32.

    Raises:
        ValueError: a size is too small.

    References:
        Doshi et al., *To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic
        datasets*, ICLR 2024, arXiv 2310.13061.
    """
    check_range("modulus", modulus, "[2, inf)")
    check_range("hidden", hidden, "[1, inf)")
    left, right, output = 0.5 / (2 * hidden) ** (1 / 3) * jax.random.normal(key, [3, hidden, modulus])
    return ModularMlp(left, right, output.T)


@checked
def analytic_modular_mlp(key: PRNGKeyArray, modulus: int, hidden: int) -> ModularMlp:
    r"""Weights that add modulo ``p`` without having been trained.

    .. math::
        U_{\cdot i} = \cos\bigl(\tfrac{2 \pi k i}p + a\bigr), \quad
        V_{\cdot j} = \cos\bigl(\tfrac{2 \pi k j}p + b\bigr), \quad
        W_{q \cdot} = \cos\bigl(\tfrac{2 \pi k q}p + a + b\bigr)

    Each neuron has a random frequency ``k`` and random phases ``a`` and ``b``. The square contains
    :math:`\cos(2 \pi k (i + j) / p + a + b)`; summed over neurons only what is in phase with ``W`` remains, which is
    largest at :math:`q = i + j`. Other terms of the square average out as ``N`` grows.

    Args:
        key: source of frequencies and phases.
        modulus: ``p``, an odd prime.
        hidden: ``N >= 1``, number of neurons; 500 are enough for perfect accuracy up to ``p = 97``.

    Returns:
        The weights, float32.

    Raises:
        ValueError: a size is too small.

    References:
        Gromov, *Grokking modular arithmetic*, arXiv 2301.02679; Doshi et al., *To grok or not to grok: Disentangling
        generalization and memorization on corrupted algorithmic datasets*, ICLR 2024, arXiv 2310.13061.
    """
    check_range("modulus", modulus, "[3, inf)")
    check_range("hidden", hidden, "[1, inf)")
    key_frequency, key_phase = jax.random.split(key)
    frequency = jax.random.randint(key_frequency, [hidden], 1, (modulus - 1) // 2 + 1)
    a, b = jax.random.uniform(key_phase, [2, hidden, 1], maxval=2 * jnp.pi)
    # Whole turns are taken off as integers: the cosine of a large float32 is inexact.
    angle = 2 * jnp.pi / modulus * ((frequency[:, None] * jnp.arange(modulus)) % modulus)
    return ModularMlp(jnp.cos(angle + a), jnp.cos(angle + b), jnp.cos(angle + a + b).T)


@checked
def prune_neurons(
    params: ModularMlp, scores: Float[Array, "hidden"], k: ScalarLike, *, lowest: bool = True
) -> ModularMlp:
    """Sets all weights of some neurons to zero.

    Args:
        params: of :func:`modular_mlp`.
        scores: of each neuron, such as :func:`jaxreg.metrics.neuron_ipr`; random scores prune at random.
        k: how many, from 0 to all of them.
        lowest: whether the neurons of lowest score go, otherwise those of highest. Of equal scores the first goes.

    Returns:
        Weights of the same shapes.

    Raises:
        ValueError: ``k`` is negative.

    References:
        Doshi et al., *To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic
        datasets*, ICLR 2024, arXiv 2310.13061.
    """
    check_range("k", k, "[0, inf)")
    order = jnp.argsort(scores if lowest else -scores)
    kept = jnp.zeros(len(order), bool).at[order].set(jnp.arange(len(order)) >= k)
    return ModularMlp(
        jnp.where(kept[:, None], params.left, 0.0),
        jnp.where(kept[:, None], params.right, 0.0),
        jnp.where(kept, params.output, 0.0),
    )
