import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.unet import LAST_LAYER, UNet, UNetBlock

X = jax.random.normal(jax.random.key(0), [3, 4, 8, 2])
LEVEL = jnp.linspace(-1.0, 1.0, 3)

MODULE = UNet(8, (1, 2), 1, attention=(4,), head_width=4)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(MODULE.apply)


@pytest.fixture(scope="module")
def variables():
    return random_like(jax.eval_shape(MODULE.init, jax.random.key(1), X, LEVEL, LEVEL))


def random_like(shapes):
    """Parameters of which none is zero, so that all act. To compile the initialization would take ten seconds."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)


def test_a_unet_gives_images_of_the_same_shape_from_a_layer_that_starts_at_zero(variables, apply):
    last = variables["params"][LAST_LAYER]
    assert last["kernel"].shape == (3, 3, 8, 2)
    zero = {**variables, "params": {**variables["params"], LAST_LAYER: jax.tree.map(np.zeros_like, last)}}
    np.testing.assert_array_equal(apply(zero, X, LEVEL, LEVEL), np.zeros(X.shape))
    assert set(variables) == {"params", "buffers"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


def test_examples_do_not_see_one_another_but_their_own_levels(variables, apply):
    out = apply(variables, X, LEVEL, LEVEL)
    changed = apply(variables, X.at[1].add(1.0), LEVEL, LEVEL)
    np.testing.assert_allclose(changed[::2], out[::2], atol=1e-5)
    for levels in ((LEVEL + 1, LEVEL), (LEVEL, LEVEL + 1)):
        assert (jnp.max(jnp.abs(apply(variables, X, *levels) - out), axis=(1, 2, 3)) > 1e-3).all()


def test_every_pixel_matters_everywhere(variables, apply):
    out = apply(variables, X, LEVEL, LEVEL)
    changed = apply(variables, X.at[0, 0, 0].add(1.0), LEVEL, LEVEL)
    assert (changed[0] != out[0]).any(-1).all()


def test_dropout_is_for_those_who_give_a_key():
    x, level = jnp.ones([2, 4, 4, 8]), jnp.ones([2, 3])
    block = UNetBlock(8, (), False, 2, 0.5, None, jnp.float32)
    params = random_like(jax.eval_shape(block.init, jax.random.key(1), x, level))
    apply = jax.jit(lambda key: block.apply(params, x, level, rngs={"dropout": key}))
    out = jax.jit(block.apply)(params, x, level)
    draws = np.stack([apply(jax.random.key(seed)) for seed in range(300)])
    np.testing.assert_array_equal(apply(jax.random.key(0)), draws[0])
    assert (draws[0] != draws[1]).any()
    # What is left counts double, so that nothing is lost on average.
    assert np.abs(draws.mean(0) - out).mean() < 0.1 * np.abs(draws[0] - out).mean()


def test_a_block_whose_last_layers_are_zero_is_the_identity_but_for_its_scale():
    """Which is how they start."""
    x, level = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32), np.ones([2, 3], np.float32)
    block = UNetBlock(8, (4,), False, 2, 0.0, None, jnp.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(1), x, level)["params"]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    for name in ("conv_1", "attention_out"):
        params[name] = jax.tree.map(np.zeros_like, params[name])
    np.testing.assert_allclose(jax.jit(block.apply)({"params": params}, x, level), x / 2, rtol=1e-6)  # two roots of 1/2


def test_images_that_cannot_be_halved_so_often_are_refused():
    with pytest.raises(ValueError, match=r"multipliers must be so few that images of 4 x 8 .* got 4"):
        jax.eval_shape(UNet(8, (1, 1, 1, 1)).init, jax.random.key(0), X, LEVEL)
