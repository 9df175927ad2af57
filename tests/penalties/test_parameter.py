"""Repulsion from adapted models: closed forms and directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.penalties import repulsion

KINDS = ("exp", "neg_l2", "inv_l2")


def tree(seed, lead=()):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(*lead, 3, 2)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(*lead, 4))),
    }


@pytest.mark.parametrize(("kind", "value"), [("exp", 36.788), ("neg_l2", -1.0), ("inv_l2", 1.0)])
def test_values_at_distance_one(kind, value):
    np.testing.assert_allclose(repulsion(jnp.array(3.0), jnp.array([2.0]), kind=kind), value, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "value"), [("exp", 5 * np.exp(-0.5 * 4.5)), ("neg_l2", -5 * 0.5 * 4.5), ("inv_l2", 5 * 0.5 / 4.5)]
)
def test_distance_is_the_mean_over_models_of_the_mean_over_arrays(kind, value):
    """Array a: means 2 and 0 of the squares; array b: 0 and 16. So d = ((2 + 0) / 2 + (0 + 16) / 2) / 2 = 4.5."""
    params = {"a": jnp.array([2.0, 1.0]), "b": jnp.array(1.0)}
    adapted = {"a": jnp.array([[0.0, 1.0], [2.0, 1.0]]), "b": jnp.array([1.0, 5.0])}
    np.testing.assert_allclose(repulsion(params, adapted, kind=kind, gamma=0.5, weight=5.0), value, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_points_away_from_the_adapted_model(kind):
    params, adapted = tree(0), tree(1, (1,))
    gradient = jax.grad(lambda p: repulsion(p, adapted, kind=kind))(params)
    slopes = jax.tree.map(lambda g, p, n: jnp.vdot(g, p - n[0]), gradient, params, adapted)
    assert all(slope < 0 for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize("kind", KINDS)
def test_identical_copies_are_as_one(kind):
    params, one = tree(0), tree(1, (1,))
    many = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), one)
    np.testing.assert_allclose(repulsion(params, many, kind=kind), repulsion(params, one, kind=kind), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_adapted_model_value_and_gradient_are_finite(kind):
    params = jnp.ones(3)
    value, gradient = jax.value_and_grad(lambda p: repulsion(p, params[None], kind=kind))(params)
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, 0.0)


def test_no_gradient_reaches_the_adapted_models():
    gradients = jax.grad(lambda n: repulsion(tree(0), n))(tree(1, (2,)))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.0), ("weight", -1.0)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        repulsion(jnp.ones(2), jnp.ones([1, 2]), **{name: value})


def test_models_are_like_the_parameters():
    with pytest.raises(ValueError, match=r"adapted must have shape \[models, 3\], got \[2, 4, 3\]"):
        repulsion(jnp.ones(3), jnp.zeros([2, 4, 3]))
