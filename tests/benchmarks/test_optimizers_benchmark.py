import json
import math
import subprocess
import sys

import jax
import pytest

from experiments.benchmarks import optimizers, torch_peers
from experiments.benchmarks.timing import paired_ratio


def test_a_tiny_run_prints_the_table_and_writes_json(tmp_path, capsys):
    sizes = (20_000, 40_000)
    assert optimizers.main(size=sizes, leaves=10, repeats=2, only=("adamw", "spam, density 0.25"), out=tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"optimizers_{jax.default_backend()}.json"
    result = json.loads(path.read_text())
    for table, size in zip(result["tables"], sizes, strict=True):
        assert table["leaves"] == 10
        assert table["parameters"] == pytest.approx(size, rel=0.01)
        adamw, sparse = table["rows"]
        assert adamw["state_bytes_per_parameter"] == pytest.approx(8, abs=0.01)
        assert sparse["state_bytes_per_parameter"] <= 12 * 0.25 + 0.01
        for row in table["rows"]:
            low, high = row["ratio_quartiles"]
            assert 0 < low <= row["ratio"] <= high
            assert row["compile_s"] > 0
    assert "density 0.25" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "leaves"), [(25_000_000, 98), (1_000_000, 300), (10_000, 10)])
def test_the_tree_has_the_size_asked_for(size, leaves):
    shapes = jax.tree.leaves(optimizers.transformer_shapes(size, leaves))
    assert abs(len(shapes) - leaves) <= 4
    assert math.isclose(sum(math.prod(shape.shape) for shape in shapes), size, rel_tol=0.01)


def test_an_unwritable_directory_is_said_before_anything_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(optimizers, "measure", None)
    (tmp_path / "file").touch()
    assert optimizers.main(out=tmp_path / "file" / "results") == 2
    assert capsys.readouterr().err.startswith("cannot write to the output directory ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=(1e6, 10.0)), "--size must be at least 10000, got 10.0"),
        (dict(size=(math.nan,)), "--size must be at least 10000, got nan"),
        (dict(leaves=1), "--leaves must be at least 10, got 1"),
        (dict(repeats=0), "--repeats must be at least 1, got 0"),
        (dict(only=("spamm",)), "--only: no optimizer 'spamm'; there are 'adamw', 'spam'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys):
    assert optimizers.main(**arguments, out=tmp_path) == 2
    assert capsys.readouterr().err.startswith(message)


def test_peers_are_those_that_are_installed(monkeypatch):
    monkeypatch.setattr(torch_peers, "_installed", lambda package: False)
    assert torch_peers.available() == torch_peers.versions() == {}


def test_torch_is_timed_against_the_same_peer(tmp_path, monkeypatch):
    """Without PyTorch, which no one has to install: what is asked of it is this much."""
    taken = []

    def stepper(make, shapes):
        return lambda: taken.append(shapes), lambda: 24 * sum(map(math.prod, shapes))

    monkeypatch.setattr(torch_peers, "available", lambda: {"torch: AdamW": None})
    monkeypatch.setattr(torch_peers, "stepper", stepper)
    assert optimizers.main(size=(20_000,), leaves=10, repeats=2, only=("torch: AdamW",), out=tmp_path) == 0
    (path,) = tmp_path.iterdir()
    (row,) = json.loads(path.read_text())["tables"][0]["rows"]
    assert row["state_bytes_per_parameter"] == 24
    assert len(taken[0]) == 10


def test_the_command_line_lists_the_benchmarks():
    command = [sys.executable, "-m", "experiments.benchmarks", "--help"]
    assert "optimizers" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_paired_ratio_of_twice_the_work_is_two(monkeypatch):
    clock = 0.0

    def takes(seconds):
        def work():
            nonlocal clock
            clock += seconds

        return work

    monkeypatch.setattr("experiments.benchmarks.timing.time.perf_counter", lambda: clock)
    ratio = paired_ratio(takes(0.5), takes(0.25), repeats=5)
    assert ratio == (2.0, 2.0, 2.0, 0.5, 0.25)
