"""PS-KD against a NumPy transcription over epochs, label smoothing, and gradients worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxreg.losses import PskdState, pskd, pskd_gradient_scale, pskd_init

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3, 4)).astype(np.float32)
LABELS = np.array([2, 0, 3])
INDEX = np.array([4, 0, 2])
ONE_HOT = np.eye(4)[LABELS]
PAST = RNG.dirichlet(np.ones(4), 5)

step = jax.jit(pskd)


@jax.jit
def gradient(past, logits, alpha):
    return jax.grad(lambda z: jnp.sum(pskd(PskdState(past), z, LABELS, INDEX, alpha=alpha)[0]))(logits)


def cross_entropy(targets):
    return -(targets * log_softmax(LOGITS.astype(np.float64), -1)).sum(-1)


def test_targets_come_from_the_last_visit_over_several_epochs():
    """Every example once an epoch; the first epoch's targets are the labels."""
    labels, past, state = RNG.integers(0, 4, 6), None, pskd_init(6, 4)
    for alpha in [0.2, 0.4, 0.6]:
        logits = RNG.normal(0, 2, (6, 4)).astype(np.float32)
        one_hot = np.eye(4)[labels]
        target = (1 - alpha) * one_hot + alpha * (one_hot if past is None else past)
        expected = -(target * log_softmax(logits.astype(np.float64), -1)).sum(-1)
        for batch in np.split(RNG.permutation(6), 2):
            losses, state = step(state, logits[batch], labels[batch], batch, alpha=alpha)
            np.testing.assert_allclose(losses, expected[batch], rtol=2e-6)
        past = softmax(logits.astype(np.float64), -1)
        np.testing.assert_allclose(state.past, past, rtol=2e-6)


def test_without_the_past_it_is_cross_entropy():
    losses, _ = step(PskdState(jnp.asarray(PAST, jnp.float32)), LOGITS, LABELS, INDEX, alpha=0.0)
    np.testing.assert_allclose(losses, cross_entropy(ONE_HOT), rtol=2e-6)


def test_an_undecided_past_is_label_smoothing():
    losses, _ = step(PskdState(jnp.full([5, 4], 0.25)), LOGITS, LABELS, INDEX, alpha=0.3)
    np.testing.assert_allclose(losses, cross_entropy(0.7 * ONE_HOT + 0.3 / 4), rtol=2e-6)


def test_gradient_is_prediction_minus_target():
    expected = softmax(LOGITS.astype(np.float64), -1) - (0.6 * ONE_HOT + 0.4 * PAST[INDEX])
    np.testing.assert_allclose(gradient(PAST, LOGITS, 0.4), expected, rtol=1e-5, atol=1e-6)


def test_agreement_with_the_past_only_shrinks_cross_entropys_gradient():
    p = softmax(LOGITS.astype(np.float64), -1)
    past = PAST.copy()
    past[INDEX] = p
    np.testing.assert_allclose(gradient(past, LOGITS, 0.4), 0.6 * (p - ONE_HOT), rtol=1e-5, atol=1e-6)


def test_other_rows_stay_bit_for_bit():
    before = jnp.asarray(PAST, jnp.float32)
    _, state = step(PskdState(before), LOGITS, LABELS, INDEX, alpha=0.5)
    np.testing.assert_array_equal(state.past[np.array([1, 3])], before[np.array([1, 3])])
    np.testing.assert_allclose(state.past[INDEX], softmax(LOGITS, -1), rtol=1e-5)


def test_gradient_scale_is_the_ratio_to_cross_entropy_on_the_label():
    p = softmax(LOGITS.astype(np.float64), -1)
    rows = np.arange(3)
    ours = gradient(PAST, LOGITS, 0.4)[rows, LABELS]
    plain = (p - ONE_HOT)[rows, LABELS]
    scale = pskd_gradient_scale(p[rows, LABELS], PAST[INDEX, LABELS], alpha=0.4)
    np.testing.assert_allclose(scale, ours / plain, rtol=1e-4)


def test_gradient_scale_by_hand():
    """1 - 0.5 * (1 - 0.2) / (1 - 0.5); sure of the label now and before, only the floor of 1e-6 remains."""
    scale = pskd_gradient_scale(np.array([0.5, 1.0]), np.array([0.2, 1.0]), alpha=0.5)
    np.testing.assert_allclose(scale, [0.2, 1.0], rtol=1e-6)


@pytest.mark.parametrize(("sizes", "name"), [((0, 2), "num_examples"), ((2, 0), "num_classes")])
def test_empty_states_are_refused(sizes, name):
    with pytest.raises(ValueError, match=rf"{name} must be in \[1, inf\)"):
        pskd_init(*sizes)
