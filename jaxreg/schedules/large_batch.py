"""What changes in a training regime with the size of the batch.

With a larger batch the gradient is less noisy, and an epoch has fewer updates. To travel as far from the start as with
small batches, take a learning rate larger by the square root of the ratio, and as many updates::

    rate = sqrt_scaled_lr(0.1, batch=4096)
    boundaries = adapted_regime((80, 120, 160), batch=4096)  # in epochs, the last one the end
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def sqrt_scaled_lr(lr: ScalarLike, batch: ScalarLike, *, base_batch: ScalarLike = 128) -> Float[Array, ""]:
    r"""The learning rate for another size of batch, by which the noise of an update stays as large.

    .. math:: \eta \sqrt{B / B_0}

    The covariance of an update is :math:`\eta^2 / B` times that of an example's gradient.

    >>> from jaxreg.schedules import sqrt_scaled_lr
    >>> round(float(sqrt_scaled_lr(0.1, 2048)), 4)
    0.4

    Args:
        lr: ``eta >= 0``, the learning rate for ``base_batch``.
        batch: ``B > 0``, examples in a batch.
        base_batch: ``B_0 > 0`` (paper: 128).

    Returns:
        The learning rate.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Hoffer et al., *Train longer, generalize better: closing the generalization gap in large batch training of
        neural networks*, NeurIPS 2017, arXiv 1705.08741.
    """
    check_range("lr", lr, "[0, inf)")
    check_range("batch", batch, "(0, inf)")
    check_range("base_batch", base_batch, "(0, inf)")
    return jnp.asarray(lr) * jnp.sqrt(jnp.asarray(batch) / base_batch)


@checked
def adapted_regime(boundaries: Sequence[int], batch: int, *, base_batch: int = 128) -> tuple[int, ...]:
    r"""The epochs at which the learning rate changes, for another size of batch: after as many updates.

    .. math:: e \lceil B / B_0 \rceil

    >>> from jaxreg.schedules import adapted_regime
    >>> adapted_regime((80, 120, 160), batch=4096)
    (2560, 3840, 5120)

    Args:
        boundaries: ``e >= 0``, epochs with batches of ``base_batch``, the last epoch included.
        batch: ``B >= 1``, examples in a batch.
        base_batch: ``B_0 >= 1`` (paper: 128).

    Returns:
        The epochs with batches of ``batch``.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Hoffer et al., *Train longer, generalize better: closing the generalization gap in large batch training of
        neural networks*, NeurIPS 2017, arXiv 1705.08741.
    """
    for boundary in boundaries:
        check_range("boundaries", boundary, "[0, inf)")
    check_range("batch", batch, "[1, inf)")
    check_range("base_batch", base_batch, "[1, inf)")
    return tuple(boundary * math.ceil(batch / base_batch) for boundary in boundaries)
