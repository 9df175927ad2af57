"""Curvature against Hessians written out, and Lanczos against NumPy's eigenvalues."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxreg.metrics import hessian_vector_product, hutchinson_trace, lanczos_top_eigenvalue, top_eigenvalue

PARAMS = {"w": jnp.array([[0.3, -0.5], [0.2, 0.9]]), "b": jnp.array([0.1, -0.2]), "c": jnp.array(0.7)}


def loss(params):
    hidden = jnp.tanh(jnp.array([[1.0, -2.0], [0.5, 0.3], [2.0, 1.0]]) @ params["w"] + params["b"])
    return jnp.sum(jnp.square(params["c"] * hidden.sum(1) - 1.0))


@functools.cache
def dense_hessian():
    flat, unravel = ravel_pytree(PARAMS)
    return np.asarray(jax.jit(jax.hessian(lambda x: loss(unravel(x))))(flat), np.float64)


def test_products_are_those_of_the_dense_hessian():
    vector = jax.tree.map(jnp.sin, PARAMS)
    product = jax.jit(lambda p, v: hessian_vector_product(loss, p, v))(PARAMS, vector)
    assert jax.tree.structure(product) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(ravel_pytree(product)[0], dense_hessian() @ ravel_pytree(vector)[0], rtol=1e-4)


def test_a_diagonal_hessian_needs_one_sample():
    curvatures = jnp.array([1.0, -2.0, 5.0])
    trace = hutchinson_trace(jax.random.key(3), lambda p: 0.5 * jnp.sum(curvatures * p**2), jnp.ones(3), num_samples=1)
    np.testing.assert_allclose(trace, 4.0, rtol=1e-6)


def test_trace_estimates_have_hutchinsons_mean_and_variance():
    hessian = dense_hessian()
    estimate = jax.jit(jax.vmap(lambda key: hutchinson_trace(key, loss, PARAMS, num_samples=1)))
    estimates = np.asarray(estimate(jax.random.split(jax.random.key(0), 4000)), np.float64)
    variance = 2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2))
    np.testing.assert_allclose(estimates.mean(), np.trace(hessian), atol=4 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(estimates.var(), variance, rtol=0.1)


def test_top_eigenvalue_is_that_of_the_dense_hessian():
    """Seven parameters: Lanczos is exhausted after seven steps, and further ones are not taken."""
    sharpness = jax.jit(lambda key: top_eigenvalue(key, loss, PARAMS, iterations=20))(jax.random.key(0))
    np.testing.assert_allclose(sharpness, np.linalg.eigvalsh(dense_hessian())[-1], rtol=1e-5)


@pytest.mark.parametrize("spectrum", ["negative", "clustered", "low rank", "repeated"])
def test_lanczos_finds_the_largest_eigenvalue(spectrum):
    rng = np.random.default_rng(0)
    eigenvalues = {
        "negative": -np.arange(1.0, 81.0),
        "clustered": np.append(np.full(40, 1.0) + 1e-3 * rng.normal(size=40), np.linspace(-0.5, 2.0, 40)),
        "low rank": np.append(np.zeros(77), [1.0, 2.0, 3.0]),
        "repeated": np.repeat([1.0, -7.0], 40),
    }[spectrum]
    basis = np.linalg.qr(rng.normal(size=(80, 80)))[0]
    matrix = jnp.asarray(basis * eigenvalues @ basis.T, jnp.float32)
    start = jnp.asarray(rng.normal(size=80), jnp.float32)
    found = jax.jit(lambda m: lanczos_top_eigenvalue(lambda v: m @ v, start, iterations=50))(matrix)
    np.testing.assert_allclose(found, eigenvalues.max(), rtol=1e-4)


def test_lanczos_by_hand():
    """One step is a Rayleigh quotient; an eigenvector orthogonal to the start is not found."""
    diagonal = jnp.array([1.0, 3.0, 10.0])

    def found(start, iterations):
        return lanczos_top_eigenvalue(lambda v: diagonal * v, jnp.asarray(start), iterations=iterations)

    np.testing.assert_allclose(found([1.0, 1.0, 0.0], 1), 2.0, rtol=1e-6)
    np.testing.assert_allclose(found([1.0, 1.0, 0.0], 3), 3.0, rtol=1e-6)
    np.testing.assert_allclose(found([0.0, 0.0, 5.0], 2), 10.0, rtol=1e-6)
    assert float(lanczos_top_eigenvalue(lambda v: v, {}, iterations=2)) == 0.0


def test_half_precision_parameters_are_widened():
    params = jnp.array([1.0, 2.0], jnp.bfloat16)
    product = hessian_vector_product(lambda p: jnp.sum(1.001 * p**2), params, jnp.array([1.0, 0.0], jnp.bfloat16))
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, [2.002, 0.0], rtol=1e-6)


def test_float32_parameters_stay_so_in_float64_mode():
    curvatures = np.array([1.0, 4.0, -2.0], np.float32)

    def bowl(params):
        return 0.5 * jnp.sum(curvatures * params["w"] ** 2)

    with jax.enable_x64(True):
        params = {"w": jnp.ones(3, jnp.float32)}
        for measure in (top_eigenvalue, hutchinson_trace):
            value = measure(jax.random.key(0), bowl, params)
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, 4.0 if measure is top_eigenvalue else 3.0, rtol=1e-5)


def test_lanczos_never_multiplies_in_less_than_float32():
    program = jax.jit(lambda v: lanczos_top_eigenvalue(jnp.sin, v)).lower(jnp.ones(9)).as_text()
    assert program.count("dot_general") == program.count("precision = [HIGHEST, HIGHEST]")


def test_usable_inside_a_training_loop():
    """Gradient descent on a parabola, with its curvature as telemetry of every step."""

    def step(params, key):
        telemetry = top_eigenvalue(key, lambda p: jnp.sum(p**4), params), hutchinson_trace(key, loss, PARAMS)
        return params - 0.01 * 4 * params**3, telemetry

    keys = jax.random.split(jax.random.key(0), 3)
    _, (sharpness, _) = jax.jit(lambda p: jax.lax.scan(step, p, keys))(jnp.array([1.0, 0.5]))
    expected, x = [], 1.0
    for _ in range(3):
        expected.append(12 * x**2)
        x -= 0.04 * x**3
    np.testing.assert_allclose(sharpness, expected, rtol=1e-5)


def test_bad_budgets_are_named():
    with pytest.raises(ValueError, match=r"num_samples must be in \[1, inf\), got 0"):
        hutchinson_trace(jax.random.key(0), loss, PARAMS, num_samples=0)
    with pytest.raises(ValueError, match=r"iterations must be in \[1, inf\), got 0"):
        top_eigenvalue(jax.random.key(0), loss, PARAMS, iterations=0)
