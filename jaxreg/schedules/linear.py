"""Linear growth of a loss's hyperparameter over the epochs."""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def pskd_alpha(epoch: ScalarLike, *, total: ScalarLike, final: ScalarLike = 0.8) -> Float[Array, ""]:
    r"""How much PS-KD trusts the network's past predictions: a share that grows with the epochs.

    .. math:: \alpha_e = \alpha_T \, \frac{e + 1}{E}

    >>> from jaxreg.schedules import pskd_alpha
    >>> [round(float(pskd_alpha(epoch, total=4)), 2) for epoch in range(4)]
    [0.2, 0.4, 0.6, 0.8]

    Args:
        epoch: ``e``, counted from 0; after the last one the share stays.
        total: ``E >= 1``, number of epochs.
        final: ``alpha_T`` in [0, 1), share in the last epoch (paper: 0.8, the best of 0.5 to 0.9).

    Returns:
        The share, for :func:`jaxreg.losses.pskd`.

    Raises:
        ValueError: ``total`` or ``final`` is outside its range.

    References:
        Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, ICCV 2021, arXiv 2006.12000.
    """
    check_range("total", total, "[1, inf)")
    check_range("final", final, "[0, 1)")
    epochs = at_least_float32(jnp.asarray(epoch)) + 1
    return final * jnp.minimum(epochs / total, 1.0)
