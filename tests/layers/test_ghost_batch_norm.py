"""Ghost batch normalization against flax's BatchNorm, whole and in a loop over the parts, and closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.layers import GhostBatchNorm

X = 1.0 + 2.0 * jax.random.normal(jax.random.key(0), [12, 5])
IMAGES = jax.random.normal(jax.random.key(1), [6, 3, 2, 4])
LEARNT = {"scale": jnp.array([0.5, -1.0, 2.0, 1.0, 0.0]), "bias": jnp.arange(5.0)}


def train(layer, variables, x):
    return layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])


def start(layer, x=X):
    return layer.init(jax.random.key(0), x, use_running_average=False)


@pytest.mark.parametrize("x", [X, IMAGES], ids=["vectors", "images"])
def test_one_part_is_flax_batch_norm(x):
    ours, theirs = GhostBatchNorm(len(x), momentum=0.7), nn.BatchNorm(momentum=0.7)
    variables = start(theirs, x)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), start(ours, x), variables))
    (y, new), (y_theirs, new_theirs) = train(ours, variables, x), train(theirs, variables, x)
    np.testing.assert_allclose(y, y_theirs, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new, new_theirs)
    evaluated = (layer.apply({**variables, **new}, x, use_running_average=True) for layer in (ours, theirs))
    np.testing.assert_allclose(*evaluated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("x", "ghost_size"), [(X, 1), (X, 3), (IMAGES, 2)], ids=["singles", "vectors", "images"])
def test_parts_are_normalized_as_by_a_loop(x, ghost_size):
    """Outputs, gradients and the running statistics, which take in the parts in their order."""
    ours, theirs = GhostBatchNorm(ghost_size, momentum=0.8), nn.BatchNorm(momentum=0.8)
    variables = start(ours, x)

    def loop(x):
        parts, stats = [], variables
        for first in range(0, len(x), ghost_size):
            y, new = train(theirs, stats, x[first : first + ghost_size])
            parts, stats = [*parts, y], {**stats, **new}
        return jnp.concatenate(parts), stats["batch_stats"]

    def whole(x):
        y, new = train(ours, variables, x)
        return y, new["batch_stats"]

    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    (y, stats), (y_loop, stats_loop) = jax.jit(whole)(x), loop(x)
    np.testing.assert_allclose(y, y_loop, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stats, stats_loop)
    if ghost_size > 1:
        gradient, expected = (jax.jit(jax.grad(lambda x, f=f: jnp.sum(weights * f(x)[0])))(x) for f in (whole, loop))
        np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-3)


def test_running_mean_has_the_closed_form():
    layer = GhostBatchNorm(ghost_size=4, momentum=0.9)
    variables = start(layer)
    before = {"mean": jnp.full(5, 3.0), "var": jnp.full(5, 2.0)}
    _, new = train(layer, {**variables, "batch_stats": before}, X)
    means = np.asarray(X).reshape(3, 4, 5).mean(1)
    expected = 0.9**3 * 3.0 + 0.1 * (0.81 * means[0] + 0.9 * means[1] + means[2])
    np.testing.assert_allclose(new["batch_stats"]["mean"], expected, rtol=1e-5)


def test_every_part_has_mean_bias_and_deviation_scale():
    layer = GhostBatchNorm(ghost_size=4, epsilon=1e-8)
    y, _ = train(layer, {**start(layer), "params": LEARNT}, X)
    parts = np.asarray(y).reshape(3, 4, 5)
    np.testing.assert_allclose(parts.mean(1), np.tile(LEARNT["bias"], (3, 1)), atol=1e-5)
    np.testing.assert_allclose(parts.std(1), np.tile(np.abs(LEARNT["scale"]), (3, 1)), rtol=1e-4)


def test_scale_and_bias_can_be_left_out():
    layer = GhostBatchNorm(ghost_size=4, use_bias=False, use_scale=False)
    assert set(start(layer)) == {"batch_stats"}


def test_half_precision_keeps_its_dtype_and_float32_statistics():
    layer = GhostBatchNorm(ghost_size=4)
    y, new = train(layer, start(layer), X.astype(jnp.bfloat16))
    assert (y.dtype, new["batch_stats"]["mean"].dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("ghost_size", [0, 5, 24])
def test_parts_must_make_up_the_batch(ghost_size):
    with pytest.raises(ValueError, match=f"ghost_size must divide the batch's 12 examples, got {ghost_size}"):
        start(GhostBatchNorm(ghost_size))


def test_any_batch_can_be_evaluated():
    layer = GhostBatchNorm(ghost_size=4)
    variables = start(layer)
    together = layer.apply(variables, X, use_running_average=True)
    alone = layer.apply(variables, X[:1], use_running_average=True)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-6)


@pytest.mark.parametrize(("name", "value", "interval"), [("momentum", 1.0, "[0, 1)"), ("epsilon", 0.0, "(0, inf)")])
def test_bad_hyperparameters_are_named(name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        start(GhostBatchNorm(ghost_size=4, **{name: value}))
    assert str(error.value) == f"{name} must be in {interval}, got {value}"
