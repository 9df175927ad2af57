"""Distillation losses against numbers worked by hand, Bernoulli and softmax divergences of SciPy, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, rel_entr, softmax

from jaxreg.losses import adapt_soft_labels, binary_kl_norm, kd_kl

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(0, 3, (2, 5, 4)).astype(np.float32)

binary = jax.jit(binary_kl_norm)


class TestBinaryKlNorm:
    def test_by_hand(self):
        """4 (2 log cosh 1/4 + log cosh 1/2)."""
        loss = binary_kl_norm(np.array([2.0, 0.0, -1.0], np.float32), np.array([1.0, 1.0, 0.0], np.float32))
        np.testing.assert_allclose(loss, 0.371158, rtol=2e-6)

    def test_is_the_divergence_of_bernoullis(self):
        q = expit((STUDENT.astype(np.float64) - TEACHER) / 1.7)
        expected = 1.7**2 * (rel_entr(0.5, q) + rel_entr(0.5, 1 - q)).sum(-1)
        np.testing.assert_allclose(binary(STUDENT, TEACHER, temperature=1.7), expected, rtol=2e-6)

    def test_equal_logits_cost_nothing_and_pull_nowhere(self):
        loss, gradient = jax.value_and_grad(lambda s: jnp.sum(binary_kl_norm(s, TEACHER)))(jnp.asarray(TEACHER))
        assert float(loss) == 0.0
        np.testing.assert_array_equal(gradient, np.zeros_like(TEACHER))

    def test_hot_it_is_a_square_to_full_precision(self):
        expected = np.square(STUDENT.astype(np.float64) - TEACHER).sum(-1) / 8
        np.testing.assert_allclose(binary(STUDENT, TEACHER, temperature=1e4), expected, rtol=2e-6)

    def test_cold_it_is_an_absolute_difference(self):
        """T^2 log cosh(d / 2T) tends to T |d| / 2."""
        expected = 1e-4 * np.abs(STUDENT - TEACHER).sum(-1) / 2
        np.testing.assert_allclose(binary(STUDENT, TEACHER, temperature=1e-4), expected, rtol=1e-3)

    def test_gradient_is_a_hyperbolic_tangent(self):
        gradient = jax.grad(lambda s: jnp.sum(binary_kl_norm(s, TEACHER, temperature=1.7)))(jnp.asarray(STUDENT))
        expected = 1.7 / 2 * np.tanh((STUDENT.astype(np.float64) - TEACHER) / 3.4)
        np.testing.assert_allclose(gradient, expected, rtol=5e-6)


class TestKdKl:
    def test_is_the_divergence_of_softened_probabilities(self):
        p, q = (softmax(z.astype(np.float64) / 4, -1) for z in (TEACHER, STUDENT))
        np.testing.assert_allclose(kd_kl(STUDENT, TEACHER), 16 * rel_entr(p, q).sum(-1), rtol=5e-6, atol=3e-6)

    def test_hot_it_matches_centred_logits(self):
        difference = STUDENT.astype(np.float64) - TEACHER
        expected = difference.var(-1) / 2
        np.testing.assert_allclose(kd_kl(STUDENT, TEACHER, temperature=100.0), expected, rtol=0.05)

    def test_gradient_is_the_difference_of_probabilities(self):
        gradient = jax.grad(lambda s: jnp.sum(kd_kl(s, TEACHER)))(jnp.asarray(STUDENT))
        p, q = (softmax(z.astype(np.float64) / 4, -1) for z in (TEACHER, STUDENT))
        np.testing.assert_allclose(gradient, 4 * (q - p), atol=2e-6)


class TestAdaptSoftLabels:
    PROBS = np.array([[0.1, 0.7, 0.2], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]], np.float32)
    LABELS = np.array([0, 1, 0])

    def test_three_regions_by_hand(self):
        """Reliabilities 0.1, 0.2 and 0.5: left out, the softened label, the teacher."""
        targets, weight = adapt_soft_labels(self.PROBS, self.LABELS)
        np.testing.assert_array_equal(weight, [0.0, 1.0, 1.0])
        np.testing.assert_allclose(targets, [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.5, 0.3, 0.2]], rtol=1e-6)

    def test_without_thresholds_it_is_distillation(self):
        targets, weight = adapt_soft_labels(self.PROBS, self.LABELS, low=0.0, high=0.0)
        np.testing.assert_array_equal(targets, self.PROBS)
        np.testing.assert_array_equal(weight, np.ones(3))

    def test_with_a_threshold_above_one_it_is_label_smoothing(self):
        targets, weight = adapt_soft_labels(self.PROBS, self.LABELS, low=0.0, high=1.1, smoothing=0.2)
        # optax's smoothing spreads its share over all classes, the label included.
        expected = optax.smooth_labels(jax.nn.one_hot(self.LABELS, 3), 0.3)
        np.testing.assert_allclose(targets, expected, rtol=1e-6)
        np.testing.assert_array_equal(weight, np.ones(3))

    def test_reliability_may_be_the_largest_probability(self):
        targets, weight = adapt_soft_labels(self.PROBS, self.LABELS, low=0.55, high=0.65, reliability="confidence")
        np.testing.assert_array_equal(weight, [1.0, 1.0, 0.0])
        np.testing.assert_allclose(targets[:2], [[0.1, 0.7, 0.2], [0.05, 0.9, 0.05]], rtol=1e-6)

    def test_targets_sum_to_one(self):
        probs = RNG.dirichlet(np.ones(5), 50).astype(np.float32)
        targets, _ = adapt_soft_labels(probs, RNG.integers(0, 5, 50), low=0.1, high=0.4, smoothing=0.3)
        np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)

    def test_thresholds_are_in_order(self):
        with pytest.raises(ValueError, match=r"high must be in \[0.5, inf\), got 0.3"):
            adapt_soft_labels(np.ones((3, 2), np.float32), np.zeros(3, int), low=0.5, high=0.3)

    def test_one_class_is_refused(self):
        with pytest.raises(ValueError, match=r"number of classes must be in \[2, inf\), got 1"):
            adapt_soft_labels(np.ones((3, 1), np.float32), np.zeros(3, int))


def test_teachers_get_no_gradient():
    for loss in (binary_kl_norm, kd_kl):
        gradient = jax.grad(lambda t, loss=loss: jnp.sum(loss(STUDENT, t)))(jax.nn.softmax(jnp.asarray(TEACHER)))
        np.testing.assert_array_equal(gradient, np.zeros_like(TEACHER))
