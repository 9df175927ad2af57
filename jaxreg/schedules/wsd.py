"""Warmup, stable, decay: learning rates that need no budget in advance.

In a river valley the loss falls slowly along the river and steeply down to it. A large learning rate travels far along
the river while noise bounces it between the hillsides; a short decay lets it sink to the river and shows the progress
made (:func:`jaxreg.metrics.river_valley_loss`). So WSD keeps the learning rate constant on a main branch, and decays a
copy of the weights for every budget. WSD-S has one branch: after a decay it goes on, at the full learning rate, from
the decayed weights. Cyclic cosine is what both are compared with.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

from jaxreg.typing import ScalarLike, checked
from jaxreg.validation import check_range

_SHAPES = {
    "inverse": lambda x, low: low / (x + low * (1 - x)),
    "linear": lambda x, low: (1 - x) + low * x,
    "sqrt": lambda x, low: (1 - jnp.sqrt(x)) + low * jnp.sqrt(x),
}


@checked
def wsd(
    peak: ScalarLike,
    *,
    total_steps: int,
    warmup_steps: ScalarLike,
    decay_fraction: ScalarLike = 0.1,
    min_ratio: ScalarLike = 0.1,
    decay: Literal["inverse", "linear", "sqrt"] = "inverse",
) -> optax.Schedule:
    r"""WSD: the learning rate rises, stays, and decays at the end. It is :func:`wsd_s` with a single checkpoint.

    Schedules with the same warmup agree until the first of them decays. So the runs for several budgets share one main
    branch: keep its weights from the step where each decay begins.

    >>> from jaxreg.schedules import wsd
    >>> schedule = wsd(1.0, total_steps=40, warmup_steps=2, decay_fraction=0.1)
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 35, 36, 37, 38, 39)]
    [0.5, 1.0, 1.0, 0.308, 0.182, 0.129, 0.1]

    Args:
        peak: learning rate between warmup and decay.
        total_steps: ``T >= 1``, the budget, warmup and decay included.
        warmup_steps: see :func:`wsd_s`, as are the other arguments.
        decay_fraction: part of the steps that decay.
        min_ratio: the last learning rate over ``peak``.
        decay: shape of the decay.

    Returns:
        The learning rate as a function of the step.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Hu et al., *MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies*,
        arXiv 2404.06395; the decay is that of Wen et al., *Understanding Warmup-Stable-Decay Learning Rates: A River
        Valley Loss Landscape Perspective*, arXiv 2410.05192.
    """
    check_range("total_steps", total_steps, "[1, inf)")
    return wsd_s(
        peak,
        checkpoints=(total_steps,),
        warmup_steps=warmup_steps,
        decay_fraction=decay_fraction,
        min_ratio=min_ratio,
        decay=decay,
    )


@checked
def wsd_s(
    peak: ScalarLike,
    *,
    checkpoints: Sequence[int],
    warmup_steps: ScalarLike,
    decay_fraction: ScalarLike = 0.1,
    min_ratio: ScalarLike = 0.1,
    decay: Literal["inverse", "linear", "sqrt"] = "inverse",
) -> optax.Schedule:
    r"""WSD-S: one run that decays before every checkpoint and then goes on at the full learning rate.

    On step :math:`t = 0, 1, \dots`, with checkpoints :math:`T_0 = 0 < T_1 < \dots` and
    :math:`n_j = \operatorname{round}(f\,(T_j - T_{j-1}))` steps of decay before the :math:`j`-th:

    .. math::
        \eta_t = \begin{cases}
            \eta\,(t + 1) / W & t < W \\
            1 \big/ \bigl(x / (r \eta) + (1 - x) / \eta\bigr), \quad x = (t - (T_j - n_j) + 1) / n_j
                & T_j - n_j \le t < T_j \\
            \eta & \text{otherwise}
        \end{cases}

    Step :math:`T_j - 1` runs at :math:`r \eta`, so the weights after :math:`T_j` steps are a finished model; step
    :math:`T_j` runs at :math:`\eta` again, without another warmup. From the last checkpoint on it is :math:`r \eta`.
    The moments of the optimizer persist.

    Args:
        peak: ``eta >= 0``, learning rate between warmup and decay.
        checkpoints: ``T_j``, steps taken when a model is wanted, increasing; the paper's double.
        warmup_steps: ``W`` in ``[0, T_1 - n_1]``: linear, and already positive on step 0.
        decay_fraction: ``f`` in [0, 1], the part of each period that decays (paper: 0.1).
        min_ratio: ``r`` in (0, 1], the learning rate at a checkpoint over ``peak`` (paper: 0.1). 0 is possible with
            a linear or square-root decay only.
        decay: ``inverse`` interpolates the inverse of the learning rate linearly in ``x``, as in the equation and the
            paper; ``linear`` the learning rate itself, and ``sqrt`` the learning rate in ``sqrt(x)``.

    Returns:
        The learning rate as a function of the step, which may be traced.

    Raises:
        ValueError: an argument is outside its range, or the checkpoints do not increase.

    References:
        Wen et al., *Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective*,
        ICLR 2025, arXiv 2410.05192.
    """
    check_range("peak", peak, "[0, inf)")
    check_range("decay_fraction", decay_fraction, "[0, 1]")
    check_range("min_ratio", min_ratio, "(0, 1]" if decay == "inverse" else "[0, 1]")
    _check_checkpoints(checkpoints)
    lengths = np.diff([0, *checkpoints])
    # NumPy counts the steps of long periods exactly; a traced fraction takes JAX's float32.
    known = isinstance(decay_fraction, numbers.Real)
    decays = np.round(decay_fraction * lengths).astype(np.int32) if known else jnp.round(decay_fraction * lengths)
    check_range("warmup_steps", warmup_steps, f"[0, {checkpoints[0] - (decays[0] if known else 0)}]")

    def factor(step):
        period, within = _locate(step, checkpoints)
        n = jnp.asarray(decays, jnp.int32)[period]
        since = step - (jnp.asarray(checkpoints)[period] - n) + 1
        x = jnp.where(within, jnp.clip(since / jnp.maximum(n, 1), 0.0, 1.0), 1.0)
        return _SHAPES[decay](x, min_ratio)

    return _after_warmup(factor, peak, warmup_steps)


@checked
def cyclic_cosine(
    peak: ScalarLike, *, checkpoints: Sequence[int], warmup_steps: ScalarLike, min_ratio: ScalarLike = 0.1
) -> optax.Schedule:
    r"""Cosine decay to every checkpoint, starting anew at the peak. With one checkpoint, the usual cosine schedule.

    On step :math:`t` of the period from :math:`T_{j-1}` to :math:`T_j`, the first of which begins after the :math:`W`
    steps of warmup:

    .. math::
        \eta_t = \eta \Bigl(r + (1 - r)\,\tfrac12 \bigl(1 + \cos(\pi x)\bigr)\Bigr),
        \qquad x = \frac{t - T_{j-1}}{T_j - T_{j-1}}

    Args:
        peak: ``eta >= 0``, learning rate at the start of a period.
        checkpoints: ``T_j``, steps taken when a period ends, increasing.
        warmup_steps: ``W`` in ``[0, T_1)``: linear, and already positive on step 0; the first period only.
        min_ratio: ``r`` in [0, 1], the learning rate that a period falls to, over ``peak`` (paper: 0.1), and the one
            from the last checkpoint on.

    Returns:
        The learning rate as a function of the step, which may be traced.

    Raises:
        ValueError: an argument is outside its range, or the checkpoints do not increase.

    References:
        Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, ICLR 2017; the baseline of Wen
        et al., arXiv 2410.05192.
    """
    check_range("peak", peak, "[0, inf)")
    check_range("min_ratio", min_ratio, "[0, 1]")
    _check_checkpoints(checkpoints)
    check_range("warmup_steps", warmup_steps, f"[0, {checkpoints[0] - 1}]")

    def factor(step):
        period, within = _locate(step, checkpoints)
        start = jnp.asarray([warmup_steps, *checkpoints[:-1]])[period]
        x = jnp.where(within, (step - start) / (jnp.asarray(checkpoints)[period] - start), 1.0)
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + jnp.cos(math.pi * x))

    return _after_warmup(factor, peak, warmup_steps)


def _check_checkpoints(checkpoints):
    if len(checkpoints) == 0 or min(np.diff([0, *checkpoints])) <= 0:
        raise ValueError(f"checkpoints must be increasing positive step counts, got {tuple(checkpoints)}")


def _locate(step, checkpoints):
    """The index of the period that a step belongs to, and whether it belongs to any."""
    passed = jnp.sum(step[..., None] >= jnp.asarray(checkpoints), axis=-1)
    return jnp.minimum(passed, len(checkpoints) - 1), passed < len(checkpoints)


def _after_warmup(factor, peak, warmup_steps):
    def schedule(step):
        step = jnp.asarray(step)
        rise = (step + 1) / jnp.maximum(warmup_steps, 1)
        return peak * jnp.where(step < warmup_steps, rise, factor(step))

    return schedule
