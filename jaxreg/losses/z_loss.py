"""The z-loss: keeps the normalizer of a softmax near one.

Cross-entropy does not change when all logits change by the same amount, so nothing keeps them from drifting to where
rounding hurts. The z-loss pulls the logarithm of their normalizer towards zero.
"""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def z_loss(logits: Float[Array, "*batch classes"], *, coeff: ScalarLike = 1e-4) -> Float[Array, "*batch"]:
    r"""What is added to cross-entropy against diverging output logits.

    .. math:: c \log^2 Z, \qquad Z = \sum_k e^{z_k}

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import z_loss
    >>> round(float(z_loss(jnp.zeros(8), coeff=1.0)), 4)  # log(8) ** 2
    4.3241

    Args:
        logits: unnormalized class scores ``z``.
        coeff: ``c >= 0`` (paper: 1e-4).

    Returns:
        The penalty of each example, at least float32.

    Raises:
        ValueError: ``coeff`` is negative.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322; after Chowdhery et al., *PaLM: Scaling Language Modeling with Pathways*, JMLR 2023.
    """
    check_range("coeff", coeff, "[0, inf)")
    return coeff * jnp.square(jax.nn.logsumexp(at_least_float32(logits), axis=-1))
