"""Calibration error and risk-coverage areas against NumPy loops, enumerated orders and models calibrated by design."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import aurc, excess_aurc, expected_calibration_error


def reference_ece(probabilities, labels, num_bins):
    """Bin by bin: the share of the bin times the gap of its means."""
    confidence, predicted = probabilities.max(-1).astype(np.float64), probabilities.argmax(-1)
    edges, error = np.linspace(0, 1, num_bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs((predicted[inside] == labels[inside]).mean() - confidence[inside].mean())
    return error


def reference_aurc(correct_in_order):
    return np.mean([np.mean(~np.asarray(correct_in_order[:k])) for k in range(1, len(correct_in_order) + 1)])


class TestExpectedCalibrationError:
    def test_equals_a_loop_over_bins(self):
        rng = np.random.default_rng(0)
        for num_bins in [1, 4, 15]:
            probabilities = rng.dirichlet(np.full(5, 0.3), 200).astype(np.float32)
            labels = rng.integers(0, 5, 200)
            ours = expected_calibration_error(probabilities, labels, num_bins=num_bins)
            np.testing.assert_allclose(ours, reference_ece(probabilities, labels, num_bins), rtol=1e-5)

    def test_by_hand(self):
        """Confidence 0.8 with accuracy 1/2 on two examples, 0.55 with accuracy 1 on one: (2 * 0.3 + 0.45) / 3."""
        probabilities = np.array([[0.8, 0.2], [0.2, 0.8], [0.45, 0.55]], np.float32)
        ours = expected_calibration_error(probabilities, np.array([0, 0, 1]), num_bins=10)
        np.testing.assert_allclose(ours, 1.05 / 3, rtol=1e-6)

    def test_a_calibrated_model_has_no_error(self):
        """Three of four right at confidence 3/4, all right at confidence 1."""
        probabilities = np.array([[0.75, 0.25]] * 4 + [[0.0, 1.0]] * 3, np.float32)
        assert float(expected_calibration_error(probabilities, np.array([0, 0, 1, 0, 1, 1, 1]))) < 1e-7

    def test_batches_may_have_any_shape_and_half_precision(self):
        probabilities = jax.nn.softmax(jax.random.normal(jax.random.key(0), [2, 3, 4]))
        labels = jax.random.randint(jax.random.key(1), [2, 3], 0, 4)
        flat = expected_calibration_error(probabilities.reshape(6, 4), labels.reshape(6))
        np.testing.assert_allclose(jax.jit(expected_calibration_error)(probabilities, labels), flat, rtol=1e-6)
        half = probabilities.astype(jnp.bfloat16)
        wide = expected_calibration_error(half.astype(jnp.float32), labels)
        assert expected_calibration_error(half, labels).dtype == jnp.float32
        np.testing.assert_allclose(expected_calibration_error(half, labels), wide, rtol=1e-6)

    def test_no_bins_are_refused(self):
        with pytest.raises(ValueError, match=r"num_bins must be in \[1, inf\), got 0"):
            expected_calibration_error(np.ones((1, 1), np.float32), np.array([0]), num_bins=0)


class TestAurc:
    AREA = staticmethod(jax.jit(aurc))

    def test_without_ties_it_is_the_mean_of_the_selective_risks(self):
        rng = np.random.default_rng(0)
        for _ in range(3):
            confidence, correct = rng.permutation(12).astype(np.float32) / 12, rng.random(12) < 0.6
            expected = reference_aurc(correct[np.argsort(-confidence)])
            np.testing.assert_allclose(self.AREA(confidence, correct), expected, rtol=1e-6)

    def test_ties_count_as_the_mean_over_all_their_orders(self):
        confidence = np.array([0.5, 0.9, 0.5, 0.1, 0.5, 0.1], np.float32)
        correct = np.array([True, True, False, False, False, True])
        descending = np.sort(-confidence)
        orders = [list(o) for o in itertools.permutations(range(6)) if (-confidence[list(o)] == descending).all()]
        assert len(orders) == 12
        expected = np.mean([reference_aurc(correct[o]) for o in orders])
        np.testing.assert_allclose(aurc(confidence, correct), expected, rtol=1e-6)

    def test_constant_confidence_gives_the_error_rate(self):
        correct = np.arange(10) < 7
        np.testing.assert_allclose(aurc(np.full(10, 0.3, np.float32), correct), 0.3, rtol=1e-6)

    def test_only_the_order_of_confidence_counts(self):
        confidence = jax.random.uniform(jax.random.key(0), [12])
        correct = np.random.default_rng(0).random(12) < 0.6
        np.testing.assert_allclose(self.AREA(10 * confidence - 3, correct), self.AREA(confidence, correct), rtol=1e-6)

    def test_a_confidence_that_is_no_number_has_no_place_in_the_order(self):
        confidence, correct = jnp.array([np.nan, 0.8, 0.7]), np.array([True, False, True])
        assert np.isnan(self.AREA(confidence, correct))
        assert np.isnan(excess_aurc(confidence, correct))


class TestExcessAurc:
    @pytest.mark.parametrize("errors", [0, 3, 7])
    def test_the_best_order_has_none(self, errors):
        correct = np.arange(7) < 7 - errors
        confidence = np.linspace(1, 0, 7, dtype=np.float32)
        np.testing.assert_allclose(excess_aurc(confidence, correct), 0.0, atol=1e-7)

    def test_beyond_the_best_of_all_orders(self):
        confidence, correct = np.linspace(1, 0, 5, dtype=np.float32), np.array([True, False, True, True, False])
        best = min(reference_aurc(order) for order in itertools.permutations(correct))
        expected = reference_aurc(correct) - best
        np.testing.assert_allclose(excess_aurc(confidence, correct), expected, rtol=1e-5)
