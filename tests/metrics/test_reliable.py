"""Aggregates against SciPy and NumPy, the bootstrap against closed forms and the enumeration of all resamples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import TypeCheckError

from jaxreg.metrics import (
    interval,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

AGGREGATES = [iqm, median, mean, optimality_gap]


def long_tailed(runs, tasks, seed=0):
    return np.random.default_rng(seed).lognormal(sigma=1.5, size=(runs, tasks)).astype(np.float32)


def small_integers(*shape):
    return hnp.arrays(np.int64, shape, elements=st.integers(-3, 3)).map(lambda scores: scores.astype(np.float32))


def task_means(scores):
    return jnp.mean(scores, axis=0)


class TestAggregates:
    @pytest.mark.parametrize(("count", "expected"), [(10, 4.5), (9, 4.0), (3, 1.0), (1, 0.0)])
    def test_iqm_of_the_first_integers(self, count, expected):
        assert iqm(np.arange(count, dtype=np.float32)[None]) == expected
        assert iqm(np.arange(count, dtype=np.float32)[::-1, None]) == expected

    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (5, 5), (10, 26), (4, 2), (101, 3)])
    def test_iqm_is_the_trimmed_mean_over_runs_and_tasks(self, shape):
        scores = long_tailed(*shape)
        expected = scipy.stats.trim_mean(scores.astype(np.float64), 0.25, axis=None)
        np.testing.assert_allclose(iqm(scores), expected, rtol=1e-6)

    def test_median_and_mean_are_of_task_means(self):
        # Task means are 2, 11 and 6; the median of all scores would be 4.
        scores = np.array([[0.0, 1.0, 3.0], [4.0, 21.0, 9.0]], np.float32)
        assert median(scores) == 6.0
        assert median(scores[:, :2]) == 6.5
        np.testing.assert_allclose(mean(scores), 19 / 3, rtol=1e-6)

    def test_optimality_gap_by_hand(self):
        scores = np.array([[0.5, 2.0], [1.0, -1.0]], np.float32)
        assert optimality_gap(scores) == (0.5 + 0 + 0 + 2) / 4
        assert optimality_gap(scores, gamma=1.5) == (1.0 + 0 + 0.5 + 2.5) / 4
        assert optimality_gap(np.full((2, 2), np.inf, np.float32)) == 0.0

    def test_one_outlier_moves_the_mean_and_not_the_iqm(self):
        scores = long_tailed(5, 8)
        spoiled = scores.copy()
        spoiled[np.unravel_index(scores.argmax(), scores.shape)] = 1e30
        assert iqm(spoiled) == iqm(scores)
        assert mean(spoiled) > 1e28

    def test_a_million_scores_far_from_zero_keep_float32_precision(self):
        scores = (1000 + np.random.default_rng(0).uniform(size=(1000, 1000))).astype(np.float32)
        exact = scores.astype(np.float64)
        for fn in (mean, median):
            np.testing.assert_allclose(fn(scores), getattr(np, fn.__name__)(exact.mean(axis=0)), rtol=5e-7)
        np.testing.assert_allclose(iqm(scores), scipy.stats.trim_mean(exact, 0.25, axis=None), rtol=3e-7)

    @pytest.mark.parametrize("fn", AGGREGATES)
    def test_half_precision_scores_are_averaged_in_float32(self, fn):
        scores = jnp.asarray(long_tailed(10, 26), jnp.bfloat16)
        assert fn(scores).dtype == jnp.float32
        assert fn(scores) == fn(scores.astype(jnp.float32))

    @pytest.mark.parametrize("fn", [*AGGREGATES, lambda s: probability_of_improvement(s, jnp.zeros((3, 5)))])
    def test_a_diverged_run_does_not_vanish(self, fn):
        assert jnp.isnan(fn(jnp.ones((4, 5)).at[2, 3].set(jnp.nan)))

    @pytest.mark.parametrize("fn", AGGREGATES)
    def test_under_jit_and_vmap_they_are_the_same(self, fn):
        batch = jnp.stack([long_tailed(5, 6, seed) for seed in range(3)])
        np.testing.assert_allclose(jax.jit(jax.vmap(fn))(batch), [fn(scores) for scores in batch], rtol=1e-6)

    @settings(max_examples=30, deadline=None)
    @given(small_integers(4, 5), st.integers(-3, 3), st.sampled_from([0.5, 1.0, 2.0]))
    def test_iqm_median_and_mean_follow_shifts_and_scales(self, scores, shift, scale):
        for fn in (iqm, median, mean):
            np.testing.assert_allclose(fn(scale * scores + shift), scale * fn(scores) + shift, atol=3e-6)


class TestProbabilityOfImprovement:
    @settings(max_examples=50, deadline=None)
    @given(small_integers(4, 3), small_integers(6, 3))
    def test_it_is_mann_whitney_u_per_pair_of_runs(self, x, y):
        u = scipy.stats.mannwhitneyu(x, y, axis=0, method="asymptotic").statistic
        np.testing.assert_allclose(probability_of_improvement(x, y), np.mean(u / (4 * 6)), rtol=1e-6)

    @settings(max_examples=20, deadline=None)
    @given(small_integers(4, 3), small_integers(6, 3))
    def test_the_two_directions_sum_to_one(self, x, y):
        both = probability_of_improvement(x, y) + probability_of_improvement(y, x)
        np.testing.assert_allclose(both, 1.0, rtol=1e-6)

    @pytest.mark.parametrize("scores", [long_tailed(5, 7), np.ones((3, 4), np.float32), np.full((2, 2), -np.inf)])
    def test_identical_algorithms_are_even(self, scores):
        assert probability_of_improvement(scores, scores) == 0.5

    def test_only_order_matters_not_size(self):
        x, y = np.zeros((3, 2), np.float32), np.array([[-1e-30, -1.0]] * 5, np.float32)
        assert probability_of_improvement(x, y) == 1.0
        assert probability_of_improvement(y, x) == 0.0

    def test_other_tasks_are_refused(self):
        with pytest.raises(TypeCheckError, match="runs_y tasks"):
            probability_of_improvement(np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32))


class TestPerformanceProfile:
    def test_shares_are_strictly_above_the_threshold(self):
        scores = np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)
        taus = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
        np.testing.assert_array_equal(performance_profile(scores, taus), [1.0, 0.75, 0.75, 0.25, 0.0])
        np.testing.assert_array_equal(performance_profile(scores, taus, average=True), [1.0, 1.0, 1.0, 0.0, 0.0])

    @settings(max_examples=30, deadline=None)
    @given(small_integers(4, 5), st.booleans())
    def test_it_never_increases(self, scores, average):
        profile = performance_profile(scores, np.linspace(-4, 4, 33, dtype=np.float32), average=average)
        assert np.all(np.diff(profile) <= 0)
        assert (profile[0], profile[-1]) == (1.0, 0.0)

    @pytest.mark.parametrize("average", [False, True])
    def test_the_area_under_it_is_the_mean_of_non_negative_scores(self, average):
        scores = np.round(long_tailed(8, 9) * 8)  # task means are exact: no rounding decides what is above what
        # A step function: constant from one score (or task mean) to the next.
        steps = np.sort(scores.mean(axis=0) if average else scores.ravel())
        profile = performance_profile(scores, np.append(np.float32(0), steps), average=average)
        area = np.sum(np.asarray(profile[:-1], np.float64) * np.diff(steps, prepend=0))
        np.testing.assert_allclose(area, scores.mean(dtype=np.float64), rtol=1e-6)

    def test_bands_contain_it_and_are_point_wise(self):
        scores, taus = long_tailed(10, 20), np.linspace(0, 5, 11, dtype=np.float32)

        def profile(resampled):
            return performance_profile(resampled, taus)

        low, high = interval(stratified_bootstrap(jax.random.key(0), scores, profile, reps=500))
        assert low.shape == high.shape == (11,)
        assert np.all((low <= profile(scores)) & (profile(scores) <= high))


def all_resamples(scores, task_bootstrap):
    """Every resample of a small array, all equally likely."""
    runs, tasks = scores.shape
    for chosen in itertools.product(range(tasks), repeat=tasks) if task_bootstrap else [range(tasks)]:
        for index in itertools.product(range(runs), repeat=runs * tasks):
            yield scores[np.reshape(index, scores.shape), list(chosen)]


class TestStratifiedBootstrap:
    @pytest.mark.parametrize(
        ("scores", "task_bootstrap"),
        [
            ([[0], [1], [5]], False),  # 27 resamples, all R^R
            ([[0, 10], [1, 13], [5, 14]], False),  # 729, of strata that never mix
            ([[0, 10], [1, 13]], True),  # 4 * 16
        ],
    )
    def test_its_distribution_is_the_enumeration_of_all_resamples(self, scores, task_bootstrap):
        scores, reps = np.array(scores, np.float32), 20_000

        def statistics(scores):
            return iqm(scores), mean(scores)

        samples = stratified_bootstrap(jax.random.key(1), scores, statistics, reps=reps, task_bootstrap=task_bootstrap)
        for drawn, cut in zip(samples, (scores.size // 4, 0), strict=True):
            kept = slice(cut, scores.size - cut)
            resamples = all_resamples(scores, task_bootstrap)
            # Sums of integers: rounding does not decide which values are equal.
            values, counts = np.unique([np.sort(r.ravel())[kept].sum() for r in resamples], return_counts=True)
            sums = np.rint(np.asarray(drawn) * (scores.size - 2 * cut))
            assert set(sums) <= set(values)
            observed = np.sum(sums[:, None] == values, axis=0)
            expected = reps * counts / counts.sum()
            common = expected >= 20
            assert scipy.stats.chisquare(
                np.append(observed[common], observed[~common].sum() + 1e-9),
                np.append(expected[common], expected[~common].sum() + 1e-9),
            ).pvalue > 1e-3  # fmt: skip

    def test_the_variance_of_the_mean_is_the_closed_form(self):
        scores, reps = long_tailed(7, 5), 20_000
        samples = np.asarray(stratified_bootstrap(jax.random.key(2), scores, mean, reps=reps), np.float64)
        # Task means vary by population variance / R, independently.
        expected = scores.astype(np.float64).var(axis=0).sum() / 7 / 5**2
        kurtosis = scipy.stats.kurtosis(samples)
        np.testing.assert_allclose(samples.var(), expected, rtol=4 * np.sqrt((2 + kurtosis) / reps))
        np.testing.assert_allclose(samples.mean(), scores.mean(), atol=4 * np.sqrt(expected / reps))

    def test_tasks_are_resampled_independently(self):
        """Whole rows resampled would make equal tasks correlate perfectly."""
        scores, reps = np.repeat(long_tailed(10, 1), 6, axis=1), 10_000
        samples = stratified_bootstrap(jax.random.key(3), scores, task_means, reps=reps)
        off_diagonal = np.corrcoef(samples, rowvar=False)[~np.eye(6, dtype=bool)]
        np.testing.assert_allclose(off_diagonal, 0.0, atol=4.5 / np.sqrt(reps))

    def test_tasks_stay_in_place_unless_resampled(self):
        scores = np.broadcast_to(np.arange(6, dtype=np.float32), (4, 6))
        kept = stratified_bootstrap(jax.random.key(0), scores, task_means, reps=50)
        np.testing.assert_array_equal(kept, np.broadcast_to(scores[0], (50, 6)))
        drawn = np.asarray(stratified_bootstrap(jax.random.key(0), scores, task_means, reps=600, task_bootstrap=True))
        # Each slot is a whole task (its runs come from the one task), each task equally likely: 600 draws a slot.
        assert set(np.unique(drawn)) == set(range(6))
        share = np.mean(drawn[..., None] == np.arange(6), axis=(0, 1))
        np.testing.assert_allclose(share, 1 / 6, atol=4.5 * np.sqrt(5 / 36 / drawn.size))

    def test_trailing_axes_stay_together(self):
        arm = np.round(long_tailed(5, 4) * 8)
        paired = np.stack([arm, arm + 3, 2 * arm], axis=-1)[..., None] + np.array([0, 100], np.float32)
        assert paired.shape == (5, 4, 3, 2)

        def gaps(scores):
            first = scores[..., 0, :]
            return jnp.stack([
                jnp.max(jnp.abs(scores[..., 1, :] - first - 3)),
                jnp.max(jnp.abs(scores[..., 2, 0] - 2 * scores[..., 0, 0])),
                jnp.max(jnp.abs(scores[..., 1] - scores[..., 0] - 100)),
                jnp.std(first[..., 0]),
            ])  # fmt: skip

        samples = np.asarray(stratified_bootstrap(jax.random.key(4), paired, gaps, reps=100, task_bootstrap=True))
        np.testing.assert_array_equal(samples[:, :3], 0.0)
        assert len(np.unique(samples[:, 3])) > 50

    def test_paired_differences_vary_as_differences_do(self):
        """What the arms share (the seed's luck) cancels; resampled independently it would count twice."""
        luck, reps = long_tailed(10, 4), 20_000
        gains = np.random.default_rng(1).normal(0.5, 0.01, luck.shape)
        scores = np.stack([luck, luck + gains], axis=-1).astype(np.float32)

        def gain(scores):
            return mean(scores[..., 1] - scores[..., 0])

        samples = np.asarray(stratified_bootstrap(jax.random.key(5), scores, gain, reps=reps), np.float64)
        np.testing.assert_allclose(samples.var(), gains.var(axis=0).sum() / 10 / 4**2, rtol=4.5 * np.sqrt(2 / reps))

    def test_algorithms_may_have_different_numbers_of_runs(self):
        x, y, reps = long_tailed(4, 3), long_tailed(9, 3, seed=1), 10_000

        def both(scores):
            return {"x": mean(scores["x"]), "y": mean(scores["y"]), "poi": probability_of_improvement(**scores)}

        samples = stratified_bootstrap(jax.random.key(6), {"x": x, "y": y}, both, reps=reps)
        assert {name: s.shape for name, s in samples.items()} == {"x": (reps,), "y": (reps,), "poi": (reps,)}
        correlation = np.corrcoef(samples["x"], samples["y"])[0, 1]
        np.testing.assert_allclose(correlation, 0.0, atol=4.5 / np.sqrt(reps))
        # U of resampled runs is unbiased for U of the runs: the pairs are drawn uniformly.
        u = scipy.stats.mannwhitneyu(x, y, axis=0, method="asymptotic").statistic
        error = 4.5 * np.std(samples["poi"]) / np.sqrt(reps)
        np.testing.assert_allclose(np.mean(samples["poi"]), np.mean(u / 36), atol=error)

    def test_resampled_tasks_are_the_same_for_all_algorithms(self):
        y = np.arange(5, dtype=np.float32)[None]
        x = np.concatenate([y + 1, y + 1])

        def gain(scores):
            return task_means(scores[0]) - task_means(scores[1]), task_means(scores[1])

        gains, tasks = stratified_bootstrap(jax.random.key(7), (x, y), gain, reps=100, task_bootstrap=True)
        np.testing.assert_array_equal(gains, np.ones((100, 5)))
        assert len(np.unique(tasks, axis=0)) > 90

    def test_one_run_gives_an_interval_of_zero_width(self):
        scores = long_tailed(1, 26)

        def all_of_them(scores):
            return jnp.stack([fn(scores) for fn in AGGREGATES])

        low, high = interval(stratified_bootstrap(jax.random.key(8), scores, all_of_them, reps=501))
        np.testing.assert_array_equal(low, high)
        np.testing.assert_allclose(low, all_of_them(scores), rtol=1e-6)

    def test_repetitions_beyond_one_chunk_of_memory_are_all_there_and_different(self):
        scores, reps = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32), 47
        samples = stratified_bootstrap(jax.random.key(9), scores, mean, reps=reps)
        assert len(np.unique(samples)) == len(samples) == reps
        np.testing.assert_allclose(np.std(samples), scores.std() / np.sqrt(scores.size), rtol=4 / np.sqrt(2 * reps))

    def test_the_key_decides(self):
        scores = long_tailed(5, 4)
        first, again = (stratified_bootstrap(jax.random.key(0), scores, iqm, reps=20) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        other = stratified_bootstrap(jax.random.key(1), scores, iqm, reps=20)
        assert not np.array_equal(first, other)

    def test_it_works_inside_jit_and_vmap(self):
        scores = long_tailed(5, 4)
        keys = jax.random.split(jax.random.key(0), 3)
        inside = jax.jit(jax.vmap(lambda key: stratified_bootstrap(key, scores, iqm, reps=20)))(keys)
        np.testing.assert_allclose(inside, [stratified_bootstrap(k, scores, iqm, reps=20) for k in keys], rtol=1e-6)

    def test_a_second_call_does_not_trace_again(self):
        traces = []

        def statistic(scores):
            traces.append(scores)
            return mean(scores)

        first = stratified_bootstrap(jax.random.key(0), long_tailed(5, 4), statistic, reps=20)
        before = len(traces)
        second = stratified_bootstrap(jax.random.key(1), long_tailed(5, 4, seed=1), statistic, reps=20)
        assert len(traces) == before
        assert not np.array_equal(first, second)

    def test_scores_need_not_be_floats(self):
        wins = np.array([[1, 0], [1, 1]])
        samples = stratified_bootstrap(jax.random.key(0), wins, lambda won: jnp.sum(won, axis=0), reps=200)
        assert samples.dtype == jnp.int32
        assert set(np.unique(samples[:, 0])) == {2}
        assert set(np.unique(samples[:, 1])) == {0, 1, 2}

    def test_arrays_over_other_tasks_are_refused(self):
        scores = np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32)
        with pytest.raises(TypeCheckError, match="scores"):
            stratified_bootstrap(jax.random.key(0), scores, lambda s: mean(s[0]))


class TestInterval:
    @pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
    @pytest.mark.parametrize("reps", [1, 2, 37, 2000])
    def test_it_is_numpys_percentiles(self, level, reps):
        samples = np.random.default_rng(0).normal(size=(reps, 3)).astype(np.float32)
        ours = interval(samples, level=level)
        expected = np.percentile(samples, [50 * (1 - level), 50 * (1 + level)], axis=0)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        assert np.all(ours.low <= ours.high)

    @settings(max_examples=30, deadline=None)
    @given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), st.sampled_from([1, 7, 40]))
    def test_equal_samples_give_zero_width(self, value, reps):
        low, high = interval(np.full(reps, value, np.float32))
        assert low == high == value

    def test_infinite_samples_count_as_extreme_and_nan_is_not_dropped(self):
        samples = np.append(np.linspace(0, 1, 11), [np.inf] * 10).astype(np.float32)
        low, high = interval(samples, level=0.9)
        assert (low, high) == (np.float32(0.1), np.inf)
        assert np.all(np.isnan(interval(np.append(samples, np.float32(np.nan)))))

    def test_levels_can_be_traced(self):
        samples, levels = np.linspace(0, 1, 1001, dtype=np.float32), jnp.array([0.5, 0.8])
        low, high = jax.vmap(lambda level: interval(samples, level=level))(levels)
        np.testing.assert_allclose(low, [0.25, 0.1], atol=1e-6)
        np.testing.assert_allclose(high, [0.75, 0.9], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval(np.zeros(3), level=1.0), "level must be in (0, 1), got 1.0"),
        (lambda: interval(np.zeros(3), level=0), "level must be in (0, 1), got 0"),
        (lambda: optimality_gap(np.zeros((2, 2)), gamma=np.inf), "gamma must be in (-inf, inf), got inf"),
        (lambda: stratified_bootstrap(jax.random.key(0), np.zeros((2, 2)), mean, reps=0), "reps must be in [1, inf)"),
    ],
)
def test_bad_hyperparameters_are_named(call, message):
    with pytest.raises(ValueError, match="must be in") as error:
        call()
    assert str(error.value).startswith(message)
