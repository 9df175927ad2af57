"""Multiplicative noise against the moments of a weighted mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxreg.optim import multiplicative_noise_gradient

GRADIENTS = {
    "kernel": jax.random.normal(jax.random.key(0), [6, 2, 3]),
    "bias": 1.0 + jax.random.normal(jax.random.key(1), [6]),
}


def test_without_noise_it_is_the_mean():
    ours = multiplicative_noise_gradient(jax.random.key(0), GRADIENTS, sigma=0.0)
    for name, gradients in GRADIENTS.items():
        np.testing.assert_allclose(ours[name], np.asarray(gradients).mean(0), rtol=1e-5, atol=1e-6)


def test_mean_and_covariance_over_many_draws():
    """The gradients' mean, and sigma^2 / B times their second moment, also between leaves; within 4.5 errors."""
    draws, sigma = 20_000, 1.5
    keys = jax.random.split(jax.random.key(2), draws)
    noisy = jax.jit(jax.vmap(lambda key: multiplicative_noise_gradient(key, GRADIENTS, sigma=sigma)))(keys)

    def flat(tree):
        return np.concatenate(
            [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], 1
        )

    given, noisy = flat(GRADIENTS), flat(noisy)
    covariance = sigma**2 * given.T @ given / 36
    error = np.sqrt(np.diag(covariance) / draws)
    assert (np.abs(noisy.mean(0) - given.mean(0)) < 4.5 * error).all()
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert (np.abs(np.cov(noisy.T) - covariance) < 4.5 * np.sqrt(2 / draws) * scale).all()


def test_noise_on_losses_is_noise_on_gradients():
    """The gradient of sum_n z_n (w . x_n) / B is the weighted mean of the x_n."""
    x, key = GRADIENTS["kernel"].reshape(6, 6), jax.random.key(3)
    by_losses = jax.grad(lambda w: multiplicative_noise_gradient(key, x @ w, sigma=0.7))(jnp.ones(6))
    np.testing.assert_allclose(by_losses, multiplicative_noise_gradient(key, x, sigma=0.7), rtol=1e-5, atol=1e-6)


def test_half_precision_is_averaged_in_float32():
    ones = jnp.full([3000], 1.0, jnp.bfloat16)
    mean = multiplicative_noise_gradient(jax.random.key(0), ones, sigma=0.0)
    assert (mean.dtype, float(mean)) == (jnp.bfloat16, 1.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"sigma must be in \[0, inf\), got -1"):
        multiplicative_noise_gradient(jax.random.key(0), GRADIENTS, sigma=-1)
    with pytest.raises(TypeCheckError, match="per_example_gradients"):
        multiplicative_noise_gradient(jax.random.key(0), {**GRADIENTS, "bias": jnp.ones(5)}, sigma=1.0)
    assert multiplicative_noise_gradient(jax.random.key(0), {}, sigma=1.0) == {}
