"""Norms by hand, and the theorems that tie them to the trace of the Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import gauss_newton_features, hessian_trace
from jaxreg.penalties import diagonal_net_l1, path_norm


def test_path_norm_by_hand():
    kernel_in = jnp.array([[3.0, 0.0, 1.0], [4.0, -2.0, 1.0]])
    np.testing.assert_allclose(path_norm(kernel_in, jnp.array([2.0, -1.0, 0.0])), 10.0 + 2.0, rtol=1e-6)
    np.testing.assert_allclose(path_norm(kernel_in, jnp.array([2.0, -1.0, 0.0]), order=1), 14.0 + 2.0, rtol=1e-6)
    kernel_out = jnp.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(path_norm(kernel_in, kernel_out), 25.0 + np.sqrt(2.0), rtol=1e-6)


def test_path_norm_is_blind_to_rescaling_neurons():
    kernel_in, output = jax.random.normal(jax.random.key(0), [3, 5]), jnp.arange(5.0)
    scale = jnp.array([0.1, 1.0, 2.0, 30.0, 5.0])
    np.testing.assert_allclose(path_norm(kernel_in * scale, output / scale), path_norm(kernel_in, output), rtol=1e-5)


def test_dead_neurons_have_a_gradient_of_zero():
    gradient = jax.grad(lambda w: path_norm(w, jnp.zeros(2)))(jnp.zeros([3, 2]))
    np.testing.assert_array_equal(gradient, np.zeros([3, 2]))


@pytest.mark.parametrize("balanced", [False, True])
def test_trace_of_a_relu_network_is_bounded_by_its_path_norm(balanced):
    """Inputs with their negatives and covariance I: each neuron is on for one of every pair."""
    d, hidden = 4, 6
    rng = np.random.default_rng(0)
    half = np.linalg.qr(rng.normal(size=(12, d)))[0] * np.sqrt(12)
    x = jnp.asarray(np.concatenate([half, -half]), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(d, hidden)), jnp.float32)}
    sign = rng.choice([-1.0, 1.0], hidden)
    balance = np.linalg.norm(params["w"], axis=0) / np.sqrt(d)
    params["v"] = jnp.asarray(sign * balance if balanced else rng.normal(size=hidden), jnp.float32)
    a = gauss_newton_features(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], params, x)
    trace, bound = hessian_trace(a), np.sqrt(d) * path_norm(params["w"], params["v"])
    if balanced:
        np.testing.assert_allclose(trace, bound, rtol=1e-5)
    else:
        assert trace > 1.05 * bound


@pytest.mark.parametrize("sparse", [False, True])
def test_trace_of_a_diagonal_network_is_bounded_by_the_l1_norm(sparse):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 5)).astype(np.float32)
    params = {name: jnp.asarray(rng.normal(size=5), jnp.float32) for name in "uv"}
    if sparse:
        on = jnp.array([True, False, True, True, False])
        params = {"u": jnp.where(on, params["u"], 0.0), "v": jnp.where(on, 0.0, params["v"])}
    a = gauss_newton_features(lambda p, x: x @ (p["u"] ** 2 - p["v"] ** 2), params, x)
    norm = diagonal_net_l1(params["u"], params["v"], second_moments=np.mean(x**2, axis=0))
    if sparse:
        np.testing.assert_allclose(hessian_trace(a), 4 * norm, rtol=1e-5)
    else:
        assert hessian_trace(a) > 4.1 * norm


def test_diagonal_net_l1_by_hand():
    u, v = jnp.array([2.0, 0.0, 1.0]), jnp.array([1.0, 3.0, 1.0])
    np.testing.assert_allclose(diagonal_net_l1(u, v), 12.0, rtol=1e-6)
    np.testing.assert_allclose(diagonal_net_l1(u, v, second_moments=jnp.array([2.0, 0.5, 9.0])), 10.5, rtol=1e-6)
