import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness.vitals import read_vitals
from jaxreg.optim import adam8bit, momentum_reset, spam

LAYERS, WIDTH = 3, 4


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        logits = nn.Dense(WIDTH, name="query")(x)
        self.sow("vitals", "max_attention_logit", jnp.max(logits))
        return x + nn.Dense(WIDTH, name="out")(nn.tanh(logits)), None


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x * self.param("embedding", nn.initializers.normal(), [WIDTH])
        axes = {"params": 0, "vitals": 0}
        blocks = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=LAYERS)
        return nn.Dense(2, name="head")(blocks(name="blocks")(x, None)[0])


INPUTS = np.random.default_rng(0).normal(size=[5, WIDTH]).astype(np.float32)
PARAMS = {"params": Model().init(jax.random.key(0), INPUTS)["params"]}
GROUPS = {  # written out, so that nothing is taken from the code
    "embedding": [("embedding",)],
    "blocks/query": [("blocks", "query", "kernel"), ("blocks", "query", "bias")],
    "blocks/out": [("blocks", "out", "kernel"), ("blocks", "out", "bias")],
    "head": [("head", "kernel"), ("head", "bias")],
}


def random_like(tree, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), tree)


def group_norms(tree):
    """The norms that groups should have, with NumPy."""

    def norm(group, paths):
        leaves = []
        for path in paths:
            leaf = tree["params"]
            for name in path:
                leaf = leaf[name]
            leaves.append(np.asarray(leaf, np.float64).reshape(LAYERS if group.startswith("blocks") else 1, -1))
        norms = np.linalg.norm(np.concatenate(leaves, axis=1), axis=1)
        return norms if group.startswith("blocks") else norms[0]

    return {group: norm(group, paths) for group, paths in GROUPS.items()}


def assert_norms(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for group, norms in expected.items():
        np.testing.assert_allclose(found[group], norms, rtol=rtol, err_msg=group)
        assert found[group].dtype == jnp.float32


def total(tree):
    return np.linalg.norm(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]))


def vitals_of(optimizer, gradients=None, params=PARAMS, **kwargs):
    """After one step, jitted, with the optimizer's state."""
    gradients = random_like(params, 1) if gradients is None else gradients

    @jax.jit
    def step(params, gradients):
        updates, state = optimizer.update(gradients, optimizer.init(params), params)
        return read_vitals(jnp.float32(2.5), params, gradients, updates, state, **kwargs), state

    return step(params, gradients)


def test_norms_are_those_of_numpy_in_all_and_for_every_group_and_layer():
    gradients = random_like(PARAMS, 1)
    vitals, _ = vitals_of(optax.sgd(0.5), gradients)
    assert_norms(vitals.gradient_norms, group_norms(gradients))
    assert_norms(vitals.update_norms, {group: norm / 2 for group, norm in group_norms(gradients).items()})
    np.testing.assert_allclose(vitals.gradient_norm, total(gradients), rtol=1e-6)
    np.testing.assert_allclose(vitals.update_norm, total(gradients) / 2, rtol=1e-6)
    np.testing.assert_allclose(vitals.parameter_norm, total(PARAMS), rtol=1e-6)
    assert vitals.loss == 2.5
    assert vitals.first_moment_norms is vitals.second_moment_norms is vitals.max_attention_logits is None


def test_depth_says_how_fine_groups_are():
    gradients = random_like(PARAMS, 1)
    coarse = vitals_of(optax.sgd(1.0), gradients, depth=1)[0].gradient_norms
    fine = group_norms(gradients)
    blocks = np.hypot(fine["blocks/query"], fine["blocks/out"])
    assert_norms(coarse, {"embedding": fine["embedding"], "blocks": blocks, "head": fine["head"]})
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        vitals_of(optax.sgd(1.0), depth=0)


WRAPPED = {
    "chain": optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(0.1)),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), every_k_schedule=1).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "partition": optax.partition(
        {"a": optax.adam(0.1), "b": optax.adam(0.2)},
        lambda params: {"params": {name: "a" if name == "blocks" else "b" for name in params["params"]}},
    ),
    "momentum_reset": momentum_reset(optax.adam(0.1)),
    "spam": spam(0.1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_moments_are_found_wherever_they_are(name):
    """After one step Adam's are a tenth of the gradient and a thousandth of its square."""
    gradients = random_like(PARAMS, 2)
    vitals, _ = vitals_of(WRAPPED[name], gradients)
    assert_norms(vitals.first_moment_norms, group_norms(jax.tree.map(lambda g: 0.1 * g, gradients)))
    squares = group_norms(jax.tree.map(lambda g: 0.001 * g**2, gradients))
    assert_norms(vitals.second_moment_norms, squares, rtol=1e-4)


def test_masked_parameters_have_no_moments():
    mask = {"params": {name: name == "head" for name in PARAMS["params"]}}
    vitals, _ = vitals_of(optax.masked(optax.trace(0.9), mask), random_like(PARAMS, 2))
    assert_norms(vitals.first_moment_norms, {"head": group_norms(random_like(PARAMS, 2))["head"]})
    assert vitals.second_moment_norms is None


def test_moments_of_another_shape_have_one_norm_for_all_layers():
    vitals, state = vitals_of(spam(0.1, density=0.5))
    (mu,) = (part.mu["params"] for part in state if hasattr(part, "mu"))
    assert vitals.first_moment_norms["blocks/out"].shape == ()
    np.testing.assert_allclose(vitals.first_moment_norms["blocks/out"], total(mu["blocks"]["out"]), rtol=1e-6)


def test_eight_bit_codes_are_not_taken_for_moments():
    params = {"params": {"head": jnp.ones([64, 128])}}
    vitals, _ = vitals_of(adam8bit(0.1), random_like(params, 1), params)
    assert vitals.first_moment_norms is vitals.second_moment_norms is None


def test_squares_of_tiny_second_moments_do_not_vanish():
    params = {"params": {"head": jnp.ones([100])}}
    gradients = {"params": {"head": jnp.full([100], 1e-10)}}
    second = vitals_of(optax.adam(0.1), gradients, params)[0].second_moment_norms
    np.testing.assert_allclose(second["head"], 10 * 0.001 * 1e-20, rtol=1e-4)


def test_half_precision_is_summed_in_float32():
    params = {"params": {"head": jnp.ones([10_000], jnp.bfloat16)}}
    vitals, _ = vitals_of(optax.sgd(1.0), params, params)
    assert vitals.gradient_norm.dtype == vitals.gradient_norms["head"].dtype == jnp.float32
    assert vitals.gradient_norms["head"] == 100


def test_the_largest_attention_logits_come_from_what_blocks_sow():
    _, sown = Model().apply(PARAMS, INPUTS, mutable=["vitals"])
    blocks = jax.tree.map(np.asarray, PARAMS["params"]["blocks"])
    x, expected = INPUTS * np.asarray(PARAMS["params"]["embedding"]), []
    for layer in range(LAYERS):
        logits = x @ blocks["query"]["kernel"][layer] + blocks["query"]["bias"][layer]
        expected.append(logits.max())
        x = x + np.tanh(logits) @ blocks["out"]["kernel"][layer] + blocks["out"]["bias"][layer]
    for given in (sown, sown["vitals"]):
        vitals, _ = vitals_of(optax.sgd(1.0), sown=given)
        np.testing.assert_allclose(vitals.max_attention_logits, expected, rtol=1e-5)


def test_layers_with_names_of_their_own_are_in_the_order_of_their_numbers():
    sown = {f"block_{i}": {"attention": {"max_attention_logit": (jnp.float32(i),)}} for i in range(12)}
    vitals, _ = vitals_of(optax.sgd(1.0), sown=sown)
    np.testing.assert_array_equal(vitals.max_attention_logits, np.arange(12))


def test_a_nan_shows_in_its_layer_and_nowhere_else():
    gradients = random_like(PARAMS, 1)
    gradients["params"]["blocks"]["out"]["kernel"] = (
        gradients["params"]["blocks"]["out"]["kernel"].at[1, 0, 0].set(jnp.nan)
    )
    vitals, _ = vitals_of(optax.adam(0.1), gradients)
    for norms in (vitals.gradient_norms, vitals.update_norms, vitals.first_moment_norms, vitals.second_moment_norms):
        np.testing.assert_array_equal(np.isnan(norms["blocks/out"]), [False, True, False])
        assert all(np.isfinite(norms[group]).all() for group in norms if group != "blocks/out")
    assert np.isnan(vitals.gradient_norm)


def test_a_sweep_is_measured_run_by_run():
    gradients = [random_like(PARAMS, seed) for seed in (1, 2)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    measure = jax.jit(jax.vmap(lambda g: read_vitals(jnp.float32(0), PARAMS, g, g, optax.sgd(1.0).init(PARAMS))))
    vitals = measure(both)
    for run, gradient in enumerate(gradients):
        assert_norms(jax.tree.map(lambda norms, run=run: norms[run], vitals.gradient_norms), group_norms(gradient))
        np.testing.assert_allclose(vitals.gradient_norm[run], total(gradient), rtol=1e-6)


def test_sharded_leaves_have_the_same_norms():
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    sharded = random_like(PARAMS, 1)
    for dense in sharded["params"]["blocks"].values():
        dense["kernel"] = jax.device_put(dense["kernel"], NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    optimizer = optax.adam(0.1)
    measured = jax.jit(lambda g, s: read_vitals(jnp.float32(0), g, g, g, s))(sharded, optimizer.init(sharded))
    assert_norms(measured.gradient_norms, group_norms(random_like(PARAMS, 1)))
