"""The z-loss against its closed form and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp, softmax

from jaxreg.losses import z_loss

LOGITS = 3 * np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)


def test_it_is_the_squared_log_normalizer():
    np.testing.assert_allclose(z_loss(LOGITS), 1e-4 * logsumexp(LOGITS.astype(np.float64), -1) ** 2, rtol=1e-5)


def test_zero_logits_of_n_classes():
    for classes in (2, 64, 1000):
        np.testing.assert_allclose(z_loss(jnp.zeros([classes]), coeff=0.3), 0.3 * np.log(classes) ** 2, rtol=1e-6)


def test_gradient_is_in_the_direction_of_the_probabilities():
    gradient = jax.jit(jax.grad(lambda z: z_loss(z, coeff=0.1).sum()))(LOGITS)
    wide = LOGITS.astype(np.float64)
    expected = 2 * 0.1 * logsumexp(wide, -1, keepdims=True) * softmax(wide, -1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_normalized_logits_cost_nothing():
    log_p = jax.nn.log_softmax(LOGITS)
    np.testing.assert_allclose(z_loss(log_p, coeff=1.0), np.zeros(4), atol=1e-12)
