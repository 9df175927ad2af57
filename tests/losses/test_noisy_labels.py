"""ELR and ELR+ against hand-computed numbers, NumPy transcriptions of the equations and numerical gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, softmax

from jaxreg.losses import ElrState, elr, elr_init, elr_plus, elr_plus_targets, sigmoid_rampup

LOGITS = np.array([2.0, 1.0, 0.0])
TARGET = np.array([0.1, 0.6, 0.3])


def cross_entropy(logits, labels):
    return -np.take_along_axis(log_softmax(np.asarray(logits, np.float64), -1), labels[:, None], -1)[:, 0]


def clipped_softmax(logits):
    return np.clip(softmax(np.asarray(logits, np.float64), -1), 1e-4, 1 - 1e-4)


def reference_elr(target, logits, labels, index, *, strength, beta):
    """The method in float64; returns the losses and the new targets."""
    p, target = clipped_softmax(logits), target.copy()
    target[index] = beta * target[index] + (1 - beta) * p / p.sum(-1, keepdims=True)
    return cross_entropy(logits, labels) + strength * np.log(1 - (p * target[index]).sum(-1)), target


def batches(count, *, examples=7, batch=3, classes=5):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 3, (batch, classes)).astype(np.float32)
        yield logits, rng.integers(0, classes, batch), rng.permutation(examples)[:batch]


class TestElr:
    def test_follows_the_method_over_several_steps(self):
        options = dict(strength=3.0, beta=0.7)
        step = jax.jit(lambda *arguments: elr(*arguments, **options))
        state, target = elr_init(7, 5), np.zeros((7, 5))
        for batch in batches(6):
            losses, state = step(state, *batch)
            expected, target = reference_elr(target, *batch, **options)
            np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(state.target, target, rtol=1e-5, atol=1e-7)

    def test_without_strength_it_is_cross_entropy(self):
        for logits, labels, index in batches(1):
            losses, _ = elr(elr_init(7, 5), logits, labels, index, strength=0.0)
            np.testing.assert_allclose(losses, cross_entropy(logits, labels), rtol=1e-6)

    def test_first_target_is_a_share_of_the_prediction(self):
        logits = LOGITS[None].astype(np.float32)
        _, state = elr(elr_init(4, 3), logits, np.array([0]), np.array([2]), beta=0.9)
        expected = np.zeros((4, 3))
        expected[2] = 0.1 * softmax(LOGITS)
        np.testing.assert_allclose(state.target, expected, rtol=1e-6)

    def test_rows_of_other_examples_stay_bit_for_bit(self):
        state = ElrState(jax.random.uniform(jax.random.key(0), [7, 5]))
        for logits, labels, index in batches(1):
            _, new = elr(state, logits, labels, index)
            others = np.setdiff1d(np.arange(7), index)
            np.testing.assert_array_equal(new.target[others], state.target[others])
            assert (np.asarray(new.target[index]) != np.asarray(state.target[index])).all()

    def test_gradient_does_not_see_the_target_move(self):
        """Central differences of the loss with the updated target held fixed."""
        start = np.random.default_rng(0).dirichlet(np.ones(3), 4)

        def frozen(z, target):
            return -log_softmax(z)[1] + 3.0 * np.log(1 - clipped_softmax(z) @ target)

        _, updated = reference_elr(start, LOGITS[None], np.array([1]), np.array([2]), strength=3.0, beta=0.7)
        expected = scipy.optimize.approx_fprime(LOGITS, lambda z: frozen(z, updated[2]), 1e-7)
        state = ElrState(jnp.asarray(start, jnp.float32))
        gradient = jax.grad(lambda z: elr(state, z[None], np.array([1]), np.array([2]))[0][0])
        np.testing.assert_allclose(gradient(LOGITS.astype(np.float32)), expected, rtol=1e-5, atol=1e-6)

    def test_agreement_is_bounded_by_the_clip(self):
        """A saturated prediction that agrees with its target for ever costs log(1e-4) at most."""
        logits = jnp.array([[1e4, 0.0, -1e4]])
        state = elr_init(1, 3)
        step = jax.jit(lambda s: elr(s, logits, jnp.array([0]), jnp.array([0]), strength=1.0, beta=0.0))
        for _ in range(3):
            losses, state = step(state)
        # The prediction is clipped to (1 - 1e-4, 1e-4, 1e-4) before it is normalized to the target.
        p = np.array([1 - 1e-4, 1e-4, 1e-4])
        np.testing.assert_allclose(losses, [np.log(1 - p @ p / p.sum())], rtol=1e-3)

    def test_initial_targets(self):
        state = elr_init(3, 2)
        assert state.target.dtype == jnp.float32
        np.testing.assert_array_equal(state.target, np.zeros((3, 2)))

    @pytest.mark.parametrize(("sizes", "name"), [((0, 2), "num_examples"), ((2, 0), "num_classes")])
    def test_empty_states_are_refused(self, sizes, name):
        with pytest.raises(ValueError, match=rf"{name} must be in \[1, inf\)"):
            elr_init(*sizes)


class TestElrPlus:
    def regularizer(self, logits, target):
        """With labels of zero mass cross-entropy is absent."""
        return elr_plus(logits, jnp.zeros_like(logits), target, strength=1.0)

    def test_regularizer_by_hand(self):
        value, gradient = jax.value_and_grad(self.regularizer)(jnp.asarray(LOGITS), jnp.asarray(TARGET))
        np.testing.assert_allclose(value, -0.274924, atol=1e-6)
        np.testing.assert_allclose(gradient, [0.122928, -0.115861, -0.007067], atol=1e-6)

    @settings(max_examples=50, deadline=None)
    @given(hnp.arrays(np.float32, 4, elements=st.floats(-3, 3, width=32)), st.integers(0, 2**31))
    def test_gradient_of_the_regularizer_in_general(self, logits, seed):
        target = np.random.default_rng(seed).dirichlet(np.ones(4)).astype(np.float32)
        p = softmax(logits.astype(np.float64))
        expected = -p * (target - p @ target) / (1 - p @ target)
        np.testing.assert_allclose(REGULARIZER_GRADIENT(logits, target), expected, rtol=1e-3, atol=2e-6)

    def test_cross_entropy_with_mixed_labels(self):
        logits, labels = LOGITS.astype(np.float32), np.array([0.7, 0.0, 0.3], np.float32)
        loss = elr_plus(logits, labels, jnp.asarray(TARGET), strength=0.0)
        np.testing.assert_allclose(loss, -labels @ log_softmax(LOGITS), rtol=1e-6)

    def test_strength_weighs_the_regularizer(self):
        logits, labels = LOGITS.astype(np.float32), np.array([0.0, 1.0, 0.0], np.float32)
        loss = elr_plus(logits, labels, jnp.asarray(TARGET), strength=7.0)
        np.testing.assert_allclose(loss, 1.407606 + 7.0 * -0.274924, atol=5e-6)

    def test_reweighted_labels_by_hand(self):
        """(0.7, 0, 0.3) times (0.1, 0.6, 0.3) is (0.07, 0, 0.09), hence labels (7/16, 0, 9/16)."""
        logits, labels = LOGITS.astype(np.float32), np.array([0.7, 0.0, 0.3], np.float32)
        loss = elr_plus(logits, labels, jnp.asarray(TARGET), strength=0.0, reweight_labels=True)
        np.testing.assert_allclose(loss, -(7 * log_softmax(LOGITS)[0] + 9 * log_softmax(LOGITS)[2]) / 16, rtol=1e-6)

    @pytest.mark.parametrize("scale", [0.0, 1e-38])
    def test_reweighting_survives_vanishing_targets(self, scale):
        logits, labels = LOGITS.astype(np.float32), np.array([0.5, 0.5, 0.0], np.float32)
        target = jnp.array([scale, scale, 1.0])
        loss = elr_plus(logits, labels, target, strength=0.0, reweight_labels=True)
        np.testing.assert_allclose(loss, -labels @ log_softmax(LOGITS), rtol=1e-6)

    def test_no_gradient_through_targets(self):
        labels = jnp.array([0.5, 0.5, 0.0])
        gradient = jax.grad(lambda t: elr_plus(jnp.asarray(LOGITS), labels, t, reweight_labels=True))(
            jnp.asarray(TARGET)
        )
        np.testing.assert_array_equal(gradient, np.zeros(3))

    def test_targets_average_the_other_network(self):
        state, target = elr_init(7, 5), np.zeros((7, 5))
        step = jax.jit(lambda *arguments: elr_plus_targets(*arguments, beta=0.9))
        for logits, _, index in batches(5):
            batch_targets, state = step(state, logits, index)
            target[index] = 0.9 * target[index] + 0.1 * softmax(logits.astype(np.float64), -1)
            np.testing.assert_allclose(state.target, target, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(batch_targets, target[index], rtol=1e-5, atol=1e-7)

    def test_targets_stop_the_gradient(self):
        gradient = jax.grad(lambda z: elr_plus_targets(elr_init(1, 3), z[None], jnp.array([0]))[0][0, 0])
        np.testing.assert_array_equal(gradient(jnp.asarray(LOGITS)), np.zeros(3))


REGULARIZER_GRADIENT = jax.jit(jax.grad(lambda z, t: elr_plus(z, jnp.zeros_like(z), t, strength=1.0)))


class TestSigmoidRampup:
    @pytest.mark.parametrize(
        ("step", "value"), [(0, np.exp(-5)), (25, np.exp(-45 / 16)), (50, np.exp(-5 / 4)), (100, 1.0), (1000, 1.0)]
    )
    def test_by_hand(self, step, value):
        np.testing.assert_allclose(sigmoid_rampup(step, rampup_steps=100), value, rtol=1e-6)

    @pytest.mark.parametrize("step", [0, 3])
    def test_no_steps_means_no_ramp(self, step):
        assert float(sigmoid_rampup(step, rampup_steps=0)) == 1.0

    def test_traced_steps(self):
        steps = jnp.arange(0, 120, 10)
        ours = jax.jit(jax.vmap(lambda t: sigmoid_rampup(t, rampup_steps=100)))(steps)
        np.testing.assert_allclose(ours, np.exp(-5 * (1 - np.minimum(steps, 100) / 100) ** 2), rtol=1e-5)
