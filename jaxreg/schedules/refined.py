"""Schedules from observed gradient norms.

Theory for the *last* iterate turns weights of the gradients into learning rates (:func:`last_iterate_schedule`). The
best weights are the inverse squared gradient norms: if they are as bad as they may be all the time, that is linear
decay to zero; if a first run shows how they change, it is a schedule with its own warmup and annealing::

    norms = ...                                    # of the batch gradients of a run with linear_decay, one a step
    schedule = as_schedule(refine_schedule(norms), peak)
    optimizer = optax.sgd(schedule)                # with the peak tuned anew
"""

import jax
import jax.numpy as jnp
import optax

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def linear_decay(peak: ScalarLike, *, total_steps: int, warmup_steps: ScalarLike = 0) -> optax.Schedule:
    r"""Linear decay to zero, the best schedule for the last iterate when nothing is known of the gradient norms.

    .. math:: \eta_t = \eta\,(t + 1) / W \quad (t < W), \qquad \eta_t = \eta\,\frac{T - t}{T - W} \quad (t \ge W)

    Args:
        peak: ``eta >= 0``, the largest learning rate.
        total_steps: ``T >= 1``; from step ``T`` on the learning rate is 0.
        warmup_steps: ``W`` in ``[0, T)``.

    Returns:
        The learning rate as a function of the step, which may be traced.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Defazio et al., *When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement*, arXiv 2310.07831.
    """
    check_range("peak", peak, "[0, inf)")
    check_range("total_steps", total_steps, "[1, inf)")
    check_range("warmup_steps", warmup_steps, f"[0, {total_steps - 1}]")

    def schedule(step):
        step = jnp.asarray(step)
        rise = (step + 1) / jnp.maximum(warmup_steps, 1)
        fall = jnp.maximum(total_steps - step, 0) / (total_steps - warmup_steps)
        return peak * jnp.where(step < warmup_steps, rise, fall)

    return schedule


@checked
def last_iterate_schedule(weights: Float[Array, " steps"]) -> Float[Array, " steps"]:
    r"""Learning rates with which the last iterate is as good as a weighted average of iterates.

    .. math:: \eta_t = w_t \; \frac{\sum_{p > t} w_p}{\sum_p w_p}

    For convex losses, (sub)gradients :math:`g_t` and a minimum at distance :math:`D` from the start, the last iterate
    exceeds the minimum on average by at most :math:`(D^2 + \sum_t w_t^2 \|g_t\|^2) / (2 \sum_t w_t)`; with the best
    scale of the weights that is :func:`weight_bound`. Equal weights give linear decay.

    Args:
        weights: ``w_t > 0``, one a step.

    Returns:
        The learning rates, at least float32; the last one is 0.

    References:
        Defazio et al., *When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement*, arXiv 2310.07831,
        theorem 1.
    """
    weights = at_least_float32(weights)
    from_here = jnp.cumsum(weights[::-1])[::-1]
    after = jnp.append(from_here[1:], 0.0)
    return weights * after / from_here[0]


@checked
def weight_bound(
    weights: Float[Array, " steps"], grad_norms: Float[Array, " steps"], *, distance: ScalarLike = 1.0
) -> Float[Array, ""]:
    r"""How far from the minimum the last iterate may be, for the best scale of the weights.

    .. math:: D \; \frac{\sqrt{\sum_t w_t^2 G_t^2}}{\sum_t w_t}

    It is smallest, :math:`D / \sqrt{\sum_t G_t^{-2}}`, for :math:`w_t \propto G_t^{-2}`: the weights of
    :func:`refine_schedule`.

    Args:
        weights: ``w_t > 0`` of :func:`last_iterate_schedule`.
        grad_norms: ``G_t``, norms of the gradients.
        distance: ``D >= 0``, from the start to the minimum.

    Returns:
        The bound on the excess loss.

    Raises:
        ValueError: ``distance`` is negative.

    References:
        Defazio et al., *When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement*, arXiv 2310.07831.
    """
    check_range("distance", distance, "[0, inf)")
    weights, grad_norms = at_least_float32(weights), at_least_float32(grad_norms)
    return distance * jnp.sqrt(jnp.sum(jnp.square(weights * grad_norms))) / jnp.sum(weights)


@checked
def refine_schedule(
    grad_norms: Float[Array, " steps"], *, smoothing: float | int = 0.1, power: ScalarLike = 2.0
) -> Float[Array, " steps"]:
    r"""The schedule that would have been best for the gradient norms of a run.

    The norms :math:`G_t` are replaced by the median of their neighbours, in a window of :math:`2 \lfloor \tau T / 2
    \rfloor + 1` steps. Then, with the weights :math:`w_t = G_t^{-p}`,

    .. math:: \eta_t \propto w_t \sum_{t' > t} w_{t'}, \qquad \max_t \eta_t = 1

    >>> import jax.numpy as jnp
    >>> from jaxreg.schedules import refine_schedule
    >>> [round(float(rate), 2) for rate in refine_schedule(jnp.array([4.0, 2.0, 1.0, 1.0, 1.0]), smoothing=0.0)]
    [0.1, 0.38, 1.0, 0.5, 0.0]

    Args:
        grad_norms: norms of the batch gradients, one a step: Euclidean for SGD, sums of absolute values for Adam.
            Below 1e-12 they count as 1e-12.
        smoothing: ``tau`` in [0, 1], width of the window as a part of the run (paper: 0.1). The window sees the first
            norm again before the start, and the run mirrored after its end.
        power: ``p >= 0``: 2 for SGD, 1 for Adam.

    Returns:
        Learning rates in [0, 1], to be multiplied by a peak (:func:`as_schedule`); the last one is 0.

    Raises:
        ValueError: an argument is outside its range, or there are fewer than two norms.

    References:
        Defazio et al., *When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement*, arXiv 2310.07831,
        algorithm 1.
    """
    check_range("smoothing", smoothing, "[0, 1]")
    check_range("power", power, "[0, inf)")
    steps = len(grad_norms)
    check_range("number of grad_norms", steps, "[2, inf)")
    norms = jnp.maximum(at_least_float32(grad_norms), 1e-12)
    half = int(smoothing * steps) // 2
    mirrored = norms[::-1][1 : half + 1]
    mirrored = jnp.append(mirrored, jnp.repeat(norms[:1], half - len(mirrored)))
    smooth = _running_median(jnp.concatenate([jnp.repeat(norms[:1], half), norms, mirrored]), 2 * half + 1)
    # In logarithms: next to the largest of the weights all others may be too small for a float.
    weights = power * (jnp.log(jnp.min(smooth)) - jnp.log(smooth))
    from_here = jax.lax.cumlogsumexp(weights, reverse=True)
    rates = weights[:-1] + from_here[1:]
    return jnp.append(jnp.exp(rates - jnp.max(rates)), 0.0)


@checked
def as_schedule(values: Float[Array, " steps"], peak: ScalarLike) -> optax.Schedule:
    """A schedule that reads the learning rates of a whole run from an array.

    Args:
        values: one number a step, such as those of :func:`refine_schedule`.
        peak: they are multiplied by it; at least 0.

    Returns:
        The learning rate as a function of the step, which may be traced. After the end it stays at the last value.

    Raises:
        ValueError: ``peak`` is negative.
    """
    check_range("peak", peak, "[0, inf)")
    values = jnp.asarray(values)

    def schedule(step):
        position = jnp.clip(jnp.asarray(step), 0, len(values) - 1).astype(jnp.int32)
        return peak * values[position]

    return schedule


def _running_median(values, width):
    """Medians of all windows of an odd width, in O(n log n): a radix search in all windows at once.

    It decides the bits of the median's rank from the highest down. Before each bit the ranks are stably sorted by the
    bits already seen, so that what is left of a window stays together, as ``[start, stop)``.
    """
    order = jnp.argsort(values)
    ranks = jnp.argsort(order)
    start = jnp.arange(len(values) - width + 1)
    stop = start + width
    wanted = jnp.full_like(start, width // 2)
    rank = jnp.zeros_like(start)
    for bit in reversed(range(max(len(values) - 1, 1).bit_length())):
        ones = (ranks >> bit) & 1
        zeros_before = jnp.append(0, jnp.cumsum(1 - ones))
        first, last = zeros_before[start], zeros_before[stop]
        high = wanted >= last - first
        start = jnp.where(high, zeros_before[-1] + start - first, first)
        stop = jnp.where(high, zeros_before[-1] + stop - last, last)
        wanted = jnp.where(high, wanted - (last - first), wanted)
        rank = jnp.where(high, rank | (1 << bit), rank)
        ranks = ranks[jnp.argsort(ones, stable=True)]
    return values[order[rank]]
