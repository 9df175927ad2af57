import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness.checkpoint_stacks import (
    combine_checkpoints,
    missing_steps,
    stack_checkpoints,
    usable_steps,
    window,
)
from experiments.harness.checkpoints import CheckpointError, Checkpoints

# What is said of a damaged checkpoint is one message, not also what Orbax leaves behind.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

STEPS = [10, 20, 30]


class State(NamedTuple):
    step: Any
    params: Any
    moments: Any


def state(step):
    """Numbers that say which step they are of."""
    rng = np.random.default_rng(step)
    params = {
        "kernel": jnp.asarray(rng.normal(size=[8, 4]), jnp.float32),
        "half": jnp.asarray(rng.normal(size=[3]), jnp.bfloat16),
        "count": jnp.int32(step),
    }
    return State(jnp.int32(step), params, (jnp.full([5], float(step)),))


def shapes(of, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), of)


LIKE = shapes(state(0))


def write(directory, states):
    with Checkpoints(directory, keep=None, asynchronous=False) as checkpoints:
        for step, content in states.items():
            checkpoints.save(step, content, {})


@pytest.fixture
def checkpoints(tmp_path):
    write(tmp_path, {step: state(step) for step in STEPS})
    with Checkpoints(tmp_path, keep=None) as opened:
        yield opened


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def params_only(name):
    return name.startswith("params/")


@pytest.mark.parametrize("group_bytes", [1, 2**28])
def test_a_combination_is_the_weighted_sum_of_the_steps(checkpoints, group_bytes):
    before = contents(checkpoints.directory)
    a = np.array([[2.0, -1.5, 0.5], [0.0, 0.25, 0.75]])
    combined = combine_checkpoints(checkpoints, STEPS, a, LIKE, group_bytes=group_bytes)
    one = combine_checkpoints(checkpoints, STEPS, a[0], LIKE, group_bytes=group_bytes)
    kernels = np.stack([np.asarray(state(step).params["kernel"], np.float64) for step in STEPS])
    np.testing.assert_allclose(combined.params["kernel"], np.tensordot(a, kernels, axes=1), rtol=1e-5, atol=1e-6)
    halves = np.stack([np.asarray(state(step).params["half"], np.float32) for step in STEPS])
    wide = (a[0, 0] * halves[0] + a[0, 1] * halves[1]) + a[0, 2] * halves[2]
    np.testing.assert_array_equal(one.params["half"], jnp.asarray(wide, jnp.bfloat16))  # rounded once, at the end
    np.testing.assert_allclose(one.moments[0], np.full(5, 20.0 - 30.0 + 15.0))
    assert one.params["count"] == one.step == 30
    np.testing.assert_array_equal(combined.step, [30, 30])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one) == jax.tree.map(lambda x: (x.shape, x.dtype), LIKE)
    assert contents(checkpoints.directory) == before


def test_a_one_hot_vector_is_its_step_bit_for_bit_and_reads_no_other(checkpoints):
    read = []
    combined = combine_checkpoints(checkpoints, STEPS, [0, 1, 0], LIKE, select=params_only, on_read=read.append)
    np.testing.assert_array_equal(combined.params["kernel"], state(20).params["kernel"])
    np.testing.assert_array_equal(combined.params["half"], state(20).params["half"])
    assert read == [20, 30]  # the counter is the last one's
    assert combined.step is None
    assert combined.moments == (None,)


def test_a_stack_has_the_steps_in_their_order(checkpoints):
    stack = stack_checkpoints(checkpoints, STEPS, LIKE, select=params_only)
    for row, step in enumerate(STEPS):
        jax.tree.map(
            lambda leaf, one, row=row: np.testing.assert_array_equal(leaf[row], one), stack.params, state(step).params
        )
    assert stack.moments == (None,)


def test_results_lie_as_they_are_asked_to(tmp_path):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    states = {step: {"w": jax.device_put(jnp.arange(16.0) + step, split)} for step in STEPS}
    write(tmp_path, states)
    like = shapes(states[10], split)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        one = combine_checkpoints(checkpoints, STEPS, [0.5, 0.25, 0.25], like)["w"]
        two = combine_checkpoints(checkpoints, STEPS, np.ones([2, 3]) / 3, like)["w"]
        stack = stack_checkpoints(checkpoints, STEPS, like)["w"]
    np.testing.assert_allclose(one, np.arange(16.0) + 17.5, rtol=1e-6)
    np.testing.assert_allclose(two, np.tile(np.arange(16.0) + 20, (2, 1)), rtol=1e-6)
    np.testing.assert_array_equal(stack[:, 0], STEPS)
    assert one.sharding.is_equivalent_to(split, 1)
    for leaf in (two, stack):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "fsdp")), 2)


def test_memory_is_at_most_that_of_the_result_and_two_leaves(tmp_path):
    leaves, k, size = 5, 6, 10_000

    def model(step):
        return {f"w{i}": jnp.full([size], float(step)) for i in range(leaves)}

    write(tmp_path, {step: model(step) for step in range(k)})
    like = shapes(jax.eval_shape(lambda: model(0)))
    here = sum(leaf.nbytes for leaf in jax.live_arrays())
    peaks = []

    def look(step):
        peaks.append(sum(leaf.nbytes for leaf in jax.live_arrays()) - here)

    with Checkpoints(tmp_path, keep=None) as checkpoints:
        combine_checkpoints(checkpoints, range(k), np.ones(k), like, group_bytes=4 * size, on_read=look)
    assert len(peaks) == leaves * k
    assert max(peaks) <= (leaves + 2) * 4 * size + 1000


def test_missing_and_other_models_are_named_with_step_and_leaf(checkpoints):
    with pytest.raises(CheckpointError, match=r"has no step 25; there are \[10, 20, 30\]"):
        combine_checkpoints(checkpoints, [10, 25], [0.5, 0.5], LIKE)
    wider = LIKE._replace(params={**LIKE.params, "kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)})
    message = r"step 10 .*another model: it has \(8, 4\) at params/kernel, where \(8, 5\) is expected"
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(checkpoints, STEPS, np.ones(3), wider)
    other_optimizer = LIKE._replace(moments=())
    assert usable_steps(checkpoints, STEPS, other_optimizer, select=params_only) == STEPS
    with pytest.raises(CheckpointError, match=r"at moments/0, where nothing is expected"):
        stack_checkpoints(checkpoints, STEPS, other_optimizer)


def test_the_leaf_that_is_cut_off_is_named(tmp_path):
    small = {"a": jnp.ones(3), "b": jnp.asarray(np.random.default_rng(0).normal(size=5000))}
    write(tmp_path, {1: small, 2: small})
    # What is large has a file of its own.
    largest = max((tmp_path / "2" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with (
        Checkpoints(tmp_path, keep=None) as checkpoints,
        pytest.raises(CheckpointError, match=r"step 2 .*cannot be read at b: "),
    ):
        combine_checkpoints(checkpoints, [1, 2], [0.5, 0.5], shapes(small))


def test_half_written_steps_are_named_and_left_as_they_are(tmp_path):
    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    write(tmp_path, {10: state(10)})
    damages = {
        20: lambda step: shutil.rmtree(step / "state"),
        30: lambda step: cut(step / "state" / "manifest.ocdbt"),
        40: lambda step: cut(step / "state" / "_METADATA"),
        50: lambda step: [cut(file) for file in step.rglob("d/*")],
        60: lambda step: step.rename(tmp_path / "60.orbax-checkpoint-tmp"),  # Orbax's name until all is there
    }
    for step, damage in damages.items():
        shutil.copytree(tmp_path / "10", tmp_path / str(step))
        damage(tmp_path / str(step))
    before = contents(tmp_path)
    with Checkpoints(tmp_path, keep=None) as checkpoints, pytest.warns(UserWarning, match="left out") as warned:
        assert usable_steps(checkpoints, [10, *damages], LIKE, skip_bad=True) == [10]
    messages = [str(warning.message) for warning in warned]
    for step, message in zip((20, 30, 40, 50), messages, strict=False):
        assert re.match(rf"left out: step {step} in .* cannot be read: ", message)
    assert re.search(r"has no step 60; there are \[10, 20, 30, 40, 50\]$", messages[4])
    assert len(messages) == 5
    assert contents(tmp_path) == before


def test_bad_steps_are_named_or_left_out(tmp_path):
    states = {step: state(step) for step in (10, 20, 30, 40)}
    states[20].params["kernel"] = states[20].params["kernel"].at[3, 1].set(jnp.nan)
    write(tmp_path, states)
    shutil.rmtree(tmp_path / "30" / "state" / "d")
    steps = [10, 20, 30, 40]
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        with pytest.raises(CheckpointError, match=r"step 20 .*not finite at params/kernel"):
            combine_checkpoints(checkpoints, [10, 20, 40], np.ones(3) / 3, LIKE)
        with pytest.raises(CheckpointError, match=r"step 30 .* cannot be read: "):
            combine_checkpoints(checkpoints, [10, 30], [0.5, 0.5], LIKE)
        with pytest.warns(UserWarning, match="left out: step [23]0 ") as warned:
            combined = combine_checkpoints(checkpoints, steps, [0.1, 0.2, 0.3, 0.4], LIKE, skip_bad=True)
        assert len(warned) == 2
        expected = 0.2 * state(10).params["kernel"] + 0.8 * state(40).params["kernel"]
        np.testing.assert_allclose(combined.params["kernel"], expected, rtol=1e-5, atol=1e-6)
        with (
            pytest.raises(CheckpointError, match=r"none of the steps \[20, 30\]"),
            pytest.warns(UserWarning, match="left out"),
        ):
            usable_steps(checkpoints, [20, 30], LIKE, skip_bad=True)
        with pytest.raises(ValueError, match="must not sum to zero"), pytest.warns(UserWarning, match="left out"):
            combine_checkpoints(checkpoints, steps, [1, -1, 0, -1], LIKE, skip_bad=True)
        assert checkpoints.steps() == steps


def test_coefficients_are_one_for_each_step(checkpoints):
    with pytest.raises(ValueError, match=r"last axis of 3, one for each step, got shape \(2,\)"):
        combine_checkpoints(checkpoints, STEPS, [0.5, 0.5], LIKE)


def test_a_window_ends_with_the_newest_step():
    steps = [10, 20, 30, 40, 50, 60, 70]
    assert window(steps) == steps
    assert window(steps, last=3) == [50, 60, 70]
    assert window(steps, stride=3) == [10, 40, 70]
    assert window(steps, last=2, stride=3) == [40, 70]
    assert window(steps, first=35, stride=2) == [50, 70]
    with pytest.raises(ValueError, match="first must be at most the newest step, 70, got 80"):
        window(steps, first=80)
    with pytest.raises(ValueError, match="stride must be in"):
        window(steps, stride=0)


def test_a_gap_is_told_from_a_step_saved_out_of_turn():
    assert missing_steps([100, 200, 300, 600, 650]) == [400, 500]
    assert missing_steps([100, 200, 237, 300]) == missing_steps([5]) == []
