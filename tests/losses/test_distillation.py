"""Distillation losses against numbers worked by hand, Bernoulli and softmax divergences of SciPy, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_softmax, rel_entr, softmax

from jaxreg.losses import binary_kl_norm, kd_kl, soft_cross_entropy

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
        np.testing.assert_allclose(kd_kl(STUDENT, TEACHER), 16 * rel_entr(p, q).sum(-1), rtol=5e-6)

    def test_hot_it_matches_centred_logits(self):
        difference = STUDENT.astype(np.float64) - TEACHER
        expected = difference.var(-1) / 2
        np.testing.assert_allclose(kd_kl(STUDENT, TEACHER, temperature=100.0), expected, rtol=0.05)

    def test_gradient_is_the_difference_of_probabilities(self):
        gradient = jax.grad(lambda s: jnp.sum(kd_kl(s, TEACHER)))(jnp.asarray(STUDENT))
        p, q = (softmax(z.astype(np.float64) / 4, -1) for z in (TEACHER, STUDENT))
        np.testing.assert_allclose(gradient, 4 * (q - p), atol=2e-6)


def test_soft_cross_entropy_against_scipy():
    targets = RNG.dirichlet(np.ones(4), 5).astype(np.float32)
    expected = -(targets * log_softmax(STUDENT.astype(np.float64), -1)).sum(-1)
    np.testing.assert_allclose(soft_cross_entropy(STUDENT, targets), expected, rtol=2e-6)


def test_teachers_get_no_gradient():
    for loss in (binary_kl_norm, kd_kl, soft_cross_entropy):
        gradient = jax.grad(lambda t, loss=loss: jnp.sum(loss(STUDENT, t)))(jax.nn.softmax(jnp.asarray(TEACHER)))
        np.testing.assert_array_equal(gradient, np.zeros_like(TEACHER))
