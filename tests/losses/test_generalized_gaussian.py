"""The generalized Gaussian against scipy.stats.gennorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.losses import ggd_fit, ggd_kurtosis, ggd_log_prob, ggd_quantile, ggd_sample, ggd_variance

SHAPES = [0.4, 1.0, 1.7, 2.0, 8.0]
SAMPLE = jax.jit(lambda key, shape: ggd_sample(key, (100, 200), shape=shape, scale=0.7))
QUANTILE = jax.jit(lambda p, shape: ggd_quantile(p, shape=shape, scale=0.7))
FIT = jax.jit(ggd_fit)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_density_is_scipys(shape):
    x = np.linspace(-4, 4, 41).astype(np.float32)
    ours = ggd_log_prob(x, shape=shape, scale=1.3)
    np.testing.assert_allclose(ours, scipy.stats.gennorm.logpdf(x, shape, scale=1.3), rtol=2e-5, atol=1e-5)


def test_each_value_may_have_its_own_distribution():
    x, shape, scale = (jnp.array(v) for v in ([0.5, -1.0, 2.0], [0.7, 1.0, 3.0], [1.0, 0.5, 2.0]))
    ours = ggd_log_prob(x, shape=shape, scale=scale)
    np.testing.assert_allclose(ours, scipy.stats.gennorm.logpdf(x, shape, scale=scale), rtol=1e-5)


def test_gradients_are_finite_at_zero():
    gradient = jax.jit(jax.grad(lambda x, nu, a: ggd_log_prob(x, shape=nu, scale=a), argnums=(0, 1, 2)))
    for shape in (0.5, 1.0, 2.0):
        slopes = gradient(jnp.array(0.0), jnp.array(shape), jnp.array(2.0))
        assert np.isfinite(slopes).all()
        np.testing.assert_allclose(slopes[0], 0.0)
        np.testing.assert_allclose(slopes[2], -0.5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_follow_the_distribution(shape):
    x = np.asarray(SAMPLE(jax.random.key(0), shape))
    assert x.shape == (100, 200)
    assert scipy.stats.kstest(x.ravel(), scipy.stats.gennorm(shape, scale=0.7).cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_quantiles_are_scipys(shape):
    p = np.array([1e-7, 1e-4, 0.01, 0.2, 0.45, 0.5, 0.51, 0.9, 0.999], np.float32)
    ours = QUANTILE(p, shape)
    np.testing.assert_allclose(
        ours, scipy.stats.gennorm.ppf(p.astype(np.float64), shape, scale=0.7), rtol=3e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_scipys(shape):
    variance, kurtosis = scipy.stats.gennorm.stats(shape, scale=0.7, moments="vk")
    np.testing.assert_allclose(ggd_variance(shape=shape, scale=0.7), variance, rtol=1e-5)
    np.testing.assert_allclose(ggd_kurtosis(shape=shape), kurtosis + 3, rtol=1e-4)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_fit_recovers_shape_and_scale(shape):
    x = scipy.stats.gennorm.rvs(shape, scale=0.03, size=100_000, random_state=0).astype(np.float32)
    ours = FIT(x)
    np.testing.assert_allclose(ours.shape, shape, rtol=0.03)
    np.testing.assert_allclose(ours.scale, 0.03, rtol=0.05)


@pytest.mark.parametrize("values", [[1.0, -1.0, 0.0], [3.0, -1.0, 0.5]])
def test_fit_solves_its_equation(values):
    """(1, -1, 0) has a ratio of 1.5."""
    x = np.array(values)
    ratio = np.mean(x**2) / np.mean(np.abs(x)) ** 2

    def equation(nu):
        g = scipy.special.gammaln
        return g(1 / nu) + g(3 / nu) - 2 * g(2 / nu) - np.log(ratio)

    wanted = scipy.optimize.brentq(equation, 0.05, 50)
    np.testing.assert_allclose(FIT(x.astype(np.float32)).shape, wanted, rtol=1e-3)


def test_scale_does_not_change_the_shape():
    x = jax.random.normal(jax.random.key(0), [1000])
    for factor in (1e-25, 1e25):
        ours, wanted = FIT(factor * x), FIT(x)
        np.testing.assert_allclose(ours.shape, wanted.shape, rtol=1e-3)
        np.testing.assert_allclose(ours.scale / factor, wanted.scale, rtol=1e-3)


def test_zeros_have_no_scale():
    shape, scale = ggd_fit(jnp.zeros(5))
    assert float(scale) == 0.0
    assert np.isfinite(shape)


@pytest.mark.parametrize("name", ["shape", "scale"])
def test_bad_parameters_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, inf\), got 0"):
        ggd_variance(**{"shape": 1.0, "scale": 1.0, name: 0.0})
