import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from jaxreg.losses import expected_loss, ldr_kl, soft_cross_entropy

LOGITS = 3 * jax.random.normal(jax.random.key(0), [2, 3, 4])
TARGETS = jax.nn.softmax(jax.random.normal(jax.random.key(1), [2, 3, 4]))


def hard_loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def test_soft_cross_entropy_against_scipy():
    expected = -(np.asarray(TARGETS, np.float64) * log_softmax(np.asarray(LOGITS, np.float64), -1)).sum(-1)
    np.testing.assert_allclose(soft_cross_entropy(LOGITS, TARGETS), expected, rtol=2e-6)
    gradient = jax.grad(lambda f: soft_cross_entropy(f, TARGETS).sum())(LOGITS)
    np.testing.assert_allclose(gradient, softmax(LOGITS, -1) - TARGETS, atol=1e-6)


def test_no_gradient_flows_through_soft_targets():
    gradient = jax.grad(lambda t: soft_cross_entropy(LOGITS, t).sum())(TARGETS)
    np.testing.assert_array_equal(gradient, np.zeros_like(TARGETS))


@pytest.mark.parametrize("shift", [1e3, -1e4])
def test_soft_cross_entropy_hardly_feels_a_shift_of_all_logits(shift):
    shifted = soft_cross_entropy(LOGITS + shift, TARGETS)
    np.testing.assert_allclose(shifted, optax.softmax_cross_entropy(LOGITS + shift, TARGETS), atol=1e-6 * abs(shift))


def test_of_cross_entropy_it_is_cross_entropy_with_soft_targets():
    expected = optax.softmax_cross_entropy(LOGITS, TARGETS)
    np.testing.assert_allclose(expected_loss(hard_loss, LOGITS, TARGETS), expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_labels_count_by_their_shares(share):
    labels = jnp.array([[0, 1, 2], [3, 0, 1]])
    others = (labels + 1) % 4
    targets = share * jax.nn.one_hot(labels, 4) + (1 - share) * jax.nn.one_hot(others, 4)
    expected = share * ldr_kl(LOGITS, labels) + (1 - share) * ldr_kl(LOGITS, others)
    np.testing.assert_allclose(expected_loss(ldr_kl, LOGITS, targets), expected, rtol=2e-6, atol=1e-6)


def test_what_has_no_probability_counts_nothing_even_if_impossible():
    logits = jnp.array([0.0, 1.0, -jnp.inf])
    value, gradient = jax.value_and_grad(lambda f: expected_loss(hard_loss, f, jnp.array([0.5, 0.5, 0.0])))(logits)
    assert value == pytest.approx(np.log1p(np.e) - 0.5, rel=1e-6)
    np.testing.assert_allclose(gradient[:2], np.array([1, np.e]) / (1 + np.e) - 0.5, rtol=1e-6)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(TypeError, match="targets"):
        expected_loss(hard_loss, LOGITS, TARGETS[..., :3])
