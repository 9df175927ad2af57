"""Evidential losses against SciPy in float64, Monte Carlo-free identities of the Dirichlet, and the method by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from scipy.special import digamma, gammaln, log_softmax, polygamma, softmax

from jaxreg.losses import (
    dirichlet_cross_entropy,
    dirichlet_kl,
    exponential_evidence,
    flexible_evidential,
    tlc_loss,
)

KL = jax.jit(jax.value_and_grad(lambda alpha: dirichlet_kl(alpha).sum()))
GRADIENT = jax.jit(jax.grad(lambda logits, labels: flexible_evidential(logits, labels).sum()))


def reference_kl(alpha):
    alpha = np.asarray(alpha, np.float64)
    total = alpha.sum(-1)
    terms = (alpha - 1) * (digamma(alpha) - digamma(total)[..., None]) - gammaln(alpha)
    return gammaln(total) - gammaln(alpha.shape[-1]) + terms.sum(-1)


class TestDirichletKl:
    def test_equals_the_textbook_formula_in_float64(self):
        rng = np.random.default_rng(0)
        alpha = 1 + np.concatenate([rng.gamma(0.3, 3, (50, 4)), 10 ** rng.uniform(0, 4, (50, 4))]).astype(np.float32)
        ours = jax.jit(dirichlet_kl)(alpha)
        np.testing.assert_allclose(ours, reference_kl(alpha), rtol=2e-6, atol=1e-6)

    @pytest.mark.parametrize("classes", [2, 8, 1000])
    def test_of_little_evidence_is_its_quadratic_limit(self, classes):
        """Half of the Fisher metric: x^2 psi'(1) / 2 for each class less (sum x)^2 psi'(K) / 2."""
        x = np.float64(2.0**-10)
        expected = classes * x**2 * polygamma(1, 1) / 2 - (classes * x) ** 2 * polygamma(1, classes) / 2
        value, _ = KL(jnp.full(classes, 1 + x))
        np.testing.assert_allclose(value, expected, rtol=3e-3, atol=6e-8 * classes)

    def test_gradient_in_float64(self):
        """d/d alpha_k = (alpha_k - 1) psi'(alpha_k) - (S - K) psi'(S)."""
        alpha = 1 + 10 ** np.random.default_rng(1).uniform(-3, 4, (30, 4)).astype(np.float32)
        wide = alpha.astype(np.float64)
        total = wide.sum(-1, keepdims=True)
        expected = (wide - 1) * polygamma(1, wide) - (total - 4) * polygamma(1, total)
        np.testing.assert_allclose(KL(jnp.asarray(alpha))[1], expected, atol=3e-6)

    def test_of_a_beta_distribution_is_its_integral(self):
        def integrand(p):
            density = 30 * p * (1 - p) ** 4  # Beta(2, 5)
            return density * np.log(density)

        expected, _ = scipy.integrate.quad(integrand, 0, 1)
        np.testing.assert_allclose(dirichlet_kl(jnp.array([2.0, 5.0])), expected, rtol=1e-5)

    @pytest.mark.parametrize("classes", [1, 4, 1000])
    def test_is_zero_without_evidence_and_stationary(self, classes):
        value, gradient = KL(jnp.ones(classes))
        assert abs(float(value)) < 1e-8 * classes
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)

    def test_of_huge_evidence_for_one_class_follows_its_limit(self):
        """Dir(a, 1, 1) has density a (a + 1) p_1^(a - 1) / 2 times the uniform one: KL = ln(a (a + 1) / 2) - (a - 1)
        (1/a + 1/(a + 1))."""
        a = np.exp(np.float32(30.0)).astype(np.float64)
        expected = np.log(a) + np.log(a + 1) - np.log(2) - (a - 1) * (1 / a + 1 / (a + 1))
        np.testing.assert_allclose(dirichlet_kl(jnp.array([a, 1.0, 1.0])), expected, rtol=1e-6)


def test_dirichlet_cross_entropy_is_an_integral():
    """Of -ln p under Beta(2, 5), for either class."""
    for label, value in ((0, lambda p: -np.log(p)), (1, lambda p: -np.log(1 - p))):
        expected, _ = scipy.integrate.quad(lambda p, value=value: 30 * p * (1 - p) ** 4 * value(p), 0, 1)
        ours = dirichlet_cross_entropy(jnp.array([2.0, 5.0]), jnp.array(label))
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_exponential_evidence_is_bounded():
    evidence = exponential_evidence(jnp.array([-1e4, 0.0, 2.0, 30.0, 1e4]))
    np.testing.assert_allclose(evidence, [0.0, 1.0, np.exp(2), np.exp(30), np.exp(30)], rtol=1e-5)


class TestFlexibleEvidential:
    logits = 3 * jax.random.normal(jax.random.key(0), [6, 4])
    labels = jnp.array([0, 1, 2, 3, 0, 1])

    def test_is_fit_plus_evidence_for_other_classes(self):
        alpha = np.logaddexp(0, np.asarray(self.logits, np.float64)) + 1
        rows = np.arange(6)
        others = alpha.copy()
        others[rows, self.labels] = 1.0
        fit = digamma(alpha.sum(-1)) - digamma(alpha[rows, self.labels])
        ours = flexible_evidential(self.logits, self.labels, kl_weight=0.3)
        np.testing.assert_allclose(ours, fit + 0.3 * reference_kl(others), rtol=1e-5, atol=1e-6)

    def test_pulls_the_label_up_and_the_other_class_down(self):
        is_label = jnp.arange(2) == self.labels[:, None] % 2
        gradient = GRADIENT(self.logits[:, :2], self.labels % 2)
        assert (gradient[is_label] < 0).all()
        assert (gradient[~is_label] > 0).all()

    def test_evidence_is_alive_where_there_is_none(self):
        assert (GRADIENT(jnp.full([6, 2], -5.0), jnp.zeros(6, int))[:, 0] < -1e-3).all()


def reference_tlc(f, labels, counts, *, epoch, kl_period, reweighted):
    """The method in float64, at the authors' constants."""
    f, n = np.asarray(f, np.float64), np.asarray(counts, np.float64)
    experts, items, classes = f.shape
    margins = n**-0.25 * 0.5 / (n**-0.25).max()
    weights, temperature = np.ones(classes), np.ones(classes)
    if reweighted:
        weights = (1 - 0.9999) / (1 - 0.9999**n)
        weights *= classes / weights.sum()
        temperature = classes * n / n.sum() * 0.05 + 0.95
        temperature /= temperature.max()
    mean = softmax(f.mean(0) / temperature, -1)
    losses = np.zeros((experts, items))
    for m in range(experts):
        for i, y in enumerate(labels):
            shifted = f[m, i].copy()
            shifted[y] -= 30 * margins[y]
            alpha = np.exp(f[m, i]) + 1
            alpha[y] = 1.0
            distance = mean[i] @ (np.log(mean[i]) - log_softmax(f[m, i] / temperature))
            losses[m, i] = -weights[y] * log_softmax(shifted)[y] + epoch / kl_period * reference_kl(alpha)
            losses[m, i] -= 0.01 * temperature.mean() ** 2 * distance
    return losses


TLC = jax.jit(tlc_loss)


class TestTlc:
    logits = 2 * jax.random.normal(jax.random.key(1), [3, 8, 4])
    labels = jnp.array([0, 1, 2, 3, 3, 2, 1, 0])
    counts = jnp.array([100, 30, 9, 2])
    weights = jnp.stack([jnp.ones(8), jnp.linspace(0.1, 0.8, 8), jnp.full(8, 1e-3), jnp.zeros(8)])

    def loss(self, logits=logits, weights=weights, *, diversity=0.01, epoch=3.0, engage=0.54, reweighted=False):
        return TLC(
            logits,
            self.labels,
            self.counts,
            weights,
            kl_period=12.0,
            diversity=diversity,
            epoch=epoch,
            engage=engage,
            reweighted=reweighted,
        )

    @pytest.mark.parametrize("reweighted", [False, True])
    def test_follows_the_method(self, reweighted):
        losses, _ = self.loss(epoch=3.0, reweighted=reweighted)
        expected = reference_tlc(
            self.logits, self.labels, self.counts, epoch=3.0, kl_period=12.0, reweighted=reweighted
        )
        np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-5)

    def test_examples_engage_experts_by_their_share_of_the_largest_weight(self):
        _, engaged = self.loss()
        np.testing.assert_array_equal(engaged[0], True)
        np.testing.assert_array_equal(engaged[1], np.linspace(0.1, 0.8, 8) > 0.54 * 0.8)
        np.testing.assert_array_equal(engaged[2], True)  # all alike

    def test_nothing_engages_an_expert_that_nobody_needs(self):
        _, engaged = self.loss(weights=jnp.zeros([4, 8]), engage=0.0)
        assert not engaged.any()

    def test_gradients_are_finite_at_the_largest_cosines_and_pass_no_mean(self):
        """The mean of the experts is a constant: its pull on an expert is that of the other softmax."""
        logits = jnp.stack([self.logits, 30.0 * jnp.sign(self.logits)])
        gradient = jax.jit(jax.vmap(jax.grad(lambda z, d: self.loss(z, diversity=d)[0].sum()), in_axes=(0, None)))
        without, repelled = gradient(logits, 0.0), gradient(logits, 5.0)
        assert np.isfinite(repelled).all()
        z = np.asarray(self.logits, np.float64)
        expected = 5.0 * (softmax(z.mean(0), -1) - softmax(z, -1))
        np.testing.assert_allclose((repelled - without)[0], expected, atol=3e-5)
