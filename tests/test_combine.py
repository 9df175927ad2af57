import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import combine, consistency, pretrain
from experiments.harness import combination
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.combinable_runs import open_run
from experiments.harness.consistency_settings import DataSettings, NetworkSettings, Settings
from experiments.harness.consistency_training import ConsistencyTraining
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.training_run import take_directory

SMALL = "--devices 1 --layers 1 --width 16 --heads 2 --hidden 16 --context 16 --batch 8 --validation-batches 1"
ONE = DeviceSettings(devices=1)
OPTIONS = dict(search_batches=1, report_batches=1, devices=1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    options = f"{SMALL} --steps 6 --keep 9 --checkpoint-every 2 --evaluate-every 6 --workdir {workdir}"
    assert pretrain.main(["train", *options.split()]) == 0
    return workdir


def test_a_combined_language_model_is_read_by_the_trainer(workdir, capsys):
    assert combine.main(workdir, "lcsc", epochs=1, children=2, **OPTIONS) == 0
    out = workdir / "combined" / "lcsc"
    result = json.loads((out / "combination.json").read_text())
    assert result["steps"] == [2, 4, 6]
    assert result["figures"]["combined"]["search"] <= result["figures"]["last"]["search"]
    assert pretrain.main(f"generate --workdir {out} --length 5 --prompt abc".split()) == 0
    assert "abc" in capsys.readouterr().out
    assert combine.main(workdir, "lcsc", **OPTIONS) == 2
    assert "out must be a directory without a combination" in capsys.readouterr().out


def untrained_run(workdir):
    """A consistency model's run whose checkpoints are random."""
    data, network = DataSettings("ring", batch=32), NetworkSettings("mlp", width=8, layers=1)
    training = ConsistencyTraining(Settings(data=data, network=network).complete(), ONE)
    take_directory(workdir, training.settings)
    state, random = training.create(), np.random.default_rng(0)
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        for step in (1, 2, 3):
            params, average = (
                jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), state.params)
                for _ in range(2)
            )
            checkpoints.save(step, state._replace(params=params, average=average), {})
    return workdir


def test_a_combined_consistency_model_is_sampled_by_the_trainer(tmp_path, capsys):
    out = tmp_path / "combined"
    run = open_run(untrained_run(tmp_path), search_batches=1, report_batches=1, devices=ONE)
    figures = combination.combine(run, tmp_path, out, carry=["config.json"], method="uniform")["figures"]
    with Checkpoints(tmp_path / "checkpoints", keep=None) as there, Checkpoints(out / "checkpoints", keep=None) as new:
        states = [there.restore(step, run.shapes)[0] for step in (1, 2, 3)]
        combined, _ = new.restore(3, run.shapes)
    for mean, *leaves in zip(*(jax.tree.leaves(state.params) for state in (combined, *states)), strict=True):
        np.testing.assert_allclose(mean, np.mean(leaves, axis=0), rtol=1e-5, atol=1e-6)
    for name, params in {
        "combined": combined.params,
        "last": states[-1].params,
        "EMA of the training": states[-1].average,
    }.items():
        assert figures[name]["search"] == pytest.approx(run.fitness(params), rel=1e-4)
        assert figures[name]["report"]["distance"] == pytest.approx(run.report(params)["distance"], rel=1e-4)
    pictures = [(out / f"samples_{name}.png").read_bytes() for name in ("last", "combined")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]
    assert "EMA of the training" in capsys.readouterr().out
    assert consistency.main(f"generate --workdir {out} --count 4".split()) == 0
    assert (out / "samples.png").exists()


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert combine.main(tmp_path) == 2
    assert "workdir must be that of a run" in capsys.readouterr().out
