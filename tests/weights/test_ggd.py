"""Initial and reshaped weights against the distribution that they should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.losses import ggd_fit
from jaxreg.weights import deepshape, ggd_init


@pytest.mark.parametrize(("mode", "variance"), [("he", 2 / 60), ("xavier", 2 / 300), ("lecun", 1 / 60)])
def test_initial_kernels_have_variance_and_shape(mode, variance):
    """A kernel of 3 x 4 positions, 5 inputs and 20 outputs."""
    init = ggd_init(shape=1.0, mode=mode)
    kernels = np.concatenate([init(jax.random.key(seed), (3, 4, 5, 20)).ravel() for seed in range(20)])
    np.testing.assert_allclose(kernels.var(), variance, rtol=0.05)
    scale = np.sqrt(variance / 2)  # of Laplace's distribution
    assert scipy.stats.kstest(kernels, scipy.stats.laplace(scale=scale).cdf).pvalue > 0.01
    assert init(jax.random.key(0), (4, 4), jnp.bfloat16).dtype == jnp.bfloat16


def test_vectors_have_no_fan_in():
    with pytest.raises(ValueError, match=r"at least two axes, got dimensions \(3,\)"):
        ggd_init()(jax.random.key(0), (3,))


def test_full_strength_gives_the_quantiles_in_order():
    weights = jax.random.normal(jax.random.key(0), [40, 25])
    shaped = np.asarray(deepshape({"w": weights}, shape=1.0)["w"])
    np.testing.assert_array_equal(np.argsort(shaped.ravel()), np.argsort(np.asarray(weights).ravel()))
    quantiles = scipy.stats.laplace.ppf((np.arange(1000) + 0.5) / 1000)
    quantiles *= np.sqrt(np.mean(np.square(weights)) / np.mean(quantiles**2))
    np.testing.assert_allclose(np.sort(shaped.ravel()), quantiles, rtol=1e-3, atol=1e-5)
    # A thousand quantiles lack the tail beyond them.
    np.testing.assert_allclose(ggd_fit(shaped).shape, 1.0, rtol=0.03)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_strength_interpolates(strength):
    weights = jax.random.normal(jax.random.key(1), [50])
    full = deepshape(weights, shape=0.7)
    ours = deepshape(weights, shape=0.7, strength=strength)
    np.testing.assert_allclose(ours, (1 - strength) * weights + strength * full, rtol=1e-4, atol=1e-6)


def test_equal_values_stay_equal():
    """Ranks (1, 2.5, 2.5, 4): quantiles of Laplace's distribution at 1/8, 1/2 and 7/8."""
    outer = np.log(4.0)
    target = np.array([-outer, 0.0, 0.0, outer]) * np.sqrt((4 + 1 + 1 + 9) / (2 * outer**2))
    np.testing.assert_allclose(deepshape(jnp.array([-2.0, 1.0, 1.0, 3.0])), target, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(deepshape(jnp.zeros(7)), np.zeros(7))
    np.testing.assert_array_equal(deepshape(jnp.zeros([0, 3])), np.zeros([0, 3]))


def test_small_ties_at_an_end():
    """Ranks (1.5, 1.5, 3): quantiles at 1/3 twice and at 5/6."""
    quantiles = scipy.stats.laplace.ppf([1 / 3, 1 / 3, 5 / 6])
    quantiles *= np.sqrt(3 / np.sum(quantiles**2))
    np.testing.assert_allclose(deepshape(jnp.array([-1.0, -1.0, 1.0])), quantiles, rtol=1e-4)


def test_under_vmap_each_member_has_its_own_ranks():
    weights = jax.random.normal(jax.random.key(2), [3, 20])
    together = jax.jit(jax.vmap(lambda w: deepshape(w, shape=1.3)))(weights)
    np.testing.assert_allclose(together[1], deepshape(weights[1], shape=1.3), rtol=1e-4)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 2"):
        deepshape(jnp.ones(3), strength=2)
    with pytest.raises(ValueError, match=r"shape must be in \(0, inf\), got 0"):
        ggd_init(shape=0)
