import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.harness.checkpoints import CheckpointError, Checkpoints
from tests.full_disk import full_disk


class State(NamedTuple):
    step: Any
    params: Any


def state(step, width=3):
    return State(jnp.asarray(step), {"kernel": jnp.arange(float(width)) * step, "moments": (jnp.ones([2, width]),)})


def shapes(of):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), of)


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_a_step_comes_back_bit_for_bit_with_what_belongs_to_it(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(7, state(7), {"feed": {"drawn": 9, "skipped": [3]}})
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() == 7
        restored, extra = checkpoints.restore(7, shapes(state(0)))
    assert_same(restored, state(7))
    assert extra == {"feed": {"drawn": 9, "skipped": [3]}}


def test_the_newest_are_kept_and_multiples_for_good(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, state(step), {})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 6, 7]
        assert checkpoints.latest(before=6) == 4
        assert checkpoints.latest(before=4) is None


def test_a_step_is_said_to_be_saved_once_it_is_on_disk(tmp_path):
    said = []
    with Checkpoints(tmp_path / "c", on_saved=said.append) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.save(2, state(2), {})
        assert 1 in said
        assert 2 not in said
    assert said == [1, 2]


def test_saved_arrays_may_be_overwritten_at_once(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    now = {"x": jnp.zeros([1000, 1000])}
    with Checkpoints(tmp_path / "c") as checkpoints:
        now = advance(now)
        checkpoints.save(1, now, {})
        for _ in range(20):
            now = advance(now)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, shapes(jax.eval_shape(lambda: {"x": jnp.zeros([1000, 1000])})))
    np.testing.assert_array_equal(restored["x"], np.ones([1000, 1000]))


def test_any_orbax_program_can_read_them(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state(1), {"note": "x"})
    with ocp.CheckpointManager(tmp_path / "c") as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), extra=ocp.args.JsonRestore())
        read = manager.restore(1, args=args)
    np.testing.assert_array_equal(read["state"]["params"]["kernel"], [0.0, 1.0, 2.0])
    assert read["extra"] == {"note": "x"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (state(0, width=4), r"it has \(3,\) at params/kernel, where \(4,\) is expected"),
        (State(jnp.zeros([], int), {"kernel": jnp.zeros(3)}), "at params/moments/0, where nothing is expected"),
        (state(0)._replace(params={**state(0).params, "bias": jnp.zeros(1)}), "it has nothing at params/bias"),
    ],
)
def test_another_model_is_named_with_step_and_leaf(tmp_path, other, message):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, state(5), {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=rf"step 5 .*another model or optimizer: .*{message}"):
            checkpoints.restore(5, shapes(other))


def test_a_missing_step_is_named_with_those_there_are(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, state(5), {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"has no step 4; there are \[5\]"):
            checkpoints.restore(4, shapes(state(0)))


def test_a_damaged_step_is_named(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, state(5), {})
        checkpoints.wait()
        shutil.rmtree(tmp_path / "c" / "5" / "state" / "d")
        with pytest.raises(CheckpointError, match=r"step 5 .*cannot be read"):
            checkpoints.restore(5, shapes(state(0)))


def test_a_half_written_step_is_no_step(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, state(5), {})
    # What a killed process leaves behind.
    shutil.copytree(tmp_path / "c" / "5", tmp_path / "c" / "6.orbax-checkpoint-tmp-1")
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [5]


def test_a_disk_that_takes_no_more_is_told_and_damages_nothing(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.wait()
        with full_disk():
            checkpoints.save(2, state(2, width=10**5), {})
            with pytest.raises(CheckpointError, match=r"step 2 cannot be saved .*; the last one that was is 1"):
                checkpoints.wait()
        assert checkpoints.steps() == [1]
        restored, _ = checkpoints.restore(1, shapes(state(0)))
        assert_same(restored, state(1))
        checkpoints.save(3, state(3), {})  # once there is room again, it goes on
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [1, 3]


@pytest.mark.parametrize("character", "*?[")
def test_a_path_that_orbax_would_take_for_a_pattern_is_refused(tmp_path, character):
    with pytest.raises(ValueError, match=rf"without \*, \? and \[, got \{character} in .*/run\{character}/c"):
        Checkpoints(tmp_path / f"run{character}" / "c")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot use"):
        Checkpoints(tmp_path / "file" / "c")
