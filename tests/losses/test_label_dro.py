"""LDR losses against the maximisation they stand for, solved by SciPy, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, logsumexp, softmax, xlogy

from jaxreg.losses import aldr_kl, aldr_kl_init, ldr_kl, ldr_kl_bayes_probabilities

LOGITS = np.array([[2.0, 1.0, 0.0], [-3.0, 0.5, 0.5], [0.0, 0.0, 0.0]], np.float32)
LABELS = np.array([1, 0, 2])


def gaps(logits, label, margin):
    d = np.asarray(logits, np.float64) - logits[label] + margin
    d[label] -= margin
    return d


def kl_from_uniform(p):
    return np.sum(xlogy(p, p)) + np.log(len(p))


def adversary_value(d, temperature):
    """The inner problem itself: maximises <p, d> - temperature KL(p || uniform) over the simplex."""
    classes = len(d)
    solution = scipy.optimize.minimize(
        lambda p: temperature * kl_from_uniform(p) - p @ d,
        np.full(classes, 1 / classes),
        jac=lambda p: temperature * (np.log(np.maximum(p, 1e-300)) + 1) - d,
        method="SLSQP",
        bounds=[(0, 1)] * classes,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert solution.success
    return -solution.fun


def softplus_mean(logits):
    positive = np.logaddexp(0, np.asarray(logits, np.float64))
    return positive / positive.mean(-1, keepdims=True)


def l1_mean(logits):
    logits = np.asarray(logits, np.float64)
    return logits / np.abs(logits).mean(-1, keepdims=True)


class TestLdrKl:
    def test_cross_entropy_minus_log_classes_without_margin_at_temperature_one(self):
        loss = jax.jit(lambda f, y: ldr_kl(f, y, margin=0.0, normalize=None))
        expected = -np.take_along_axis(log_softmax(LOGITS, -1), LABELS[:, None], -1)[:, 0] - np.log(3)
        np.testing.assert_allclose(loss(LOGITS, LABELS), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(loss(LOGITS[0], np.array(0)), -0.691006, atol=1e-6)

    @pytest.mark.parametrize(("temperature", "margin"), [(0.5, 2.0), (1.0, 0.1), (10.0, 0.1), (0.3, 0.0)])
    def test_is_the_value_of_the_adversary(self, temperature, margin):
        ours = ldr_kl(LOGITS, LABELS, temperature=temperature, margin=margin, normalize=None)
        brute = [adversary_value(gaps(f, y, margin), temperature) for f, y in zip(LOGITS, LABELS, strict=True)]
        np.testing.assert_allclose(ours, brute, rtol=2e-5, atol=2e-6)

    def test_number_of_the_brute_force(self):
        ours = ldr_kl(LOGITS[0], np.array(1), temperature=0.5, margin=2.0, normalize=None)
        np.testing.assert_allclose(ours, 2.460984, atol=1e-6)

    def test_gradient_is_the_adversary_minus_the_label(self):
        """Danskin: the gradient of a maximum is the gradient at its argmax, here softmax(d / temperature)."""
        gradient = jax.grad(lambda f: ldr_kl(f, np.array(1), temperature=0.5, margin=2.0, normalize=None))(LOGITS[0])
        expected = softmax(gaps(LOGITS[0], 1, 2.0) / 0.5) - np.array([0, 1, 0])
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)

    @settings(max_examples=50, deadline=None)
    @given(
        hnp.arrays(np.float32, 4, elements=st.floats(-20, 20, width=32)),
        st.integers(0, 3),
        st.floats(0.0, 3.0),
        st.floats(1e-3, 0.1),
    )
    def test_low_temperature_is_the_crammer_singer_loss(self, logits, label, margin, temperature):
        ours = JITTED(logits, label, temperature, margin)
        hinge = max(0.0, gaps(logits, label, margin).max())
        assert hinge - temperature * np.log(4) - 1e-5 <= ours <= hinge + 1e-5

    def test_high_temperature_is_the_mean_gap(self):
        ours = ldr_kl(LOGITS, LABELS, temperature=1e3, margin=0.1, normalize=None)
        d = np.array([gaps(f, y, 0.1) for f, y in zip(LOGITS, LABELS, strict=True)])
        np.testing.assert_allclose(ours, d.mean(-1) + d.var(-1) / 2e3, atol=3e-4)

    @pytest.mark.parametrize(
        ("normalize", "reference"), [("softplus_mean", softplus_mean), ("l1_mean", l1_mean), (None, np.asarray)]
    )
    def test_normalizers(self, normalize, reference):
        logits, labels, temperature = LOGITS[:2], LABELS[:2], 0.7
        ours = ldr_kl(logits, labels, temperature=temperature, margin=0.1, normalize=normalize)
        d = np.array([gaps(f, y, 0.1) for f, y in zip(reference(logits), labels, strict=True)])
        np.testing.assert_allclose(ours, temperature * (logsumexp(d / temperature, -1) - np.log(3)), rtol=1e-5)

    def test_softplus_normalizer_where_softplus_underflows(self):
        """softplus(x) is exp(x) to within 1e-40 here, hence scores [9/4, 3/4, 0] when the weights are 3 : 1 : 0."""
        logits = np.array([-1e4, -1e4 - np.log(3), -2e4])
        d = gaps(np.array([9 / 4, 3 / 4, 0]), 1, 0.1)
        ours = ldr_kl(logits.astype(np.float32), np.array(1))
        np.testing.assert_allclose(ours, logsumexp(d) - np.log(3), rtol=2e-3)  # float32 keeps 1e-3 at 1e4

    def test_softplus_normalizer_is_accurate_on_both_sides_of_its_switch(self):
        logits = np.linspace(-18, -14, 9).astype(np.float32)
        d = gaps(softplus_mean(logits), 3, 0.1)
        np.testing.assert_allclose(ldr_kl(logits, np.array(3)), logsumexp(d) - np.log(9), rtol=2e-6)
        gradient = jax.jit(jax.grad(lambda f: ldr_kl(f, np.array(3))))(logits)
        numeric = scipy.optimize.approx_fprime(
            logits.astype(np.float64), lambda f: logsumexp(gaps(softplus_mean(f), 3, 0.1)), 1e-6
        )
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5)

    def test_zero_logits_have_a_gradient_under_the_l1_normalizer(self):
        gradient = jax.grad(lambda f: ldr_kl(f, np.array(0), margin=0.0, normalize="l1_mean"))(jnp.zeros(4))
        np.testing.assert_allclose(gradient, [-0.75, 0.25, 0.25, 0.25], rtol=1e-6)

    def test_the_l1_normalizer_passes_its_gradient_on(self):
        """The normalized loss ignores the scale of the scores, so that its gradient is orthogonal to them."""
        gradient = jax.grad(lambda f: ldr_kl(f, np.array(1), normalize="l1_mean"))(LOGITS[0])
        assert np.abs(gradient).max() > 0.1
        np.testing.assert_allclose(gradient @ LOGITS[0], 0.0, atol=1e-6)


JITTED = jax.jit(lambda f, y, temperature, margin: ldr_kl(f, y, temperature=temperature, margin=margin, normalize=None))


def reference_aldr(lam, logits, label, *, temperature, alpha, margin):
    """One example of the method in float64: new temperature, then loss."""
    f, log_classes = np.asarray(logits, np.float64), np.log(len(logits))
    new = temperature - temperature * kl_from_uniform(softmax(f / lam)) / (alpha * log_classes)
    loss = new * (logsumexp(gaps(f, label, margin) / new) - log_classes)
    return loss - alpha * log_classes / (2 * temperature) * (new - temperature) ** 2, new


class TestAldrKl:
    def test_temperature_after_one_update(self):
        state = aldr_kl_init(4, 1.0)
        _, state = aldr_kl(state, LOGITS[:1], LABELS[:1], np.array([2]), normalize=None)
        np.testing.assert_allclose(state.lam, [1.0, 1.0, 0.878840, 1.0], atol=1e-6)

    @pytest.mark.parametrize(("normalize", "reference"), [("l1_mean", l1_mean), (None, np.asarray)])
    def test_follows_the_method_over_several_steps(self, normalize, reference):
        options = dict(temperature=0.8, alpha=1.5, margin=0.3)
        step = jax.jit(lambda s, f, y, i: aldr_kl(s, f, y, i, normalize=normalize, **options))
        state, lam = aldr_kl_init(7, 0.8), np.full(7, 0.8)
        for seed in range(5):
            rng = np.random.default_rng(seed)
            logits, labels = rng.normal(0, 3, (3, 6)).astype(np.float32), rng.integers(0, 6, 3)
            index = rng.permutation(7)[:3]
            losses, state = step(state, logits, labels, index)
            for loss, f, y, i in zip(losses, logits, labels, index, strict=True):
                expected, lam[i] = reference_aldr(lam[i], reference(f), y, **options)
                np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(state.lam, lam, rtol=1e-5)

    def test_repeated_updates_on_fixed_scores_reach_the_best_temperature(self):
        """Without a margin the update is a fixed-point step of the adversary's maximisation over the temperature."""
        logits, label, alpha = LOGITS[0], 1, 2.0
        step = jax.jit(lambda s: aldr_kl(s, logits[None], np.array([label]), np.array([0]), margin=0.0, normalize=None))
        state = aldr_kl_init(1, 1.0)
        for _ in range(30):
            losses, state = step(state)

        def negative_value(lam):
            quadratic = alpha * np.log(3) / 2 * (lam - 1) ** 2
            return quadratic - lam * (logsumexp(gaps(logits, label, 0.0) / lam) - np.log(3))

        best = scipy.optimize.minimize_scalar(negative_value, bounds=(0.1, 1.5), method="bounded",
                                              options={"xatol": 1e-10})  # fmt: skip
        np.testing.assert_allclose(state.lam, [best.x], rtol=1e-5)
        np.testing.assert_allclose(losses, [-best.fun], rtol=1e-5)

    def test_no_gradient_through_the_temperature(self):
        state = aldr_kl_init(1, 1.0)
        gradient = jax.grad(lambda f: aldr_kl(state, f[None], LABELS[:1], np.array([0]), normalize=None)[0][0])
        _, lam = reference_aldr(1.0, LOGITS[0], 1, temperature=1.0, alpha=2.0, margin=0.1)
        expected = softmax(gaps(LOGITS[0], 1, 0.1) / lam) - np.array([0, 1, 0])
        np.testing.assert_allclose(gradient(LOGITS[0]), expected, rtol=1e-5)

    @pytest.mark.parametrize("alpha", [1.01, 2.0, 10.0])
    def test_temperatures_stay_in_their_interval(self, alpha):
        logits = 1e4 * jax.nn.one_hot(jnp.arange(5), 5)
        state = aldr_kl_init(5, 3.0)
        step = jax.jit(
            lambda s: aldr_kl(s, logits, jnp.arange(5), jnp.arange(5), temperature=3.0, alpha=alpha, normalize=None)
        )
        for _ in range(3):
            _, state = step(state)
        # A prediction without doubt has KL = log K.
        np.testing.assert_allclose(state.lam, 3.0 * (1 - 1 / alpha), rtol=1e-4)

    def test_one_class_is_refused(self):
        with pytest.raises(ValueError, match="number of classes in logits"):
            aldr_kl(aldr_kl_init(2, 1.0), jnp.zeros([2, 1]), jnp.zeros(2, int), jnp.arange(2))


def test_initial_temperatures():
    state = aldr_kl_init(3, 10.0)
    assert state.lam.dtype == jnp.float32
    np.testing.assert_array_equal(state.lam, [10.0, 10.0, 10.0])
    with pytest.raises(ValueError, match="num_examples must be in"):
        aldr_kl_init(0, 1.0)


PROBABILITIES = hnp.arrays(np.float64, 5, elements=st.floats(1e-3, 1.0)).map(lambda w: w / w.sum())


class TestBayesProbabilities:
    bayes = staticmethod(jax.jit(lambda q, c, t: ldr_kl_bayes_probabilities(q, margin=c, temperature=t)))

    @pytest.mark.parametrize(("temperature", "margin"), [(1.0, 0.1), (1.0, 3.0), (0.5, 1.0), (2.0, 8.0)])
    @pytest.mark.parametrize("q", [[0.6, 0.3, 0.1], [0.35, 0.33, 0.32], [0.9, 0.06, 0.04], [0.4, 0.4, 0.2]])
    def test_minimises_the_conditional_risk(self, q, temperature, margin):
        q = np.array(q)

        def risk(f):
            return sum(q[y] * temperature * logsumexp(gaps(f, y, margin) / temperature) for y in range(3))

        def gradient(f):
            adversaries = np.stack([softmax(gaps(f, y, margin) / temperature) for y in range(3)])
            return q @ adversaries - q

        found = scipy.optimize.minimize(risk, np.zeros(3), jac=gradient, method="BFGS", options={"gtol": 1e-9})
        ours = self.bayes(q.astype(np.float32), margin, temperature)
        np.testing.assert_allclose(ours, softmax(found.x / temperature), atol=2e-6, rtol=2e-4)

    @settings(max_examples=200, deadline=None)
    @given(PROBABILITIES, st.floats(0.0, 10.0), st.floats(0.3, 5.0))
    def test_orders_classes_as_their_probabilities(self, q, margin, temperature):
        """Top-k consistency, for every k at once."""
        s = np.asarray(self.bayes(q.astype(np.float32), margin, temperature))
        np.testing.assert_allclose(s.sum(), 1.0, rtol=1e-5)
        q = q.astype(np.float32)
        clearly_more = q[:, None] > q[None, :] * (1 + 1e-4)
        assert (s[:, None] > s[None, :])[clearly_more].all()

    @settings(max_examples=50, deadline=None)
    @given(PROBABILITIES)
    def test_no_margin_recovers_the_probabilities(self, q):
        np.testing.assert_allclose(self.bayes(q.astype(np.float32), 0.0, 1.0), q, rtol=2e-6)

    def test_ties_certainty_and_one_class(self):
        np.testing.assert_allclose(self.bayes(jnp.full(4, 0.25), 5.0, 1.0), 0.25, rtol=1e-6)
        np.testing.assert_allclose(self.bayes(jnp.array([0.5, 0.5]), 8.0, 1.0), 0.5, rtol=1e-6)
        np.testing.assert_array_equal(self.bayes(jnp.array([0.0, 1.0, 0.0]), 1.0, 1.0), [0.0, 1.0, 0.0])
        np.testing.assert_array_equal(self.bayes(jnp.array([[1.0]]), 1.0, 1.0), [[1.0]])

    def test_two_classes_by_hand(self):
        """With exp(-c) = 1/2, s = (0.8, 0.2) gives s (1 - s / 2) = (0.48, 0.18), which is 8 : 3."""
        np.testing.assert_allclose(self.bayes(jnp.array([8 / 11, 3 / 11]), np.log(2), 1.0), [0.8, 0.2], rtol=1e-6)
