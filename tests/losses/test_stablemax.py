"""StableMax against its definition in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxreg.losses import log_stablemax, stablemax_cross_entropy


def s(x):
    x = np.asarray(x, np.float64)
    return np.where(x >= 0, x + 1, 1 / (1 + np.abs(x)))


LOG_STABLEMAX = jax.jit(log_stablemax)
GRADIENT = jax.jit(jax.grad(lambda z: stablemax_cross_entropy(z, jnp.array(0))))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, 5, elements=st.floats(-1e4, 1e4, width=32)))
def test_log_probabilities_follow_the_definition(z):
    np.testing.assert_allclose(LOG_STABLEMAX(z), np.log(s(z) / s(z).sum()), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(np.exp(LOG_STABLEMAX(z)).sum(), 1.0, rtol=5e-6)


def test_equal_logits_of_zero_give_equal_probabilities():
    np.testing.assert_allclose(log_stablemax(jnp.zeros([2, 7])), -np.log(7), rtol=1e-6)


def test_losses_by_hand():
    """s(3) = 4, s(-1) = 1/2, s(0) = 1."""
    logits = jnp.array([[3.0, -1.0, -1.0], [3.0, 0.0, -1.0]])
    losses = stablemax_cross_entropy(logits, jnp.array([0, 2]))
    np.testing.assert_allclose(losses, [np.log(5 / 4), np.log(11)], rtol=1e-6)


@pytest.mark.parametrize("x", [-1e4, -3.0, -1.0, -1e-30, 0.0, 1e-30, 1.0, 3.0, 1e4])
def test_gradient_is_continuous_and_finite(x):
    """(log s)'(x) = 1 / (1 + |x|) on both sides, so with z_1 = 0 the loss has slope -(1 - p) / (1 + |x|)."""
    p = s(x) / (s(x) + 1)
    gradient = GRADIENT(jnp.array([x, 0.0], jnp.float32))
    # The error is that of 1 - p.
    np.testing.assert_allclose(gradient * np.array([1 + abs(x), 1]), [-(1 - p), 1 - p], rtol=1e-5, atol=2e-7)


def test_gradients_last_where_those_of_softmax_are_zero():
    z = jnp.array([120.0, 0.0])
    softmax_gradient = jax.grad(lambda z: -jax.nn.log_softmax(z)[0])(z)
    assert float(softmax_gradient[0]) == 0.0
    np.testing.assert_allclose(GRADIENT(z)[0], -1 / (122 * 121), rtol=1e-4)
