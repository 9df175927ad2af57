"""Penalties around an anchor: values and gradients by hand, the Fisher information of known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.penalties import anchor_distance, ewc, fisher_diagonal

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
ANCHOR = {"a": jnp.array([0.5, -2.0]), "b": jnp.array([[5.0]])}
FISHER = {"a": jnp.array([4.0, 7.0]), "b": jnp.array([[0.5]])}


def test_distances_by_hand():
    np.testing.assert_allclose(anchor_distance(PARAMS, ANCHOR, kind="l1"), 2.5)
    np.testing.assert_allclose(anchor_distance(PARAMS, ANCHOR), 0.5 * (0.25 + 4))
    assert float(anchor_distance({}, {})) == 0.0
    gradient = jax.grad(lambda p: anchor_distance(p, ANCHOR))(PARAMS)
    np.testing.assert_allclose(gradient["a"], [0.5, 0.0])


def test_half_precision_is_summed_in_single():
    ones = jnp.ones([1000], jnp.bfloat16)
    np.testing.assert_array_equal(anchor_distance(ones, 0 * ones, kind="l1"), 1000.0)


def test_ewc_by_hand():
    np.testing.assert_allclose(ewc(PARAMS, ANCHOR, FISHER, lam=3.0), 1.5 * (4 * 0.25 + 0.5 * 4))
    assert float(ewc(ANCHOR, ANCHOR, FISHER, lam=5e8)) == 0.0


def test_gradient_of_ewc_is_importance_times_distance():
    gradients = jax.grad(lambda p, a, f: ewc(p, a, f, lam=3.0), argnums=(0, 1, 2))(PARAMS, ANCHOR, FISHER)
    np.testing.assert_allclose(gradients[0]["a"], [3 * 4 * 0.5, 0.0])
    np.testing.assert_allclose(gradients[0]["b"], [[3 * 0.5 * -2]])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients[1:]))


def test_negative_strength_is_named():
    with pytest.raises(ValueError, match=r"lam must be in \[0, inf\), got -1"):
        ewc(PARAMS, ANCHOR, FISHER, lam=-1)


def test_fisher_information_of_a_gaussian():
    """Of the mean 1 / sigma^2, of sigma 2 / sigma^2."""
    sigma = 1.5
    samples = 0.3 + sigma * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)

    def log_likelihood(params, x):
        return -0.5 * ((x - params["mean"]) / params["sigma"]) ** 2 - jnp.log(params["sigma"])

    fisher = fisher_diagonal(log_likelihood, {"mean": jnp.array(0.3), "sigma": jnp.array(sigma)}, samples)
    np.testing.assert_allclose(fisher["mean"], 1 / sigma**2, rtol=0.03)
    np.testing.assert_allclose(fisher["sigma"], 2 / sigma**2, rtol=0.05)


def test_gradients_are_squared_before_the_mean():
    fisher = fisher_diagonal(lambda w, x: w * x, jnp.array(1.0, jnp.bfloat16), jnp.array([3.0, -3.0], jnp.bfloat16))
    assert float(fisher) == 9.0
    assert fisher.dtype == jnp.float32


def test_nothing_is_broadcast():
    column, vector = {"bias": jnp.zeros([3, 1])}, {"bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"anchor\['bias'\] must have shape \[3\], got \[3, 1\]"):
        anchor_distance(vector, column)
    with pytest.raises(ValueError, match=r"fisher\['bias'\] must have shape \[3\], got \[\]"):
        ewc(vector, vector, {"bias": jnp.ones([])}, lam=1.0)
