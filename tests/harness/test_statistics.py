import numpy as np
import pytest
import scipy.stats

from experiments.harness.claim import Criterion
from experiments.harness.statistics import Effect, bounded, conjunction, count_diverged, judge, paired_effect, summary

superiority = Criterion("loss", "lower", worst=9.0, min_effect=0.05)
non_inferiority = Criterion("loss", "lower", worst=9.0, margin=0.05)


@pytest.mark.parametrize(
    ("effect", "low", "high", "verdict"),
    [
        (0.06, 0.01, 0.10, "holds"),
        (0.05, 0.01, 0.10, "holds"),
        (0.04, 0.01, 0.10, "inconclusive"),  # too small, yet 5% is not excluded
        (0.06, -0.01, 0.10, "inconclusive"),  # zero is not excluded
        (0.03, 0.01, 0.04, "fails"),  # better, but by less than claimed
        (-0.1, -0.2, -0.01, "fails"),
    ],
)
def test_superiority(effect, low, high, verdict):
    assert judge(Effect(effect, low, high, 0.5), superiority) == verdict


@pytest.mark.parametrize(
    ("effect", "low", "high", "verdict"),
    [
        (0.0, -0.04, 0.03, "holds"),
        (0.0, -0.06, 0.06, "inconclusive"),
        (-0.1, -0.2, -0.06, "fails"),
        (-0.06, -0.2, -0.04, "inconclusive"),
    ],
)
def test_non_inferiority(effect, low, high, verdict):
    assert judge(Effect(effect, low, high, 0.5), non_inferiority) == verdict


def test_all_criteria_must_hold():
    assert conjunction(["holds", "holds"]) == "holds"
    assert conjunction(["holds", "inconclusive"]) == "inconclusive"
    assert conjunction(["inconclusive", "fails"]) == "fails"


def test_diverged_runs_score_worst():
    scores = np.array([1.0, np.nan, np.inf, 50.0, -np.inf])
    np.testing.assert_array_equal(bounded(scores, "lower", 9.0), [1, 9, 9, 9, 9])
    assert count_diverged(scores) == 3
    np.testing.assert_array_equal(bounded(np.array([0.5, np.nan, 0.05]), "higher", 0.1), [0.5, 0.1, 0.1])


def test_a_constant_gain_is_the_effect_and_has_no_width():
    baseline = np.full(8, 2.0)
    relative = paired_effect(baseline * 0.9, baseline, superiority)
    np.testing.assert_allclose([relative.effect, relative.low, relative.high], 0.1, rtol=1e-5)
    assert relative.probability_of_improvement == 1.0
    absolute = Criterion("accuracy", "higher", worst=0.0, min_effect=0.05, relative=False)
    gain = paired_effect(baseline + 0.25, baseline, absolute)
    np.testing.assert_allclose([gain.effect, gain.low, gain.high], 0.25, rtol=1e-6)


def test_pairing_removes_what_the_seeds_share():
    difficulty = np.linspace(1, 100, 16)
    effect = paired_effect(difficulty - 1, difficulty, Criterion("loss", "lower", 999, min_effect=0, relative=False))
    np.testing.assert_allclose([effect.effect, effect.low, effect.high], 1.0, rtol=1e-5)


def test_the_interval_is_that_of_an_independent_bootstrap():
    rng = np.random.default_rng(0)
    baseline = rng.normal(10, 1, 16)
    method = baseline - rng.normal(0.5, 0.5, 16)

    def statistic(m, b, axis):
        return 1 - scipy.stats.trim_mean(m, 0.25, axis) / scipy.stats.trim_mean(b, 0.25, axis)

    ours = paired_effect(method, baseline, superiority)
    scipys = scipy.stats.bootstrap((method, baseline), statistic, paired=True, n_resamples=20_000, method="percentile")
    np.testing.assert_allclose(ours.effect, statistic(method, baseline, 0), rtol=1e-5)
    np.testing.assert_allclose([ours.low, ours.high], scipys.confidence_interval, rtol=0.05)


def test_summary_is_the_trimmed_mean():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 80.0])
    score, low, high = summary(scores)
    assert score == scipy.stats.trim_mean(scores, 0.25) == 4.5
    assert low < score < high
