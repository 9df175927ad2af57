"""Regret by hand, and what defines the sequences between stochastic and adversarial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import sea_losses
from jaxreg.metrics import dynamic_regret, path_length, sea_quantities, static_regret


def test_regrets_by_hand():
    losses = jnp.array([1.0, 2.0, 0.0])
    assert float(static_regret(losses, jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.5]]))) == 2.5
    assert float(dynamic_regret(losses, jnp.array([0.0, 0.0, 1.0]))) == 2.0


def test_path_length_by_hand():
    assert float(path_length(jnp.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 3.0]]))) == 6.0
    assert float(path_length(jnp.ones([1, 3]))) == 0.0


def test_quantities_by_hand():
    means = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    gradients = means + jnp.array([[1.0, 0.0], [0.0, -2.0], [0.0, 0.0]])
    variance, variation = sea_quantities(gradients, means)
    assert (float(variance), float(variation)) == (5.0, 5.0)
    samples = jnp.stack([gradients, means], axis=1)
    assert float(sea_quantities(samples, means).variance) == 2.5


def test_losses_have_the_stated_quantities():
    losses = sea_losses(jax.random.key(0), 1000, 5, flip_every=100, noise=0.5)
    variance, variation = sea_quantities(losses.gradients, losses.means)
    np.testing.assert_allclose(variation, 9 * 4.0, rtol=1e-5)
    np.testing.assert_allclose(variance, 1000 * 0.25, rtol=0.1)
    np.testing.assert_allclose(jnp.linalg.norm(losses.means, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(losses.means[100], -losses.means[99], rtol=1e-6)
    np.testing.assert_allclose(losses.means[199], -losses.means[0], rtol=1e-6)


def test_without_noise_gradients_are_their_means():
    losses = sea_losses(jax.random.key(0), 30, 2, flip_every=7)
    np.testing.assert_array_equal(losses.gradients, losses.means)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"noise must be in \[0, inf\), got -1"):
        sea_losses(jax.random.key(0), 3, 2, noise=-1.0)
    with pytest.raises(ValueError, match=r"flip_every must be in \[1, inf\), got 0"):
        sea_losses(jax.random.key(0), 3, 2, flip_every=0)
