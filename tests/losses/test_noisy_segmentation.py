"""ADELE: its curve against SciPy's, the start of the correction by hand, and its rules pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import rel_entr, softmax

from jaxreg.losses import (
    LearningCurve,
    correct_labels,
    correction_due,
    fit_learning_curve,
    learning_slowdown,
    multiscale_jsd,
)

FIT = jax.jit(fit_learning_curve)
DUE = jax.jit(correction_due)


def rise(t, a, b, c):
    return a * (1 - np.exp(-(t**b) / c))


class TestFitLearningCurve:
    @pytest.mark.parametrize("curve", [(0.8, 0.9, 2.0), (0.6, 0.4, 1.0), (0.95, 0.7, 8.0)])
    def test_recovers_a_curve_without_noise(self, curve):
        t = np.linspace(0, 20, 20)
        np.testing.assert_allclose(FIT(t, rise(t, *curve)), curve, rtol=2e-3)

    @pytest.mark.parametrize("seed", range(4))
    def test_fits_noise_as_well_as_scipy_within_the_bounds(self, seed):
        """Compared by the sum of squares that both minimise; some of these fits lie on the bounds."""
        rng = np.random.default_rng(seed)
        t = np.linspace(0, 20, 20)
        truth = rise(t, *rng.uniform([0.5, 0.5, 0.5], [1.0, 1.0, 6.0]))
        measured = np.clip(truth + 0.05 * rng.normal(size=20), 0, 1)
        sigma = np.geomspace(1, 0.1, 20)
        bounds = [0, 0, 0], [1, 1, np.inf]
        best, _ = scipy.optimize.curve_fit(rise, t, measured, p0=(0.9, 0.9, 1), sigma=sigma, bounds=bounds)

        def cost(parameters):
            return np.square((rise(t, *parameters) - measured) / sigma).sum()

        ours = np.asarray(FIT(t, measured), np.float64)
        assert (ours >= 0).all()
        assert (ours[:2] <= 1).all()
        assert cost(ours) <= 1.005 * cost(best)

    def test_points_that_do_not_count_change_nothing(self):
        t, counted = np.linspace(0, 20, 20), np.arange(20) < 11
        of_eleven = np.geomspace(1, 0.1, 11)
        measured = rise(t, 0.8, 0.9, 2.0) + 0.02 * np.sin(7 * t)
        bounds = [0, 0, 0], [1, 1, np.inf]
        expected, _ = scipy.optimize.curve_fit(
            rise, t[:11], measured[:11], p0=(0.9, 0.9, 1), sigma=of_eleven, bounds=bounds
        )
        masked = jax.jit(fit_learning_curve)(t, np.where(counted, measured, 123.0), where=counted)
        np.testing.assert_allclose(masked, expected, rtol=5e-3)


def test_learning_slowdown_by_hand():
    curve = LearningCurve(*map(jnp.asarray, (0.8, 0.9, 2.0)))
    expected = [0.0, 0.394892, 0.614725, 0.748354, 0.832922, 0.887753]
    np.testing.assert_allclose(learning_slowdown(curve, jnp.arange(1.0, 7.0)), expected, atol=1e-5)
    assert np.isfinite(learning_slowdown(curve, jnp.zeros([])))


class TestCorrectionDue:
    """With 16 kept epochs at the times k 16 / 15 the curve (0.8, 0.9, 2) slows down by 90% after epoch 6."""

    history = jnp.asarray(rise(np.arange(16) * 16 / 15, 0.8, 0.9, 2.0), jnp.float32)

    def due(self, history, epochs):
        return [bool(DUE(history, epoch)) for epoch in epochs]

    def test_is_when_learning_has_slowed_down(self):
        # With n epochs done the times k n / (n - 1) are stretched, the less the later: 7 is reached at 7.
        def stretched(n):
            return jnp.asarray(rise(np.arange(16) * n / max(n - 1, 1), 0.8, 0.9, 2.0), jnp.float32)

        assert [bool(DUE(stretched(n), n)) for n in range(1, 11)] == [False] * 6 + [True] * 4
        assert bool(DUE(self.history, 16))

    def test_slow_beginnings_are_dropped(self):
        slow = jnp.concatenate([jnp.array([0.0, 0.01, 0.02, 0.03]), self.history[:12] + 0.0])
        slow = slow.at[4].set(0.04)
        # Four epochs are dropped: what is kept is as above, four epochs later.
        kept = jnp.concatenate([slow[4:], jnp.zeros(4)])
        for epoch in (8, 12, 16):
            curve = scipy_start(np.asarray(kept)[: epoch - 4], total=16)
            assert bool(DUE(slow, epoch)) == (epoch >= 4 + curve)

    def test_nothing_is_due_without_a_rise_or_with_two_epochs(self):
        assert not any(self.due(jnp.full(16, 0.3), (1, 2, 8, 16)))
        assert not any(self.due(self.history, (0, 1, 2)))

    def test_epochs_to_come_are_not_looked_at(self):
        future = self.history.at[9:].set(jnp.nan)
        assert self.due(future, (5, 9)) == self.due(self.history, (5, 9))

    def test_ratio_is_a_share(self):
        with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\), got 1.0"):
            correction_due(self.history, 3, ratio=1.0)


def scipy_start(overlaps, total):
    """The first epoch, of those kept, in which correction is due, from SciPy's fit."""
    t = np.linspace(0, len(overlaps), len(overlaps))
    sigma, bounds = np.geomspace(1, 0.1, len(t)), ([0, 0, 0], [1, 1, np.inf])
    a, b, c = scipy.optimize.curve_fit(rise, t, overlaps, p0=(0.9, 0.9, 1), sigma=sigma, bounds=bounds)[0]
    epochs = np.arange(1, total)
    slope = a * b / c * epochs ** (b - 1) * np.exp(-(epochs**b) / c)
    return (np.abs(slope[0] - slope) / slope[0] <= 0.9).sum() + 1


class TestCorrectLabels:
    labels = np.array([[0, 0, 1, 1], [2, 2, 255, 0]], np.uint8)

    def correct(self, new, *, due, confidence=0.9, classes=4):
        """With a network that is equally sure of the new class of every pixel."""
        rest = (1 - confidence) / (classes - 1)
        is_new = np.arange(classes)[:, None, None] == np.asarray(new)
        probabilities = np.where(is_new, confidence, rest).astype(np.float32)
        return np.asarray(correct_labels(self.labels, probabilities, np.isin(np.arange(classes), due)))

    def test_changes_between_background_and_due_classes(self):
        ours = self.correct([[1, 2, 0, 2], [0, 1, 1, 1]], due=[1])
        # Not: to 2, from 2, from 255.
        np.testing.assert_array_equal(ours, [[1, 0, 0, 1], [2, 2, 255, 1]])
        assert ours.dtype == self.labels.dtype

    def test_brings_no_class_into_an_image(self):
        np.testing.assert_array_equal(self.correct(np.full((2, 4), 3), due=[1, 2, 3]), self.labels)

    def test_takes_confident_predictions_only(self):
        new = np.ones((2, 4), int)
        np.testing.assert_array_equal(self.correct(new, due=[1, 2], confidence=0.79), self.labels)
        expected = [[1, 1, 1, 1], [1, 1, 255, 1]]
        np.testing.assert_array_equal(self.correct(new, due=[1, 2], confidence=0.81), expected)


class TestMultiscaleJsd:
    logits = 2 * np.random.default_rng(0).normal(size=(3, 2, 4, 5, 6)).astype(np.float32)

    @pytest.mark.parametrize("weights", [None, np.array([0.0, 1.0, -1.0], np.float32)])
    def test_is_the_divergence_from_the_mean(self, weights):
        p = softmax(self.logits.astype(np.float64), axis=2)
        q = np.tensordot(np.full(3, 1 / 3) if weights is None else softmax(weights), p, axes=1)
        expected = rel_entr(p, np.clip(q, 1e-3, 1 - 1e-3)).sum(axis=(0, 2))
        ours = multiscale_jsd(self.logits, weights=weights, gate=0.0)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)

    def test_of_equal_predictions_is_zero(self):
        same = np.broadcast_to(self.logits[:1], self.logits.shape)
        np.testing.assert_allclose(multiscale_jsd(same), 0.0, atol=2e-3)  # where q is clipped

    def test_unsure_images_have_none(self):
        unsure = np.concatenate([3 * self.logits[:, :1], 0.01 * self.logits[:, 1:]], axis=1)
        loss = multiscale_jsd(unsure)
        assert (loss[0] != 0).all()
        np.testing.assert_array_equal(loss[1], 0.0)

    def test_gradients_are_finite_for_the_surest_contradictions(self):
        logits = jnp.stack([jnp.array([1e4, -1e4, 0.0]), jnp.array([-1e4, 1e4, 0.0])])[:, :, None, None]
        value, gradient = jax.value_and_grad(lambda z: multiscale_jsd(z).sum())(logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
