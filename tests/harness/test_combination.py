import json
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.harness.checkpoints import CheckpointError, Checkpoints
from experiments.harness.coefficient_search import Effort
from experiments.harness.combination import COMBINATION, Candidates, Combinable, combine
from tests.full_disk import full_disk

STEPS = [2, 4, 6, 8]
EFFORT = Effort(epochs=2, children=4)


class State(NamedTuple):
    step: Any
    params: Any
    moments: Any


def state(step, size=6):
    w = jnp.asarray(np.random.default_rng(step).normal(size=size), jnp.float32)
    return State(jnp.int32(step), {"w": w}, jnp.full([size], float(step)))


class Distances(Combinable):
    """A run that is judged by distances: to one target in a search, to another in a report."""

    metric = "squared distance"

    def __init__(self, size=6):
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self.shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state(0, size)
        )
        self.target = np.asarray(state(8, size).params["w"]) * 1.2

    def fitness(self, params):
        return float(np.sum((params["w"] - self.target) ** 2))

    def report(self, params):
        return {"distance": float(np.sum((params["w"] - 2 * self.target) ** 2))}


def write(workdir, states):
    with Checkpoints(workdir / "checkpoints", keep=None, asynchronous=False) as checkpoints:
        for content in states:
            checkpoints.save(int(content.step), content, {"feed": int(content.step)})
    (workdir / "config.json").write_text('{"a": 1}')


@pytest.fixture
def workdir(tmp_path):
    write(tmp_path, map(state, STEPS))
    return tmp_path


@pytest.fixture(scope="module")
def read_only(tmp_path_factory):
    """A run that no test changes."""
    workdir = tmp_path_factory.mktemp("run")
    write(workdir, map(state, STEPS))
    return workdir


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def weights():
    return np.stack([np.asarray(state(step).params["w"], np.float64) for step in STEPS])


def test_the_combination_is_a_checkpoint_like_the_last_but_for_its_parameters(workdir):
    before = contents(workdir)
    result = combine(Distances(), workdir, workdir / "out", carry=["config.json"], effort=EFFORT)
    with Checkpoints(workdir / "out" / "checkpoints") as written:
        assert written.steps() == [8]
        restored, extra = written.restore(8, Distances().shapes)
    np.testing.assert_allclose(restored.params["w"], np.array(result["coefficients"]) @ weights(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(restored.moments, state(8).moments)
    assert restored.step == extra["feed"] == 8
    assert (workdir / "out" / "config.json").read_text() == '{"a": 1}'
    assert (workdir / "out" / "coefficients.png").read_bytes().startswith(b"\x89PNG")
    assert contents(workdir).items() >= before.items()


def test_what_is_written_down_is_what_the_combinations_are_worth(read_only, tmp_path, capsys):
    run = Distances()
    combine(run, read_only, tmp_path / "out", effort=EFFORT)
    result = json.loads((tmp_path / "out" / COMBINATION).read_text())
    figures = result["figures"]
    gamma = figures["ema"]["gamma"]
    decays = gamma ** np.arange(3, -1, -1)
    for name, a in {
        "combined": result["coefficients"],
        "last": [0, 0, 0, 1],
        "uniform": np.full(4, 0.25),
        "ema": decays / decays.sum(),
    }.items():
        w = a @ weights()
        assert figures[name]["search"] == pytest.approx(np.sum((w - run.target) ** 2), rel=1e-4)
        assert figures[name]["report"]["distance"] == pytest.approx(np.sum((w - 2 * run.target) ** 2), rel=1e-4)
    assert figures["combined"]["search"] == result["history"][-1] <= min(result["averages"]["search"])
    assert result["steps"] == STEPS
    assert result["evaluations"] == 24 + 2 * 4
    assert "lcsc, written" in capsys.readouterr().out


def test_checkpoints_that_do_not_fit_are_streamed_to_the_same_end(read_only, tmp_path):
    stacked = combine(Distances(), read_only, tmp_path / "stacked", effort=EFFORT)
    one_by_one = combine(Distances(), read_only, tmp_path / "streamed", effort=EFFORT, memory_bytes=0)
    two_by_two = combine(Distances(), read_only, tmp_path / "pairs", effort=EFFORT, memory_bytes=2 * 6 * 4)
    for streamed in (one_by_one, two_by_two):
        np.testing.assert_allclose(streamed["history"], stacked["history"], rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_sums_of_a_stack_are_the_same_however_many_at_once(read_only, at_once):
    population = np.random.default_rng(0).normal(size=[7, 4]).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    shapes = jax.tree.map(lambda leaf: leaf.update(sharding=split if leaf.ndim else leaf.sharding), Distances().shapes)
    with Checkpoints(read_only / "checkpoints", keep=None) as checkpoints:
        candidates = Candidates(checkpoints, STEPS, shapes, memory_bytes=(4 + at_once) * 6 * 4)
        assert candidates.in_memory
        with warnings.catch_warnings(action="error"):  # memory that is given up is taken
            found = [*candidates.each(population), *candidates.each(population[:2])]
    for params, row in zip(found, [*population, *population[:2]], strict=True):
        np.testing.assert_allclose(params["w"], row @ weights(), rtol=1e-5, atol=1e-6)
        assert params["w"].sharding.is_equivalent_to(split, 1)


def test_a_gap_in_the_window_is_named_or_taken(workdir, capsys):
    write(workdir, [state(14)])
    with pytest.raises(CheckpointError, match=r"lacks steps 10, 12 of the window \[2, 4, 6, 8, 14\]"):
        combine(Distances(), workdir, workdir / "out", method="uniform")
    assert combine(Distances(), workdir, workdir / "out", method="uniform", skip_bad=True)["steps"] == [*STEPS, 14]
    assert "lacks steps 10, 12" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_finite_is_named_or_left_out(workdir, capsys):
    write(workdir, [state(10)._replace(params={"w": jnp.full(6, math.nan)})])
    with pytest.raises(CheckpointError, match=r"step 10 .*not finite at params/w"):
        combine(Distances(), workdir, workdir / "out", method="uniform")
    assert not (workdir / "out").exists()
    assert combine(Distances(), workdir, workdir / "out", method="uniform", skip_bad=True)["steps"] == STEPS
    assert "left out: step 10" in capsys.readouterr().out.replace("\n", " ")


def test_a_full_disk_is_told_and_damages_nothing(tmp_path):
    size = 10**5
    write(tmp_path, [state(step, size) for step in STEPS])
    before = contents(tmp_path)
    with full_disk(), pytest.raises(CheckpointError, match=r"step 8 cannot be saved in .*out"):
        combine(Distances(size), tmp_path, tmp_path / "out", method="uniform")
    assert contents(tmp_path).items() >= before.items()
    combine(Distances(size), tmp_path, tmp_path / "out", method="uniform")  # there is room again


def test_a_combination_is_not_overwritten_nor_where_it_could_not_be_read(workdir):
    combine(Distances(), workdir, workdir / "out", method="uniform")
    before = contents(workdir)
    with pytest.raises(ValueError, match=r"^out must be a directory without a combination"):
        combine(Distances(), workdir, workdir / "out", method="uniform")
    with pytest.raises(ValueError, match=r"^out must be a directory without a combination"):
        combine(Distances(), workdir, workdir, method="uniform")
    with pytest.raises(ValueError, match=r"^checkpoints must be in a path without"):
        combine(Distances(), workdir, workdir / "out[2]", method="uniform")
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(last=1), r"window must hold at least 2 checkpoints, got \[8\] of"),
        (dict(gammas=(0.5,)), "gamma is for the method ema"),
        (dict(gammas=(1.5,), method="ema"), r"gamma must be in \[0, 1\], got 1.5"),
        (dict(stride=0), "stride must be in"),
        (dict(memory_bytes=-1), "memory must be in"),
        (dict(effort=Effort(children=0)), "children must be in"),
    ],
)
def test_bad_arguments_are_named(read_only, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        combine(Distances(), read_only, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_directory_without_checkpoints_is_said_and_left_as_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"^workdir must hold checkpoints"):
        combine(Distances(), tmp_path, tmp_path / "out")
    assert not list(tmp_path.iterdir())
