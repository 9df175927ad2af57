"""From paired scores to an effect, an interval and a verdict."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.claim import Criterion, Direction
from jaxreg.metrics.reliable import interval, iqm, probability_of_improvement, stratified_bootstrap

Verdict = Literal["holds", "inconclusive", "fails"]
REPETITIONS = 20_000


@dataclass(frozen=True)
class Effect:
    """How much better the method is than a baseline; positive is better.

    Attributes:
        effect: the interquartile mean of the paired differences, or, if relative, 1 minus the ratio of the two arms'
            interquartile means (so that it can be read off the table of scores).
        low: lower end of its stratified bootstrap 95% interval.
        high: upper end.
        probability_of_improvement: chance that a run of the method beats a run of the baseline.
    """

    effect: float
    low: float
    high: float
    probability_of_improvement: float


def count_diverged(scores: np.ndarray) -> int:
    """Number of runs without a finite score."""
    return int(np.sum(~np.isfinite(scores)))


def bounded(scores: np.ndarray, better: Direction, worst: float) -> np.ndarray:
    """Scores in which a diverged run, and any that is worse still, counts as ``worst``."""
    scores = np.where(np.isfinite(scores), scores, worst)
    return np.minimum(scores, worst) if better == "lower" else np.maximum(scores, worst)


def summary(scores: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean over seeds and its bootstrap 95% interval."""
    runs = jnp.asarray(scores)[:, None]
    low, high = interval(stratified_bootstrap(jax.random.key(0), runs, iqm, reps=REPETITIONS))
    return float(iqm(runs)), float(low), float(high)


def paired_effect(method: np.ndarray, baseline: np.ndarray, criterion: Criterion) -> Effect:
    """The method's advantage over one baseline, seed by seed.

    Args:
        method: scores ``[seeds]``.
        baseline: scores of the same seeds.
        criterion: says which way is better and whether the effect is relative.
    """
    sign = -1.0 if criterion.better == "lower" else 1.0
    method, baseline = jnp.asarray(method)[:, None], jnp.asarray(baseline)[:, None]
    # One stratum, the seeds; the two arms of a seed stay together.
    pairs = jnp.stack([sign * method, sign * baseline], axis=-1)
    effect = _relative_gain if criterion.relative else _gain
    low, high = interval(stratified_bootstrap(jax.random.key(0), pairs, effect, reps=REPETITIONS))
    improvement = probability_of_improvement(pairs[..., 0], pairs[..., 1])
    return Effect(float(effect(pairs)), float(low), float(high), float(improvement))


def _gain(pairs):
    return iqm(pairs[..., 0] - pairs[..., 1])


def _relative_gain(pairs):
    method, baseline = iqm(pairs[..., 0]), iqm(pairs[..., 1])
    return (method - baseline) / jnp.abs(baseline)


def judge(effect: Effect, criterion: Criterion) -> Verdict:
    """The verdict of one criterion.

    Superiority holds if the interval excludes zero and the effect reaches ``min_effect``, and fails if the interval
    excludes ``min_effect``. Non-inferiority holds if the interval stays above ``-margin``, and fails if it stays below.
    """
    if criterion.margin is not None:
        if effect.low > -criterion.margin:
            return "holds"
        return "fails" if effect.high < -criterion.margin else "inconclusive"
    if effect.low > 0 and effect.effect >= criterion.min_effect:
        return "holds"
    return "fails" if effect.high < criterion.min_effect else "inconclusive"


def conjunction(verdicts: list[Verdict]) -> Verdict:
    """All must hold; one that fails refutes the claim."""
    if "fails" in verdicts:
        return "fails"
    return "inconclusive" if "inconclusive" in verdicts else "holds"
