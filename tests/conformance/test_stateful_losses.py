"""What is remembered of every training example lies on the devices that the examples lie on, and survives a restart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.harness.checkpoints import Checkpoints
from jaxreg import losses
from tests.conformance.loss_examples import CASES, EXAMPLES

EXAMPLE_COUNT, BATCH, CLASSES = 32, 16, 4
STATEFUL = [case for case in CASES if case.returns_state and "index" in case.parameters]


@pytest.fixture(scope="module")
def over_data():
    return NamedSharding(jax.sharding.Mesh(jax.devices(), ("data",)), PartitionSpec("data"))


def init(case, examples=EXAMPLE_COUNT):
    """A state of as many examples as there are, from the init that returns its type."""
    annotation = case.parameters["state"].annotation
    (name,) = [name for name in losses.__all__ if name.endswith("_init") and returns(name) is annotation]
    sizes = {"num_examples": examples, "num_classes": CLASSES}
    parameters = getattr(losses, name).__annotations__
    return getattr(losses, name)(**{p: size for p, size in sizes.items() if p in parameters}, **EXAMPLES.get(name, {}))


def returns(name):
    return getattr(losses, name).__annotations__["return"]


def batch(number):
    keys = jax.random.split(jax.random.key(number), 3)
    return {
        "logits": 2 * jax.random.normal(keys[0], [BATCH, CLASSES]),
        "labels": jax.random.randint(keys[1], [BATCH], 0, CLASSES),
        "index": jax.random.permutation(keys[2], EXAMPLE_COUNT)[:BATCH],
    }


def stepper(case, sharding=None):
    given = EXAMPLES.get(case.name, {})

    def step(state, arguments):
        used = {name: x for name, x in arguments.items() if name in case.parameters}
        return case(state=state, **used, **given)

    return jax.jit(step, out_shardings=None if sharding is None else (sharding, sharding))


def test_there_are_such_losses():
    assert {case.name for case in STATEFUL} >= {"aldr_kl", "elr", "pskd"}


@pytest.mark.parametrize("case", STATEFUL, ids=str)
def test_a_state_over_eight_devices_goes_the_way_of_one_on_a_single_device(case, over_data, tmp_path):
    alone, sharded = stepper(case), stepper(case, over_data)
    state = init(case)
    spread = jax.device_put(state, over_data)
    for number in range(2):
        values, state = alone(state, batch(number))
        spread_values, spread = sharded(spread, jax.device_put(batch(number), over_data))
        np.testing.assert_allclose(spread_values, values, rtol=2e-6, atol=1e-6)
    for leaf, expected in zip(jax.tree.leaves(spread), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=2e-6)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {EXAMPLE_COUNT // 8}

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), spread)
    with Checkpoints(tmp_path / "checkpoints", keep=None, asynchronous=False) as checkpoints:
        checkpoints.save(2, spread, {})
        restored, _ = checkpoints.restore(2, shapes)
    on_values, on = sharded(spread, jax.device_put(batch(2), over_data))
    again_values, again = sharded(restored, jax.device_put(batch(2), over_data))
    jax.tree.map(np.testing.assert_array_equal, (again_values, again), (on_values, on))
    assert all(leaf.sharding.is_equivalent_to(over_data, leaf.ndim) for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize("case", STATEFUL, ids=str)
def test_inside_shard_map_every_device_keeps_its_own_examples(case, over_data):
    """The index is then that within a device's part."""
    mesh, spec = over_data.mesh, over_data.spec
    part, rows = EXAMPLE_COUNT // 8, BATCH // 8
    arguments = batch(0)
    local = jnp.tile(jnp.arange(rows), 8)
    step = stepper(case)
    inside = jax.shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))
    values, state = jax.jit(inside)(init(case), {**arguments, "index": local})
    where = local + jnp.repeat(jnp.arange(8), rows) * part
    expected_values, expected = step(init(case), {**arguments, "index": where})
    np.testing.assert_allclose(values, expected_values, rtol=2e-6, atol=1e-6)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-6), state, expected)


@pytest.mark.parametrize("case", STATEFUL, ids=str)
def test_a_step_leaves_what_it_remembers_of_others_where_it_is(case):
    """The new state takes the old one's place. A copy would make each step as long as the training set is large."""
    step = stepper(case)

    def mean(logits, state, arguments):
        values, state = step(state, {**arguments, "logits": logits})
        return jnp.mean(values), state

    state, arguments = init(case, examples=2**16), batch(0)
    lowered = jax.jit(jax.grad(mean, has_aux=True), donate_argnums=1).lower(arguments["logits"], state, arguments)
    memory = lowered.compile().memory_analysis()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= state_bytes
    assert memory.temp_size_in_bytes < state_bytes / 8
