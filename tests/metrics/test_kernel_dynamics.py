"""Tangent kernels of models whose gradients are known, and velocities by angle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import kernel_velocity, tangent_kernel

X = jax.random.normal(jax.random.key(0), [4, 3])


def test_kernel_of_a_linear_model():
    """The gradient of output k is x in column k, and 1 in bias k: two outputs give 2 (<x, x'> + 1)."""
    params = {"w": jnp.zeros([3, 2]), "b": jnp.zeros(2)}
    kernel = tangent_kernel(lambda params, x: x @ params["w"] + params["b"], params, X)
    np.testing.assert_allclose(kernel, 2 * (np.asarray(X) @ np.asarray(X).T + 1), rtol=1e-5, atol=1e-6)


def test_kernel_of_a_product_depends_on_the_parameters():
    """f = a b x: the gradients are b x and a x."""
    kernel = tangent_kernel(lambda params, x: params[0] * params[1] * x[:, :1], (2.0 * jnp.ones([]), 3.0), X)
    np.testing.assert_allclose(kernel, 13 * np.outer(X[:, 0], X[:, 0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("after", "steps", "velocity"),
    [
        ([[1, 0], [0, 0]], 1, 0),
        ([[5, 0], [0, 0]], 2, 0),
        ([[0, 0], [0, 2]], 4, 0.25),
        ([[1, 0], [0, 1]], 1, 1 - 0.5**0.5),
    ],
)
def test_velocity_by_hand(after, steps, velocity):
    ours = kernel_velocity(jnp.array([[1.0, 0], [0, 0]]), jnp.array(after, jnp.float32), steps=steps)
    np.testing.assert_allclose(ours, velocity, atol=1e-7)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"^steps must be in \(0, inf\), got 0"):
        kernel_velocity(jnp.eye(2), jnp.eye(2), steps=0)
