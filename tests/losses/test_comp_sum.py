"""Comp-sum losses against known members, and their bounds against enumerated scores and numerical minimization."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from scipy.special import logsumexp, softmax

from jaxreg.losses import (
    comp_sum,
    comp_sum_bayes_risk,
    h_consistency_bound,
    h_consistency_transform,
    margin_change,
    minimizability_gap,
    smooth_adversarial_comp_sum,
)

LOGITS = np.array([2.0, 1.0, 0.0], np.float32)
TAUS = np.array([0.0, 0.5, 0.999, 1.0, 1.001, 1.5, 1.7, 1.9, 1.999, 2.0, 2.5], np.float32)
ZERO = jnp.zeros([], int)
RNG = np.random.default_rng(0)

losses_of_taus = jax.jit(jax.vmap(lambda f, y, tau: comp_sum(f, y, tau=tau), in_axes=(None, None, 0)))
transforms = jax.jit(jax.vmap(lambda beta, tau: h_consistency_transform(beta, tau=tau, num_classes=3), (None, 0)))
bayes_risks = jax.jit(jax.vmap(lambda q, tau: comp_sum_bayes_risk(q, tau=tau), in_axes=(None, 0)))


def phi(probability, tau):
    """The loss in float64 for the probability of the label."""
    return -np.log(probability) if tau == 1 else (probability ** (tau - 1.0) - 1) / (1.0 - tau)


class TestCompSum:
    def test_published_values(self):
        losses = losses_of_taus(LOGITS, 0, jnp.array([0.0, 0.5, 1.0, 1.7, 2.0]))
        np.testing.assert_allclose(losses, [0.503215, 0.452113, 0.407606, 0.354614, 0.334759], atol=1e-6)

    def test_known_members(self):
        f, y = RNG.normal(0, 3, (50, 7)).astype(np.float32), RNG.integers(0, 7, 50)
        p = softmax(f.astype(np.float64), -1)[np.arange(50), y]
        sum_exponential, cross_entropy, generalized, absolute = losses_of_taus(f, y, jnp.array([0.0, 1.0, 1.7, 2.0]))
        np.testing.assert_allclose(sum_exponential, 1 / p - 1, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            cross_entropy, optax.softmax_cross_entropy_with_integer_labels(f, y), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(generalized, (1 - p**0.7) / 0.7, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(absolute, 1 - p, rtol=1e-4, atol=1e-6)

    def test_what_logits_have_in_common_does_not_count(self):
        offsets = np.array([0.0, 1e3, 1e4], np.float32)[:, None]
        logits = np.array([10.0, 0.0, 0.0], np.float32) + offsets
        np.testing.assert_allclose(comp_sum(logits, np.zeros(3, int)), np.log1p(2 * np.exp(-10.0)), rtol=1e-3)

    def test_nothing_jumps_near_cross_entropy(self):
        taus = np.float32(1) + np.array([-1e-2, -1e-3, -1e-5, -1e-7, 0, 1e-7, 1e-5, 1e-3, 1e-2], np.float32)
        v = np.log(np.exp(LOGITS - 0.0).sum(dtype=np.float64))
        e = 1 - taus.astype(np.float64)
        expected = np.where(e == 0, v, np.expm1(e * v) / np.where(e == 0, 1, e))
        np.testing.assert_allclose(losses_of_taus(LOGITS, 2, jnp.asarray(taus)), expected, rtol=1e-6)

    def test_gradients_stay_finite_for_extreme_logits_of_every_member(self):
        extremes = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 1e-30, 30.0]])
        gradient = jax.jit(jax.vmap(jax.grad(lambda f, tau: comp_sum(f, jnp.zeros(4, int), tau=tau).sum()), (None, 0)))
        assert np.isfinite(losses_of_taus(extremes, np.zeros(4, int), TAUS)).all()
        assert np.isfinite(gradient(extremes, TAUS)).all()

    def test_gradient_with_respect_to_tau(self):
        v, gradient = (
            logsumexp(LOGITS.astype(np.float64)),
            jax.jit(jax.grad(lambda tau: comp_sum(LOGITS, jnp.array(2), tau=tau))),
        )
        for tau in (0.3, 1.0, 1.6):
            above, below = (np.expm1((1 - t) * v) / (1 - t) for t in (tau + 1e-4, tau - 1e-4))
            np.testing.assert_allclose(gradient(tau), (above - below) / 2e-4, rtol=1e-4)


class TestBounds:
    def test_published_values_of_the_transform(self):
        found = transforms(np.array([0.5], np.float32), jnp.array([0.0, 0.5, 1.0, 1.5, 2.0]))[:, 0]
        np.testing.assert_allclose(found, [0.133975, 0.125628, 0.130812, 0.136294, 0.166667], atol=1e-6)

    def test_transform_follows_its_equation(self):
        beta = np.array([0.001, 0.01, 0.3, 0.9, 1.0])
        for tau, found in zip(TAUS.astype(np.float64), transforms(beta.astype(np.float32), TAUS), strict=True):
            if tau == 1:
                upper = (1 + beta) * np.log(1 + beta)
                expected = (upper + np.where(beta < 1, (1 - beta) * np.log(np.maximum(1 - beta, 1e-300)), 0)) / 2
            elif tau >= 2:
                expected = beta / ((tau - 1) * 3 ** (tau - 1))
            else:
                m = ((1 + beta) ** (1 / (2 - tau)) + (1 - beta) ** (1 / (2 - tau))) / 2
                constant = 2 if tau < 1 else 3
                expected = constant ** (1 - tau) / (1 - tau) * (1 - m ** (2 - tau))
            np.testing.assert_allclose(found, expected, rtol=4e-4, err_msg=str(tau))

    def test_bound_undoes_the_transform_and_obeys_the_papers_simpler_one(self):
        bounds = jax.jit(jax.vmap(lambda t, tau: h_consistency_bound(t, tau=tau, num_classes=3)))
        beta = np.array([0.0, 0.01, 0.3, 0.9, 1.0], np.float32)
        excess = transforms(beta, TAUS)
        np.testing.assert_allclose(bounds(excess, TAUS), np.tile(beta, (len(TAUS), 1)), rtol=1e-3, atol=1e-5)
        tau = TAUS[:, None]
        root = np.where(tau < 1, 2**tau * (2 - tau), 2 * 3 ** (tau - 1)) * excess
        simple = np.where(tau < 2, np.sqrt(np.maximum(root, 0)), (tau - 1) * 3 ** (tau - 1) * excess)
        assert (np.asarray(bounds(excess, TAUS)) <= simple * 1.001 + 1e-6).all()
        # No excess of the zero-one error is larger than one.
        np.testing.assert_array_equal(bounds(excess + 10, TAUS), np.ones_like(excess))

    def test_no_distribution_and_scores_break_the_bound(self):
        """Excess loss of random scores against random class probabilities, transformed excess error below it."""
        q, f = RNG.dirichlet(0.7 * np.ones(3), 3000), RNG.normal(0, 2, (3000, 3))
        f[:1000] = np.log(q[:1000]) + RNG.normal(0, 0.1, (1000, 3))
        p = softmax(f, -1)
        error = (q.max(-1) - q[np.arange(3000), f.argmax(-1)]).astype(np.float32)
        for tau, least, transformed in zip(
            TAUS.astype(np.float64),
            bayes_risks(q.astype(np.float32), TAUS),
            transforms(error, TAUS),
            strict=True,
        ):
            excess = (q * phi(p, tau)).sum(-1) - np.asarray(least)
            assert (excess >= np.asarray(transformed) - 1e-5 * (1 + np.abs(least))).all(), tau

    def test_least_risk_is_what_minimization_finds(self):
        q = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
        for tau, least in zip(TAUS.astype(np.float64), bayes_risks(q.astype(np.float32), TAUS), strict=True):
            for row, value in zip(q, least, strict=True):
                found = [
                    scipy.optimize.minimize(
                        lambda f, row=row, tau=tau: (row * phi(np.maximum(softmax(f), 1e-12), tau)).sum(), start
                    ).fun
                    for start in ([0.0, 0.0, 0.0], [9.0, 0.0, 0.0])
                ]
                np.testing.assert_allclose(value, min(found), atol=2e-3)
        np.testing.assert_allclose(bayes_risks(q[:1].astype(np.float32), TAUS)[3], -(q[0] * np.log(q[0])).sum())

    @pytest.mark.parametrize("classes", [2, 10, 1000])
    def test_least_risk_of_all_classes_alike_and_of_a_sure_one(self, classes):
        """Of n equal probabilities, up to tau of 2, the loss of 1/n."""
        alike, sure = np.full(classes, 1 / classes, np.float32), np.eye(classes, dtype=np.float32)[0]
        gradients = jax.jit(jax.vmap(jax.grad(lambda q, tau: comp_sum_bayes_risk(q, tau=tau)), in_axes=(None, 0)))
        expected = [phi(1 / classes, tau) for tau in TAUS[:-1].astype(np.float64)]
        np.testing.assert_allclose(bayes_risks(alike, TAUS[:-1]), expected, rtol=2e-4)
        np.testing.assert_allclose(bayes_risks(sure, TAUS), 0.0, atol=1e-6)
        for q in (alike, sure):
            assert np.isfinite(gradients(q, TAUS)).all()

    def test_gap_is_what_one_score_for_all_inputs_costs(self):
        """Two inputs with opposite labels: a constant function has log 2 at best, all functions have zero."""
        q = np.eye(2, dtype=np.float32)
        np.testing.assert_allclose(minimizability_gap(np.log(2), q), np.log(2), rtol=1e-6)
        np.testing.assert_allclose(minimizability_gap(0.0, q, tau=0.5), 0.0, atol=1e-6)

    @pytest.mark.parametrize("function", [h_consistency_transform, h_consistency_bound])
    def test_a_single_class_is_refused(self, function):
        with pytest.raises(ValueError, match=r"num_classes must be in \[2, inf\), got 1"):
            function(jnp.zeros(1), num_classes=1)


class TestSmoothAdversarial:
    def test_margin_change_by_hand(self):
        """Label 0: margins over (0, 1, 2) go from (0, 1, 2) to (0, 4, -2)."""
        change = margin_change(jnp.array([1.0, -3.0, 3.0]), LOGITS, ZERO)
        np.testing.assert_allclose(change, np.sqrt(3**2 + 4**2), rtol=1e-6)
        gradient = jax.grad(lambda f: margin_change(f, LOGITS, ZERO))
        np.testing.assert_array_equal(gradient(jnp.asarray(LOGITS)), np.zeros(3))

    def test_dominates_the_clipped_loss_of_every_point(self):
        """Points of a segment and the worst of them, for a network that is a table of logits."""
        path = jnp.asarray(RNG.normal(0, 2, (500, 3)), jnp.float32)
        clean, labels, rho = path[:1].repeat(500, 0), jnp.asarray(RNG.integers(0, 3, 500)), 0.7
        loss = jax.jit(
            lambda tau: smooth_adversarial_comp_sum(
                lambda p, x: x, None, clean, path, labels, nu=np.sqrt(2) / rho, rho=rho, tau=tau
            )
        )
        margins = np.take_along_axis(np.asarray(path), np.asarray(labels)[:, None], 1) - path
        clipped = np.clip(1 - margins / rho, 0, 1).sum(-1) - 1
        for tau in (0.0, 0.5, 1.0, 1.5, 2.0):
            assert (loss(tau) >= phi(1 / (1 + clipped), tau) - 1e-5).all()

    def test_is_the_comp_sum_loss_of_scaled_logits_plus_the_change(self):
        f, labels = jnp.stack([LOGITS, LOGITS[::-1]]), jnp.array([0, 1])
        attacked = f + jnp.array([0.0, 3.0, 4.0])
        # The margins over the other classes change by 3 and 4 for label 0, by 3 and 1 for label 1.
        loss = smooth_adversarial_comp_sum(lambda p, x: p * x, 1.0, f, attacked, labels, nu=0.5, tau=2.0, rho=2.0)
        p = softmax(np.asarray(f) / 2, -1)[np.arange(2), labels]
        np.testing.assert_allclose(loss, 1 - p + 0.5 * np.array([5.0, np.sqrt(10.0)]), rtol=1e-5)
