import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from experiments.harness.consistency_settings import RECIPES, NetworkSettings, Settings
from experiments.harness.consistency_training import ConsistencyTraining
from experiments.harness.run_settings import DeviceSettings, from_json
from jaxreg.diffusion import consistency_sample

ONE = DeviceSettings(devices=1)


def settings(objective="ict", *, data="ring", batch=16, network=None, **optimization):
    chosen = Settings()
    groups = {
        "data": dataclasses.replace(chosen.data, data=data, batch=batch),
        "network": network or NetworkSettings(width=8, layers=1),
        "objective": dataclasses.replace(chosen.objective, objective=objective, decay=0.9, solver_steps=3),
        "optimization": dataclasses.replace(chosen.optimization, **{"steps": 2, "optimizer": "sgd", **optimization}),
    }
    return dataclasses.replace(chosen, **groups).complete()


def trained(run):
    """The states after each of two steps, and what the steps reported."""
    state = run.create()
    states, reports = [jax.tree.map(np.array, run.placement.to_save(state))], []
    step = run.placement.compile(run.step())
    for _, batch in zip(range(2), run.batches(), strict=False):
        state, report = step(state, run.placement.rows(batch.rows))
        states.append(jax.tree.map(np.array, run.placement.to_save(state)))
        reports.append(run.placement.fetch(report))
    return states, reports


@pytest.fixture(scope="module")
def two_steps():
    return trained(ConsistencyTraining(settings(), ONE))


@pytest.mark.parametrize("objective", ["ict", "slct", "ctm", "diffusion"])
def test_two_steps_of_every_objective_are_finite_and_the_average_is_that_of_the_parameters(objective, request):
    if objective == "ict":
        states, reports = request.getfixturevalue("two_steps")
    else:
        states, reports = trained(ConsistencyTraining(settings(objective), ONE))
    assert [int(state.step) for state in states] == [0, 1, 2]
    for report in reports:
        assert np.isfinite(report.vitals.loss)
        assert report.vitals.loss > 0
        assert report.vitals.update_norm > 0
        assert report.bad_leaf == -1
    for leaf, *steps in zip(
        *(jax.tree.leaves(tree) for tree in (states[2].average, *(s.params for s in states))), strict=True
    ):
        first, second, third = steps
        np.testing.assert_allclose(leaf, 0.81 * first + 0.9 * 0.1 * second + 0.1 * third, rtol=1e-5, atol=1e-7)


def test_a_mesh_of_eight_trains_like_one_device(two_steps):
    states, _ = trained(ConsistencyTraining(settings(), DeviceSettings(devices=8, fsdp=2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), states[2], two_steps[0][2])


def test_a_state_is_judged_by_samples_of_its_average(two_steps):
    run = ConsistencyTraining(settings(), ONE)
    shown = {}
    state = two_steps[0][2]
    figures = run.evaluation(50, lambda step, samples: shown.update({step: samples}))(state._replace(params=None))
    assert shown.keys() == {2}
    sampler = jax.jit(lambda key: consistency_sample(run.apply_fn, state.average, key, (50, 2), sigmas=(80.0,)))
    np.testing.assert_allclose(shown[2], sampler(jax.random.fold_in(jax.random.key(0), 2)), rtol=1e-4, atol=1e-5)
    cross, within = (cdist(shown[2], points) for points in (run.held_out, shown[2]))
    of_data = pdist(np.asarray(run.held_out)).mean()
    expected = 2 * cross.mean() - within.sum() / (50 * 49) - of_data
    assert figures == {"energy_distance": pytest.approx(expected, rel=1e-4)}


def test_no_samples_and_no_steps_are_refused():
    run = ConsistencyTraining(settings(), ONE)
    with pytest.raises(ValueError, match="count must be in"):
        run.sample(None, jax.random.key(0), 0)
    with pytest.raises(ValueError, match="steps must be in"):
        run.sample(None, jax.random.key(0), 1, 0)


def test_a_unet_with_dropout_has_a_loss_of_images_in_bytes(tmp_path):
    """Traced only: what it computes is tested where it is defined."""
    np.save(tmp_path / "a.npy", np.zeros([40, 8, 8, 3], np.uint8))
    network = NetworkSettings(network="unet", width=8, layers=1, multipliers=(1,), dropout=0.3, dtype="bfloat16")
    run = ConsistencyTraining(settings(data=f"file:{tmp_path / 'a.npy'}", network=network), ONE)
    rows = next(run.batches()).rows
    assert rows.dtype == np.uint8
    state, report = jax.eval_shape(run.step(), jax.eval_shape(run.fresh_state), rows)
    assert report.vitals.loss.shape == ()
    assert {leaf.dtype for leaf in jax.tree.leaves(state.average)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("objective", ["ict", "slct", "ctm", "diffusion"])
def test_settings_survive_json(objective):
    chosen = settings(objective)
    assert from_json(Settings, json.loads(json.dumps(dataclasses.asdict(chosen)))) == chosen


@pytest.mark.parametrize("data", ["digits", "ring", "file:images.npz", "hf:cifar10"])
def test_what_is_left_open_is_filled_in_by_a_recipe_and_what_is_given_stays(data):
    chosen = Settings(data=dataclasses.replace(Settings().data, data=data)).complete()
    assert None not in dataclasses.asdict(chosen.network).values()
    assert None not in dataclasses.asdict(chosen.objective).values()
    assert chosen.data.batch in {recipe.batch for recipe in RECIPES.values()}
    assert chosen.optimization.learning_rate in {recipe.learning_rate for recipe in RECIPES.values()}
    given = dataclasses.replace(chosen, network=dataclasses.replace(chosen.network, width=3))
    assert given.complete() == given
