"""How periodic the weights of a neuron are.

Networks that have found the rule of modular addition store it as waves: the weights of a neuron, over the operands,
have one frequency. The inverse participation ratio of their Fourier transform tells these neurons from those that
memorize.
"""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def ipr(weights: Float[Array, "*batch modulus"], *, r: ScalarLike = 2) -> Float[Array, "*batch"]:
    r"""Inverse participation ratio of the Fourier transform: 1 for one frequency, small for a mixture of many.

    .. math:: \sum_f \Bigl(\frac{|F_f|}{\|F\|_2}\Bigr)^{2 r}

    with ``F`` the transform at the frequencies from 0 to half the length.

    Args:
        weights: real numbers over one period.
        r: ``r > 1`` (paper: 2); the larger, the more the strongest frequency counts.

    Returns:
        The ratio, in ``(0, 1]``; 0 for weights that are all zero.

    Raises:
        ValueError: ``r`` is not above 1.

    References:
        Doshi et al., *To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic
        datasets*, ICLR 2024, arXiv 2310.13061.
    """
    check_range("r", r, "(1, inf)")
    weights = at_least_float32(weights)
    # Weights of 1e-20 have squares that vanish.
    largest = jnp.max(jnp.abs(weights), axis=-1, keepdims=True)
    power = jnp.square(jnp.abs(jnp.fft.rfft(weights / jnp.where(largest > 0, largest, 1.0), axis=-1)))
    total = jnp.sum(power, axis=-1, keepdims=True)
    return jnp.sum((power / jnp.where(total > 0, total, 1.0)) ** r, axis=-1)


@checked
def neuron_ipr(
    left: Float[Array, "hidden modulus"],
    right: Float[Array, "hidden modulus"],
    output: Float[Array, "modulus hidden"],
    *,
    r: ScalarLike = 2,
) -> Float[Array, "hidden"]:
    """How periodic each hidden neuron is: the mean :func:`ipr` of its weights to both operands and to the output.

    Args:
        left: ``U``, weights of the first operand.
        right: ``V``, weights of the second operand.
        output: ``W``, weights to the results.
        r: see :func:`ipr`.

    Returns:
        The score of each neuron, in [0, 1]; high for those that generalize, low for those that memorize.

    Raises:
        ValueError: ``r`` is not above 1.

    References:
        Doshi et al., *To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic
        datasets*, ICLR 2024, arXiv 2310.13061.
    """
    return jnp.mean(jnp.stack([ipr(left, r=r), ipr(right, r=r), ipr(output.T, r=r)]), axis=0)
