"""Initial and reshaped weights against the distribution that they should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.losses import ggd_fit
from jaxreg.weights import deepshape, ggd_init


@pytest.mark.parametrize(("mode", "variance"), [("he", 2 / 60), ("xavier", 2 / 4860), ("lecun", 1 / 60)])
def test_initial_kernels_have_variance_and_shape(mode, variance):
    """A kernel of 3 x 4 positions, 5 inputs and 400 outputs."""
    init = ggd_init(shape=1.0, mode=mode)
    kernel = np.asarray(jax.jit(init, static_argnums=1)(jax.random.key(0), (3, 4, 5, 400)))
    np.testing.assert_allclose(kernel.var(), variance, rtol=0.05)
    scale = np.sqrt(variance / 2)  # of Laplace's distribution
    assert scipy.stats.kstest(kernel.ravel(), scipy.stats.laplace(scale=scale).cdf).pvalue > 0.01
    assert init(jax.random.key(0), (4, 4), jnp.bfloat16).dtype == jnp.bfloat16


def test_vectors_have_no_fan_in():
    with pytest.raises(ValueError, match=r"at least two axes, got dimensions \(3,\)"):
        ggd_init()(jax.random.key(0), (3,))


def test_full_strength_gives_the_quantiles_in_order():
    weights = jax.random.normal(jax.random.key(0), [40, 25])
    shaped = np.asarray(jax.jit(deepshape)({"w": weights})["w"])
    np.testing.assert_array_equal(np.argsort(shaped.ravel()), np.argsort(np.asarray(weights).ravel()))
    quantiles = scipy.stats.laplace.ppf((np.arange(1000) + 0.5) / 1000)
    quantiles *= np.sqrt(np.mean(np.square(weights)) / np.mean(quantiles**2))
    np.testing.assert_allclose(np.sort(shaped.ravel()), quantiles, rtol=1e-3, atol=1e-5)
    # A thousand quantiles lack the tail beyond them.
    np.testing.assert_allclose(ggd_fit(shaped).shape, 1.0, rtol=0.03)


def test_strength_interpolates_and_members_of_a_vmap_have_their_own_ranks():
    weights = jax.random.normal(jax.random.key(2), [3, 20])
    shaped = jax.jit(jax.vmap(lambda w, strength: deepshape(w, shape=1.0, strength=strength), in_axes=(0, None)))
    full = shaped(weights, 1.0)
    for strength in (0.0, 0.3):
        expected = (1 - strength) * weights + strength * full
        np.testing.assert_allclose(shaped(weights, strength), expected, rtol=1e-4, atol=1e-6)
    for row, before in zip(full, weights, strict=True):
        quantiles = scipy.stats.laplace.ppf((np.argsort(np.argsort(before)) + 0.5) / 20)
        np.testing.assert_allclose(row / np.abs(row).max(), quantiles / np.abs(quantiles).max(), rtol=1e-3, atol=1e-5)


def test_equal_values_stay_equal():
    shaped = jax.jit(lambda w: deepshape(w, shape=1.0))
    # Ranks (1, 2.5, 2.5, 4): quantiles of Laplace's distribution at 1/8, 1/2 and 7/8.
    outer = np.log(4.0)
    target = np.array([-outer, 0.0, 0.0, outer]) * np.sqrt((4 + 1 + 1 + 9) / (2 * outer**2))
    np.testing.assert_allclose(shaped(jnp.array([-2.0, 1.0, 1.0, 3.0])), target, rtol=1e-4, atol=1e-6)
    # Ranks (1.5, 1.5, 3, 4): quantiles at 1/4 twice, 5/8 and 7/8.
    quantiles = scipy.stats.laplace.ppf([1 / 4, 1 / 4, 5 / 8, 7 / 8])
    target = quantiles * np.sqrt((1 + 1 + 1 + 4) / np.sum(quantiles**2))
    np.testing.assert_allclose(shaped(jnp.array([-1.0, -1.0, 1.0, 2.0])), target, rtol=1e-4)
    np.testing.assert_array_equal(shaped(jnp.zeros(4)), np.zeros(4))
    np.testing.assert_array_equal(deepshape(jnp.zeros([0, 3])), np.zeros([0, 3]))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 2"):
        deepshape(jnp.ones(3), strength=2)
    with pytest.raises(ValueError, match=r"shape must be in \(0, inf\), got 0"):
        ggd_init(shape=0)
