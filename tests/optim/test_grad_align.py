"""Gradient alignment against a projection in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.optim import align_to_primary

PRIMARY = {"w": np.array([[3.0, 0.0], [0.0, 4.0]], np.float32), "b": np.array([0.0], np.float32)}


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_conflict_is_projected_out(scale):
    auxiliary = {"w": np.array([[-2.0, 1.0], [5.0, -1.0]], np.float32), "b": np.array([7.0], np.float32)}
    primary = jax.tree.map(lambda x: np.float32(scale) * x, PRIMARY)
    aligned = align_to_primary(primary, auxiliary)
    p, a = flat(PRIMARY), flat(auxiliary)
    assert a @ p < 0
    np.testing.assert_allclose(flat(aligned), a - (a @ p) / (p @ p) * p, rtol=1e-6)
    assert abs(flat(aligned) @ p) < 1e-5


def test_without_conflict_nothing_changes():
    auxiliary = {"w": np.array([[2.0, -1.0], [5.0, -1.0]], np.float32), "b": np.array([-7.0], np.float32)}
    jax.tree.map(np.testing.assert_array_equal, align_to_primary(PRIMARY, auxiliary), auxiliary)


def test_conflict_is_that_of_the_whole_tree():
    """The leaves conflict one by one in ``w`` only; the inner product of all is positive."""
    primary = {"w": jnp.array([1.0]), "b": jnp.array([2.0])}
    auxiliary = {"w": jnp.array([-1.0]), "b": jnp.array([2.0])}
    jax.tree.map(np.testing.assert_array_equal, align_to_primary(primary, auxiliary), auxiliary)


def test_without_a_primary_gradient_nothing_changes():
    auxiliary = jax.tree.map(lambda x: x - 1, PRIMARY)
    zero = jax.tree.map(np.zeros_like, PRIMARY)
    jax.tree.map(np.testing.assert_array_equal, align_to_primary(zero, auxiliary), auxiliary)


def test_half_precision_stays_so():
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PRIMARY)
    aligned = align_to_primary(half, jax.tree.map(jnp.negative, half))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(aligned))
    np.testing.assert_array_equal(flat(aligned), np.zeros(5))
