"""Robust distances against their equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.losses import cauchy, pseudo_huber


def slope(loss, r, c):
    """The derivative of a distance with respect to its radius."""
    return jax.grad(lambda r: loss(jnp.array([0.0, 0.0, r]), jnp.zeros(3), c=c))(r)


@pytest.mark.parametrize("r", [0.0, 1e-6, 1e-3, 0.03, 1.0, 1e4])
def test_both_equal_their_equations_in_float64(r):
    x, y, c = np.float32([0.6 * r, 0.0]), np.float32([0.0, 0.8 * r]), 0.03
    squared = np.sum((x.astype(np.float64) - y) ** 2)
    # The equation loses all digits in float64 for r = 1e-6: there, its series r^2/2c - r^4/8c^3.
    exact = np.sqrt(squared + c**2) - c if r > 1e-3 else squared / (2 * c) - squared**2 / (8 * c**3)
    np.testing.assert_allclose(pseudo_huber(x, y, c=c), exact, rtol=1e-6)
    np.testing.assert_allclose(cauchy(x, y, c=c), np.log1p(squared / (2 * c**2)), rtol=1e-6)


def test_the_norm_is_over_the_whole_vector():
    x, y = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.zeros([2, 2])
    np.testing.assert_allclose(pseudo_huber(x, y, c=12.0), [13.0 - 12.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(cauchy(x, y, c=5.0), [np.log(1.5), 0.0], rtol=1e-6)


def test_the_pull_of_pseudo_huber_is_bounded_by_one():
    np.testing.assert_allclose(slope(pseudo_huber, 0.04, 0.03), 0.8, rtol=1e-6)
    np.testing.assert_allclose(slope(pseudo_huber, 1e4, 0.03), 1.0, rtol=1e-6)
    assert slope(pseudo_huber, 0.0, 0.03) == 0.0


def test_the_pull_of_cauchy_peaks_at_root_two_c():
    c = 0.01
    radii = jnp.linspace(0.001, 0.1, 991)
    slopes = jax.vmap(lambda r: slope(cauchy, r, c))(radii)
    np.testing.assert_allclose(radii[slopes.argmax()], np.sqrt(2) * c, atol=1e-4)
    np.testing.assert_allclose(slopes.max(), 1 / (np.sqrt(2) * c), rtol=1e-4)
    np.testing.assert_allclose(slopes, 2 * radii / (2 * c**2 + radii**2), rtol=1e-4)


def test_cauchy_is_quadratic_near_zero():
    np.testing.assert_allclose(cauchy(jnp.array([1e-4]), jnp.array([0.0]), c=1.0), 0.5e-8, rtol=1e-4)


@pytest.mark.parametrize("loss", [pseudo_huber, cauchy])
def test_errors_and_gradients_are_finite_up_to_ten_thousand(loss):
    value, gradient = jax.value_and_grad(lambda x: loss(x, -x, c=1e-4))(jnp.full(8, 1e4))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
