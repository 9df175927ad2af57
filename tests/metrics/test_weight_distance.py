"""Distances by hand, and the two laws on exact curves and against SciPy's regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.metrics import distance_from_init, fit_ultra_slow

STEPS = np.array([1, 3, 10, 30, 100, 300])


def test_distance_is_that_of_the_concatenated_weights():
    init = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[0.0]])}
    params = {"a": jnp.array([4.0, 2.0]), "b": jnp.array([[-4.0]])}
    np.testing.assert_allclose(distance_from_init(params, init), 5.0, rtol=1e-6)
    assert float(distance_from_init(params, params)) == 0.0
    assert float(distance_from_init({}, {})) == 0.0


def test_half_precision_distances_do_not_round():
    init = jnp.zeros([10_000], jnp.bfloat16)
    np.testing.assert_allclose(distance_from_init(init + 0.5, init), 50.0, rtol=1e-6)


@pytest.mark.parametrize("slope", [0.3, -2.0])
def test_logarithmic_curves_are_fitted_exactly(slope):
    fit = jax.jit(fit_ultra_slow)(STEPS, (slope * np.log(STEPS) + 1.5).astype(np.float32))
    np.testing.assert_allclose((fit.slope, fit.r2_log), (slope, 1.0), rtol=1e-5)
    assert fit.r2_sqrt < 0.95


def test_square_root_curves_are_fitted_exactly():
    fit = fit_ultra_slow(STEPS, (0.2 * np.sqrt(STEPS) + 1.5).astype(np.float32))
    np.testing.assert_allclose(fit.r2_sqrt, 1.0, rtol=1e-5)
    assert fit.r2_log < 0.95


def test_other_curves_are_fitted_by_regression():
    distances = np.array([0.3, 0.9, 1.0, 1.9, 2.0, 2.7], np.float32)
    log, sqrt = scipy.stats.linregress(np.log(STEPS), distances), scipy.stats.linregress(np.sqrt(STEPS), distances)
    expected = (log.slope, log.rvalue**2, sqrt.rvalue**2)
    np.testing.assert_allclose(fit_ultra_slow(STEPS, distances), expected, rtol=1e-5)
