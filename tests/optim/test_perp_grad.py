"""perp_grad against geometry by hand and in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.optim import perp_grad


def project(gradients, weights, **options):
    return PROJECT(gradients, weights, **options)[0]


def _update(gradients, weights, **options):
    transformation = perp_grad(**options)
    return transformation.update(gradients, transformation.init(weights), weights)


PROJECT = jax.jit(_update, static_argnames=("per_leaf", "rescale"))


def reference(gradient, weights, *, rescale):
    g, w = gradient.astype(np.float64), weights.astype(np.float64)
    orthogonal = g - (g * w).sum() / (w * w).sum() * w
    return orthogonal * (np.linalg.norm(g) / np.linalg.norm(orthogonal) if rescale else 1.0)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", [(9,), (4, 5), (2, 3, 4)])
def test_each_array_is_projected_as_one_vector(shape, rescale):
    trees = [{"a": normal(seed, shape), "b": normal(seed + 10, (3,))} for seed in (0, 1)]
    expected = {name: reference(trees[0][name], trees[1][name], rescale=rescale) for name in trees[0]}
    ours = project(*trees, rescale=rescale)
    jax.tree.map(lambda o, e: np.testing.assert_allclose(o, e, rtol=2e-5, atol=1e-6), ours, expected)


@pytest.mark.parametrize("rescale", [False, True])
def test_or_all_arrays_together_are(rescale):
    gradients, weights = ({"a": normal(seed, (4, 5)), "b": normal(seed + 10, (3,))} for seed in (0, 1))
    flat = [np.concatenate([np.ravel(x) for x in tree.values()]) for tree in (gradients, weights)]
    expected = reference(*flat, rescale=rescale)
    ours = project(gradients, weights, per_leaf=False, rescale=rescale)
    np.testing.assert_allclose(ours["a"].ravel(), expected[:20], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(ours["b"], expected[20:], rtol=2e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-30, 30), st.floats(-15, 15))
def test_orthogonal_and_as_long_as_the_gradient_at_every_scale(seed, log10_gradient, log10_weights):
    gradient, weights = normal(seed, (7,)), normal(seed + 1, (7,))
    scale = np.float32(10**log10_gradient)
    scaled_weights = np.float32(10**log10_weights) * weights
    ours = np.asarray(project(scale * gradient, scaled_weights, eps=0.0), np.float64) / scale
    np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(gradient), rtol=1e-5)
    cosine = ours @ weights / np.linalg.norm(ours) / np.linalg.norm(weights)
    radial = abs(gradient @ weights) / np.linalg.norm(gradient) / np.linalg.norm(weights)
    assert abs(cosine) <= 1e-6 / np.sqrt(1 - min(radial, 1 - 1e-6) ** 2)


@pytest.mark.parametrize("options", [{}, {"rescale": False}, {"per_leaf": False}, {"eps": 0.0}], ids=str)
class TestDegenerateCases:
    def test_at_zero_weights_the_gradient_stays(self, options):
        gradient = normal(0, (4,))
        np.testing.assert_allclose(project(gradient, jnp.zeros(4), **options), gradient, rtol=1e-6)

    def test_zero_gradients_stay_zero(self, options):
        for weights in (jnp.zeros(4), jnp.ones(4)):
            np.testing.assert_array_equal(project(jnp.zeros(4), weights, **options), np.zeros(4))

    @pytest.mark.parametrize("shape", [(), (1,), (6, 5)])
    def test_a_parallel_gradient_vanishes_instead_of_becoming_noise(self, options, shape):
        weights = jnp.asarray(normal(0, shape))
        np.testing.assert_allclose(project(-3.7 * weights, weights, **options), np.zeros(shape), atol=1e-6)


def test_half_precision_is_projected_in_float32():
    gradient, weights = (jnp.asarray(normal(seed, (300,)), jnp.bfloat16) for seed in (0, 1))
    ours = project(gradient, weights)
    assert ours.dtype == jnp.bfloat16
    expected = reference(*(np.asarray(x, np.float32) for x in (gradient, weights)), rescale=True)
    np.testing.assert_allclose(np.asarray(ours, np.float32), expected, rtol=2**-8, atol=1e-3)


def test_descends_a_loss_that_only_depends_on_the_direction():
    goal = jnp.array([0.0, 0.6, 0.8])
    optimizer = optax.chain(perp_grad(), optax.sgd(optax.cosine_decay_schedule(0.1, 200)))

    def loss(w):
        """Part of it could be had by growing: not what is asked for."""
        return -jnp.vdot(w, goal)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.array([1.0, 0.1, -0.1])
    (w, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=200))()
    np.testing.assert_allclose(w / jnp.linalg.norm(w), goal, atol=0.02)


def test_missing_parameters_are_named():
    transformation = perp_grad()
    with pytest.raises(ValueError, match=r"needs the current parameters: call update\(updates, state, params\)"):
        transformation.update(jnp.ones(2), transformation.init(jnp.ones(2)))


def test_bad_hyperparameters_are_named():
    with pytest.raises(ValueError, match=r"^eps must be in \[0, inf\), got -1.0$"):
        perp_grad(eps=-1.0)
