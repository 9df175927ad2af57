"""ConR against the sum over pairs in float64, and pairs chosen by hand."""

import jax
import numpy as np
import pytest

from jaxreg.losses import conr

FEATURES = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]], np.float32)
TARGETS, PREDICTIONS = np.array([0.0, 0.5, 5.0, 9.0], np.float32), np.array([0.0, 1.0, 0.8, 7.0], np.float32)


def reference(features, targets, predictions, weights, *, window=1.0, temperature=0.2, push=0.01, quirk=False):
    q = np.asarray(features, np.float64)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    y, p = (np.asarray(x, np.float64).reshape(len(q), -1) for x in (targets, predictions))
    losses = np.zeros(len(q))
    for i in range(len(q)):
        distance = np.linalg.norm(y - y[i], axis=1)
        close = np.linalg.norm(p - p[i], axis=1) <= window
        positive = [j for j in range(len(q)) if distance[j] <= window and j != i]
        negative = [j for j in range(len(q)) if distance[j] > window and close[j]]
        if positive and negative:
            s = q @ q[i] / temperature
            total = np.exp(s[positive]).sum() + quirk * (len(q) - len(positive))
            total += weights[i] * (np.exp(push * distance[negative]) * np.exp(s[negative])).sum()
            losses[i] = weights[i] * np.mean(np.log(total) - s[positive])
    return losses


def random_batch(labels=()):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(12, 3)), rng.integers(0, 4, (12, *labels)) / 2
    predictions = targets + rng.normal(size=targets.shape)
    return [x.astype(np.float32) for x in (features, targets, predictions, rng.uniform(0.2, 2, 12))]


CONR = jax.jit(conr, static_argnames="reference_quirk")


class TestConr:
    @pytest.mark.parametrize("quirk", [False, True])
    def test_is_the_sum_over_pairs(self, quirk):
        *batch, weights = random_batch()
        options = {"window": 0.6, "temperature": 0.5, "push": 0.3}
        expected = reference(*batch, weights, **options, quirk=quirk)
        assert (expected > 0).sum() >= 6
        ours = CONR(*batch, weights=weights, **options, reference_quirk=quirk)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)

    def test_of_vectors_is_by_their_distance(self):
        features, targets, predictions, _ = random_batch((2,))
        expected = reference(features, targets, predictions, np.ones(12), window=0.8)
        assert (expected > 0).sum() >= 2
        np.testing.assert_allclose(conr(features, targets, predictions, window=0.8), expected, rtol=2e-5, atol=1e-6)

    def test_pairs_by_hand(self):
        """Positives (0, 1), (1, 0); negatives (0, 2), (1, 2), (2, 0), (2, 1): similar pairs are 45 degrees apart."""
        similar = np.sqrt(0.5) / 0.2
        expected = [np.log1p(np.exp(0.05 + similar)), np.log1p(np.exp(0.045 + similar)), 0.0, 0.0]
        np.testing.assert_allclose(CONR(FEATURES, TARGETS, PREDICTIONS), expected, rtol=1e-5)

    def test_farther_targets_are_pushed_harder(self):
        farther = CONR(FEATURES, np.array([0.0, 0.5, 50.0, 90.0], np.float32), PREDICTIONS)
        assert (farther[:2] > CONR(FEATURES, TARGETS, PREDICTIONS)[:2] + 0.3).all()

    def test_is_zero_without_negatives_or_without_positives(self):
        np.testing.assert_array_equal(CONR(FEATURES, TARGETS, TARGETS), 0.0)
        np.testing.assert_array_equal(CONR(FEATURES, 5 * np.arange(4, dtype=np.float32), PREDICTIONS), 0.0)

    def test_gradient_pulls_like_targets_together_and_passes_no_predictions(self):
        gradient = jax.jit(jax.grad(lambda f, p: CONR(f, TARGETS, p).sum(), (0, 1)))
        to_features, to_predictions = gradient(FEATURES, PREDICTIONS)
        np.testing.assert_array_equal(to_predictions, 0.0)
        moved = FEATURES - 0.05 * to_features
        unit, moved_unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (FEATURES, moved))
        assert moved_unit[0] @ moved_unit[1] > unit[0] @ unit[1]
        assert CONR(moved, TARGETS, PREDICTIONS).sum() < CONR(FEATURES, TARGETS, PREDICTIONS).sum()
        # Nobody's pair, or no features at all: nothing moves, and nothing is NaN.
        np.testing.assert_array_equal(to_features[3], 0.0)
        assert np.isfinite(gradient(0 * FEATURES, PREDICTIONS)[0]).all()

    def test_weight_zero_is_no_loss(self):
        weights = np.array([0.0, 1.0, 1.0, 1.0], np.float32)
        losses = CONR(FEATURES, TARGETS, PREDICTIONS, weights=weights)
        np.testing.assert_allclose(losses, [0.0, CONR(FEATURES, TARGETS, PREDICTIONS)[1], 0.0, 0.0], rtol=1e-6)
