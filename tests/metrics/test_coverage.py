"""pass@N by enumeration, and the best policy against numerical optimization."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxreg.metrics import coverage, optimal_coverage_policy, pass_at_n

policy = jax.jit(lambda q, n: optimal_coverage_policy(q, n=n))


class TestPassAtN:
    def test_is_the_share_of_subsets_with_a_right_answer(self):
        for correct in range(7):
            answers = [i < correct for i in range(6)]
            expected = np.mean([any(subset) for subset in itertools.combinations(answers, 3)])
            np.testing.assert_allclose(pass_at_n(6, np.array(correct), n=3), expected, rtol=1e-6)

    def test_samples_of_several_sizes_and_too_few(self):
        estimates = pass_at_n(np.array([4, 4, 1]), np.array([1, 0, 1]), n=2)
        np.testing.assert_allclose(estimates, [0.5, 0.0, np.nan], rtol=1e-6)

    def test_large_samples_do_not_overflow(self):
        """One right of 10000 is among 5000 of them with chance one half."""
        np.testing.assert_allclose(pass_at_n(10_000, jnp.array([1]), n=5_000), [0.5], rtol=1e-3)

    def test_no_draw_is_refused(self):
        with pytest.raises(ValueError, match=r"n must be in \[1, inf\), got 0"):
            pass_at_n(4, np.array(1), n=0)


def test_coverage_is_the_chance_of_any_draw_also_if_tiny():
    p = np.array([0.0, 1e-9, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(coverage(p, n=4), [0.0, 4e-9, 15 / 16, 1.0], rtol=1e-6)


class TestOptimalCoveragePolicy:
    def test_by_hand(self):
        best = policy(np.array([0.5, 0.3, 0.2], np.float32), 4.0)
        np.testing.assert_allclose(best, [0.435481, 0.330689, 0.233830], rtol=5e-6)
        np.testing.assert_allclose(np.sum(np.array([0.5, 0.3, 0.2]) * coverage(best, n=4)), 0.820098, rtol=2e-6)

    @pytest.mark.parametrize(("q", "n"), [([0.5, 0.3, 0.2], 4), ([0.9, 0.08, 0.02], 3), ([0.97, 0.02, 0.01], 8)])
    def test_no_optimizer_finds_a_better_one(self, q, n):
        q = np.array(q)
        found = scipy.optimize.minimize(
            lambda p: -q @ (1 - (1 - p) ** n),
            np.full(3, 1 / 3),
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(policy(q.astype(np.float32), float(n)), found.x, atol=2e-4)

    def test_is_a_distribution_that_shuns_what_cannot_be_right(self):
        q = np.array([[0.6, 0.4, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], np.float32)
        best = policy(q, 16.0)
        np.testing.assert_allclose(best.sum(-1), 1.0, rtol=1e-6)
        assert (np.asarray(best)[q == 0] == 0).all()
        np.testing.assert_allclose(best[2], 0.25, rtol=1e-6)

    def test_beside_what_is_no_number_nothing_is_known(self):
        best = policy(np.array([[np.nan, 0.4, 0.0], [0.5, 0.5, 0.0]], np.float32), 4.0)
        np.testing.assert_allclose(best, [[np.nan, np.nan, 0.0], [0.5, 0.5, 0.0]], rtol=1e-6)

    def test_one_draw_is_refused(self):
        with pytest.raises(ValueError, match=r"n must be in \(1, inf\), got 1"):
            optimal_coverage_policy(np.array([0.5, 0.5]), n=1)
