"""Unlearning metrics against brute force, NumPy's histograms and SciPy's entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import logit, softmax

from jaxreg.metrics import (
    UnlearningMetrics,
    klom,
    margin,
    membership_inference_efficacy,
    unlearning_gap,
    unlearning_metrics,
)


class TestMargin:
    def test_it_is_the_log_odds_of_the_label(self):
        rng = np.random.default_rng(0)
        logits, labels = rng.normal(0, 2, (3, 5, 4)), rng.integers(0, 4, (3, 5))
        p = np.take_along_axis(softmax(logits, -1), labels[..., None], -1)[..., 0]
        np.testing.assert_allclose(margin(logits.astype(np.float32), labels), logit(p), rtol=1e-4, atol=1e-5)

    def test_confident_examples_are_told_apart(self):
        np.testing.assert_allclose(margin(jnp.array([[40.0, 0.0], [50.0, 0.0]]), jnp.array([0, 0])), [40, 50])


def brute_force_efficacy(retain, test, forget):
    best, threshold = 0.0, -np.inf
    for t in np.unique(np.concatenate([retain, test])):
        accuracy = np.mean(retain >= t) - np.mean(test >= t)
        if accuracy > best + 1e-9:
            best, threshold = accuracy, t
    return np.mean(forget < threshold)


class TestMembershipInference:
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_trying_every_threshold(self, seed):
        rng = np.random.default_rng(seed)
        # Sizes that are powers of two make the shares exact; rounding makes ties.
        retain, test = np.round(rng.normal(1, 1, 64), 1), np.round(rng.normal(0, 1, 32), 1)
        forget = rng.normal(0.5, 1, 20)
        scores = [x.astype(np.float32) for x in (retain, test, forget)]
        expected = brute_force_efficacy(*scores)
        np.testing.assert_allclose(jax.jit(membership_inference_efficacy)(*scores), expected, rtol=1e-6)

    def test_forgotten_like_unseen_and_like_seen(self):
        retain, test = jnp.array([5.0, 6.0, 7.0]), jnp.array([1.0, 2.0])
        assert float(membership_inference_efficacy(retain, test, jnp.array([0.0, 1.5, 3.0]))) == 1.0
        assert float(membership_inference_efficacy(retain, test, jnp.array([5.0, 9.0]))) == 0.0

    def test_a_useless_attack_finds_nothing_unseen(self):
        same = jnp.array([1.0, 2.0, 3.0])
        assert float(membership_inference_efficacy(same, same, jnp.array([-9.0, 0.0]))) == 0.0

    @pytest.mark.parametrize("position", range(3))
    def test_a_score_that_is_no_number_is_not_taken_for_a_confident_one(self, position):
        scores = [jnp.array([1.0, 2.0]), jnp.array([-1.0, -2.0]), jnp.array([0.0, 3.0])]
        scores[position] = scores[position].at[0].set(jnp.nan)
        assert np.isnan(membership_inference_efficacy(*scores))


def test_four_figures_by_hand():
    def logits(classes):
        return 10.0 * jax.nn.one_hot(jnp.array(classes), 3)

    forget = logits([0, 1, 2, 2]), jnp.array([0, 0, 0, 2])
    retain = logits([0, 1, 2]), jnp.array([0, 1, 2])
    test = logits([0, 0]), jnp.array([0, 1])
    figures = unlearning_metrics(forget, retain, test)
    # All training margins are alike, and so is one of two tests: below them is what is wrong.
    assert figures == UnlearningMetrics(0.5, 1.0, 0.5, 0.5)


def test_gap_by_hand():
    method = UnlearningMetrics(*map(jnp.array, (0.10, 0.99, 0.95, 0.30)))
    retrain = UnlearningMetrics(*map(jnp.array, (0.05, 1.00, 0.97, 0.20)))
    np.testing.assert_allclose(unlearning_gap(method, retrain), (0.05 + 0.01 + 0.02 + 0.10) / 4, rtol=1e-5)
    assert float(unlearning_gap({"a": 1.0}, {"a": 1.0})) == 0.0


def reference_klom(unlearned, oracle, bins, eps):
    p, edges = np.histogram(unlearned, bins, (min(unlearned.min(), oracle.min()), max(unlearned.max(), oracle.max())))
    q, _ = np.histogram(oracle, edges)
    p, q = p / p.sum(), q / q.sum()
    return scipy.stats.entropy(p, np.where(p > 0, np.maximum(q, eps), q))


class TestKlom:
    @pytest.mark.parametrize("bins", [5, 20])
    def test_equals_scipy_on_numpy_histograms(self, bins):
        rng = np.random.default_rng(0)
        unlearned, oracle = rng.normal(0, 1, (40, 6)), rng.normal(0.5, 2, (64, 6))
        ours = jax.jit(lambda p, q: klom(p, q, bins=bins))(unlearned.astype(np.float32), oracle.astype(np.float32))
        theirs = [reference_klom(p, q, bins, 1e-5) for p, q in zip(unlearned.T, oracle.T, strict=True)]
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)

    def test_same_samples_give_zero(self):
        margins = jax.random.normal(jax.random.key(0), [30, 5])
        np.testing.assert_allclose(klom(margins, margins), np.zeros(5), atol=1e-6)
        np.testing.assert_allclose(klom(jnp.ones([3, 2]), jnp.ones([4, 2])), np.zeros(2), atol=1e-6)

    def test_disjoint_supports_give_the_largest_divergence(self):
        low, high = jnp.zeros([10, 1]), jnp.ones([10, 1])
        np.testing.assert_allclose(klom(low, high), [np.log(1e5)], rtol=1e-5)  # 11.51
        np.testing.assert_allclose(klom(high, low), [np.log(1e5)], rtol=1e-5)

    def test_direction_is_from_unlearned_to_oracle(self):
        """All unlearned in one of the oracle's two bins: log 2. The reverse meets an empty bin."""
        unlearned, oracle = jnp.array([[0.0]] * 4), jnp.array([[0.0], [1.0]])
        np.testing.assert_allclose(klom(unlearned, oracle, bins=2), [np.log(2)], rtol=1e-5)
        np.testing.assert_allclose(klom(oracle, unlearned, bins=2), [np.log(0.5) + 0.5 * np.log(1e5)], rtol=1e-5)

    def test_margins_are_clipped(self):
        far, oracle = jnp.array([[1e6], [0.0]]), jnp.array([[100.0], [0.0]])
        np.testing.assert_allclose(klom(far, oracle), [0.0], atol=1e-6)

    def test_a_margin_that_is_no_number_is_no_divergence(self):
        margins = jax.random.normal(jax.random.key(0), [8, 3])
        broken = margins.at[0, 1].set(jnp.nan)
        for pair in ((broken, margins), (margins, broken)):
            np.testing.assert_array_equal(jnp.isnan(klom(*pair)), [False, True, False])

    @pytest.mark.parametrize(("name", "value"), [("bins", 0), ("eps", 0.0), ("clip", -1.0)])
    def test_bad_hyperparameters_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            klom(jnp.ones([2, 2]), jnp.ones([2, 2]), **{name: value})
