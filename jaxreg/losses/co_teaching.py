"""Co-teaching: two networks that choose each other's examples.

Examples with wrong labels have large losses until they are memorized. A network that leaves out its own large losses
believes its own mistakes; so each of two networks trains on the examples whose losses are small for the *other*::

    losses_a, losses_b = (cross_entropy(apply(params, x), labels) for params in (params_a, params_b))
    forget_rate = forget_schedule(step, rate=noise_rate, ramp=10 * steps_per_epoch)
    mask_a, mask_b = co_teaching_mask(losses_a, losses_b, forget_rate=forget_rate)
    loss = (mask_a * losses_a).sum() / mask_a.sum() + (mask_b * losses_b).sum() / mask_b.sum()
"""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def co_teaching_mask(
    loss_a: Float[Array, "batch"], loss_b: Float[Array, "batch"], *, forget_rate: ScalarLike
) -> tuple[Bool[Array, "batch"], Bool[Array, "batch"]]:
    r"""Which examples each network trains on: those with the smallest losses of the other.

    .. math:: \lfloor (1 - R)\, B \rfloor \text{ of the } B \text{ examples of the batch}

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import co_teaching_mask
    >>> mask_a, mask_b = co_teaching_mask(jnp.array([1.0, 2.0, 3.0]), jnp.array([3.0, 2.0, 1.0]), forget_rate=0.5)
    >>> mask_a.tolist(), mask_b.tolist()
    ([False, False, True], [True, False, False])

    Args:
        loss_a: of the first network for every example.
        loss_b: of the second. Of equal losses the earlier example's counts as smaller; NaN is largest.
        forget_rate: ``R`` in [0, 1), share left out, about that of wrong labels: :func:`forget_schedule`.

    Returns:
        For the first network the choice of the second, and the reverse.

    Raises:
        ValueError: ``forget_rate`` is outside [0, 1).

    References:
        Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, NeurIPS 2018,
        arXiv 1804.06872.
    """
    check_range("forget_rate", forget_rate, "[0, 1)")
    # Without the tiny share 0.8 of 10 examples could be 7.
    kept = jnp.floor((1 - forget_rate) * len(loss_a) + 1e-3)
    choice_a, choice_b = (jnp.argsort(jnp.argsort(loss)) < kept for loss in (loss_a, loss_b))
    return choice_b, choice_a


@checked
def forget_schedule(step: ScalarLike, *, rate: ScalarLike, ramp: ScalarLike) -> Float[Array, ""]:
    r"""How many examples co-teaching leaves out: none at first, when all losses are large.

    .. math:: R(t) = \tau \min(t / T, 1)

    Args:
        step: ``t``, steps or epochs taken.
        rate: ``tau`` in [0, 1), the last value: the share of wrong labels, known or estimated.
        ramp: ``T >= 0``, steps or epochs until then (paper: 10 epochs); 0 means from the start.

    Returns:
        The share to leave out.

    Raises:
        ValueError: ``rate`` or ``ramp`` is outside its range.

    References:
        Han et al., *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, NeurIPS 2018,
        arXiv 1804.06872.
    """
    check_range("rate", rate, "[0, 1)")
    check_range("ramp", ramp, "[0, inf)")
    t, total = at_least_float32(jnp.asarray(step)), at_least_float32(jnp.asarray(ramp))
    return rate * jnp.where(total > 0, jnp.clip(t / jnp.where(total > 0, total, 1.0), 0.0, 1.0), 1.0)
