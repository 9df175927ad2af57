r"""Scores of a few runs on a few tasks, aggregated so that another few runs would tell the same story.

With three to ten runs a task, point estimates alone mislead. Report an aggregate together with its bootstrap interval:

- :func:`iqm`, the default: nearly as robust as a median, nearly as efficient as a mean;
- :func:`mean` where outliers are the point: one task may dominate it;
- :func:`median` for comparison with older papers: it ignores almost half of the tasks and is noisy for few runs;
- :func:`optimality_gap` where exceeding a target is worth nothing, and failing far from it is worse than just missing;
- :func:`probability_of_improvement` for "does X beat Y", however little it wins by;
- :func:`performance_profile` to see the whole distribution: curves that do not cross settle a comparison;
- :func:`stratified_bootstrap` and :func:`interval` for the uncertainty of any of these, or of your own statistic.

Scores are arrays ``[runs, tasks]``, larger is better, normalized so that tasks are comparable. A NaN among them makes
the result NaN: a diverged run should be given the worst score there is, not vanish. (In a profile, which counts, it is
above no threshold.)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, Shaped, checked
from jaxreg.validation import check_range

# Resampled scores held at a time: bounds memory at many repetitions, and more at once is not faster.
_CHUNK = 2**18


@checked
def iqm(scores: Float[Array, "runs tasks"]) -> Float[Array, ""]:
    r"""Interquartile mean: the mean of the middle half of all runs on all tasks.

    .. math:: \frac{1}{n - 2k} \sum_{i=k+1}^{n-k} s_{(i)}, \qquad n = RT, \quad k = \lfloor n / 4 \rfloor

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import iqm
    >>> float(iqm(jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 500.0]])))
    2.5

    Args:
        scores: ``s``, of ``R`` runs on each of ``T`` tasks.

    Returns:
        The 25% trimmed mean.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    ordered = jnp.sort(at_least_float32(scores).reshape(-1))
    cut = ordered.size // 4
    # NaN sorts last, where trimming would discard it like an excellent score.
    return unless_nan(jnp.mean(ordered[cut : ordered.size - cut]), ordered[-1])


@checked
def median(scores: Float[Array, "runs tasks"]) -> Float[Array, ""]:
    r"""Median over tasks of the mean score of each task.

    .. math:: \operatorname{median}_t \; \tfrac1R \sum_r s_{rt}

    Args:
        scores: ``s``, of ``R`` runs on each of ``T`` tasks.

    Returns:
        The median; the mean of the middle two for an even number of tasks.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    return jnp.median(jnp.mean(at_least_float32(scores), axis=0))


@checked
def mean(scores: Float[Array, "runs tasks"]) -> Float[Array, ""]:
    r"""Mean over tasks of the mean score of each task.

    .. math:: \tfrac{1}{RT} \sum_{rt} s_{rt}

    Args:
        scores: ``s``, of ``R`` runs on each of ``T`` tasks.

    Returns:
        The mean.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    return jnp.mean(at_least_float32(scores))


@checked
def optimality_gap(scores: Float[Array, "runs tasks"], *, gamma: ScalarLike = 1.0) -> Float[Array, ""]:
    r"""How far the runs fall short of a target on average; lower is better.

    .. math:: \gamma - \tfrac{1}{RT} \sum_{rt} \min(s_{rt}, \gamma)

    Args:
        scores: ``s``, of ``R`` runs on each of ``T`` tasks.
        gamma: the target, finite; what exceeds it is not rewarded (paper: 1, the human score).

    Returns:
        The gap, at least 0.

    Raises:
        ValueError: ``gamma`` is not finite.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    check_range("gamma", gamma, "(-inf, inf)")
    return jnp.mean(jnp.maximum(gamma - at_least_float32(scores), 0.0))


@checked
def probability_of_improvement(x: Float[Array, "runs_x tasks"], y: Float[Array, "runs_y tasks"]) -> Float[Array, ""]:
    r"""Probability that a run of X beats a run of Y on the same task, averaged over tasks.

    .. math:: \tfrac1T \sum_t \bigl( P(x_t > y_t) + \tfrac12 P(x_t = y_t) \bigr)

    over all pairs of runs: on each task the Mann-Whitney U statistic divided by ``runs_x * runs_y``.

    Args:
        x: scores of algorithm X.
        y: scores of algorithm Y on the same tasks.

    Returns:
        The probability; one half if the algorithms are alike.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    x, y = x[:, None], y[None]
    wins = at_least_float32(x > y) + 0.5 * (x == y)
    return jnp.mean(unless_nan(wins, x, y))


@checked
def performance_profile(
    scores: Float[Array, "runs tasks"], taus: Float[Array, " thresholds"], *, average: bool = False
) -> Float[Array, " thresholds"]:
    r"""Share of the runs, or of the tasks, that score above each threshold.

    .. math::
        F(\tau) = \tfrac{1}{RT} \sum_{rt} [s_{rt} > \tau] \qquad\text{or}\qquad
        \bar F(\tau) = \tfrac1T \sum_t \bigl[ \tfrac1R \textstyle\sum_r s_{rt} > \tau \bigr]

    The area under ``F`` from 0 is the mean of non-negative scores. Prefer ``F`` to the profile of averages, which hides
    the variation between runs and is biased for few of them. Point-wise bands: this function as the statistic of
    :func:`stratified_bootstrap`.

    Args:
        scores: ``s``, of ``R`` runs on each of ``T`` tasks.
        taus: thresholds ``tau``.
        average: whether the mean score of each task is compared, not every run.

    Returns:
        The share above each threshold, not increasing in ``tau``; NaN if a score is.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    scores = jnp.mean(at_least_float32(scores), axis=0) if average else at_least_float32(scores)
    scores = scores.reshape(-1, 1)
    return jnp.mean(unless_nan(scores > taus, scores), axis=0)


@checked
def stratified_bootstrap(
    key: PRNGKeyArray,
    scores: PyTree[Shaped[Array, "?runs tasks *?paired"], "S"],
    fn: Callable[..., Any],
    *,
    reps: int = 2000,
    task_bootstrap: bool = False,
) -> PyTree[Shaped[Array, "{reps} ..."]]:
    r"""A statistic recomputed on resampled runs: how it would vary, had the same number of other runs been made.

    Each repetition draws, independently for every task ``t``, ``R`` runs with replacement,

    .. math:: s^*_{rt} = s_{i_{rt} t}, \qquad i_{rt} \sim \operatorname{Uniform}\{1, \dots, R\},

    and applies ``fn``. Tasks are kept, since benchmarks are not random samples of tasks; with ``task_bootstrap`` they
    are resampled too, which asks what would happen on other tasks like these.

    >>> import jax
    >>> from jaxreg.metrics import interval, iqm, stratified_bootstrap
    >>> scores = jax.random.normal(jax.random.key(0), (10, 26))
    >>> low, high = interval(stratified_bootstrap(jax.random.key(1), scores, iqm))
    >>> bool(low < iqm(scores) < high)
    True

    Args:
        key: random key.
        scores: one array, or a pytree of arrays for several algorithms on the same tasks. Runs, of which each array
            may have its own number, are resampled independently for every array. Axes after ``[runs, tasks]`` stay
            together: put arms that share a seed there, and differences between them keep what they have in common.
        fn: the statistic, traceable by JAX: from resampled ``scores`` to any pytree of arrays. It is compiled once for
            each function object, so pass a named function rather than a fresh ``lambda`` where speed matters.
        reps: repetitions, at least 1 (paper: 50000 for intervals, 2000 for profiles).
        task_bootstrap: whether tasks are resampled, the same ones for all arrays.

    Returns:
        What ``fn`` returns, with a leading axis of repetitions.

    Raises:
        ValueError: ``reps`` is below 1.

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    check_range("reps", reps, "[1, inf)")
    return _bootstrap(key, scores, fn, reps, task_bootstrap)


class Interval(NamedTuple):
    """Ends of a confidence interval.

    Attributes:
        low: lower end.
        high: upper end.
    """

    low: Float[Array, "*shape"]
    high: Float[Array, "*shape"]


@checked
def interval(samples: Float[Array, "reps *shape"], *, level: ScalarLike = 0.95) -> Interval:
    r"""Percentile interval of bootstrap samples: their quantiles at ``(1 - level) / 2`` and ``(1 + level) / 2``.

    For a profile these are point-wise bands: each threshold is covered with probability ``level``, the whole curve with
    less.

    Args:
        samples: repetitions of a statistic, such as from :func:`stratified_bootstrap`.
        level: coverage, in (0, 1) (paper: 0.95).

    Returns:
        The ends ``(low, high)``, each of the statistic's shape, interpolated linearly between samples.

    Raises:
        ValueError: ``level`` is outside (0, 1).

    References:
        Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021,
        arXiv 2108.13264.
    """
    check_range("level", level, "(0, 1)")
    ordered = jnp.sort(at_least_float32(samples), axis=0)
    last = ordered.shape[0] - 1
    position = (1.0 - level) / 2.0 * last
    inner = jnp.floor(position).astype(int)

    # Not jnp.quantile, whose weighted sum of equal neighbours can differ from them by rounding, or be NaN if infinite.
    def between(start, end):
        step = jnp.where(start == end, 0.0, end - start)
        return unless_nan(start + (position - inner) * step, ordered[-1])

    outer = jnp.minimum(inner + 1, last)
    return Interval(between(ordered[inner], ordered[outer]), between(ordered[last - inner], ordered[last - outer]))


@partial(jax.jit, static_argnames=("fn", "reps", "task_bootstrap"))
def _bootstrap(key, scores, fn, reps, task_bootstrap):
    leaves, structure = jax.tree.flatten(scores)
    number_of_tasks = leaves[0].shape[1]

    def repetition(number):
        key_tasks, *keys = jax.random.split(jax.random.fold_in(key, number), 1 + len(leaves))
        tasks = jnp.arange(number_of_tasks)
        if task_bootstrap:
            tasks = jax.random.randint(key_tasks, tasks.shape, 0, number_of_tasks)

        def resample(key, leaf):
            runs = jax.random.randint(key, leaf.shape[:2], 0, leaf.shape[0])
            return leaf[runs, tasks]

        return fn(structure.unflatten([resample(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]))

    # Chunks of equal size, the last one cut off afterwards: a smaller one would be compiled separately.
    chunks = min(reps, math.ceil(reps * sum(leaf.size for leaf in leaves) / _CHUNK)) or 1
    chunk = math.ceil(reps / chunks)
    samples = jax.lax.map(repetition, jnp.arange(chunks * chunk), batch_size=chunk)
    return jax.tree.map(lambda sample: sample[:reps], samples)
