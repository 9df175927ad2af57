import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.mesh import make_mesh
from experiments.harness.placement import AXIS, OnMesh, Replicated


def fresh():
    return {"weights": jnp.arange(2.0**14).reshape(128, 128) / 2**14, "step": jnp.zeros([], jnp.int32)}


def step(state, rows, axis_name):
    """Moves the weights by the mean of all rows."""
    mean = jnp.mean(rows, axis=0)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    return {"weights": state["weights"] + mean, "step": state["step"] + 1}, {"mean": mean[0]}


ROWS = np.random.default_rng(0).normal(size=(16, 128)).astype(np.float32)


@pytest.fixture(params=["one device", "mesh", "pmap"])
def placement(request):
    return {
        "one device": lambda: OnMesh(make_mesh(devices=jax.devices()[:1])),
        "mesh": lambda: OnMesh(make_mesh(2)),
        "pmap": Replicated,
    }[request.param]()


def advance(placement, state):
    compiled = placement.compile(lambda state, rows: step(state, rows, placement.axis_name))
    return compiled(state, placement.rows(ROWS))


def test_all_placements_take_the_same_step(placement):
    state, report = advance(placement, placement.create(fresh))
    expected = np.asarray(fresh()["weights"]) + ROWS.mean(0)
    np.testing.assert_allclose(placement.to_save(state)["weights"], expected, atol=1e-6)
    np.testing.assert_allclose(placement.fetch(report)["mean"], ROWS.mean(0)[0], atol=1e-6)
    assert int(placement.to_save(state)["step"]) == 1


def test_a_saved_state_goes_on_as_if_it_had_not_been_saved(placement):
    state, _ = advance(placement, placement.create(fresh))
    saved = jax.tree.map(np.array, placement.to_save(state))
    on, _ = advance(placement, state)
    again, _ = advance(placement, placement.put(saved))
    jax.tree.map(np.testing.assert_array_equal, placement.to_save(on), placement.to_save(again))


def test_shapes_are_those_of_what_is_saved(placement):
    saved = placement.to_save(placement.create(fresh))
    shapes = placement.shapes(jax.eval_shape(fresh))
    assert jax.tree.map(np.shape, saved) == jax.tree.map(np.shape, shapes)
    assert all(shape.sharding is not None for shape in jax.tree.leaves(shapes))


def test_a_mean_is_over_all_rows(placement):
    mean = placement.compile_mean(lambda params, rows: jnp.mean(rows))
    state = placement.create(fresh)
    np.testing.assert_allclose(mean(state, placement.rows(ROWS)), ROWS.mean(), atol=1e-7)


def test_a_function_of_one_copy_gives_one_result(placement):
    total = placement.compile_on_copy(lambda weights: jnp.sum(weights))
    weights = placement.create(fresh)["weights"]
    np.testing.assert_allclose(total(placement.to_save(weights)), np.arange(2.0**14).sum() / 2**14, rtol=1e-6)


def test_large_arrays_are_split_over_fsdp_and_stay_so():
    placement = OnMesh(make_mesh(2))
    state, _ = advance(placement, placement.create(fresh))
    assert {shard.data.shape for shard in state["weights"].addressable_shards} == {(128, 64)}


def test_pmap_names_a_batch_that_its_devices_cannot_share():
    with pytest.raises(ValueError, match="batch must be a multiple of the number of devices, 8, got 12"):
        Replicated().rows(np.zeros([12, 3]))


def test_only_pmap_has_an_axis_to_average_over():
    assert Replicated().axis_name == AXIS
    assert OnMesh(make_mesh()).axis_name is None
