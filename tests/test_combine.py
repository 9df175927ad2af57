import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import combine, pretrain
from experiments.harness.pretraining import DataSettings, DeviceSettings, ModelSettings, Settings

SMALL = "--devices 1 --layers 1 --width 16 --heads 2 --hidden 16 --context 16 --batch 8 --validation-batches 1"
DEVICES = DeviceSettings(devices=1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    options = f"{SMALL} --steps 6 --keep 9 --checkpoint-every 2 --evaluate-every 6 --workdir {workdir}"
    assert pretrain.main(["train", *options.split()]) == 0
    return workdir


def open_run(workdir, **batches):
    return combine.LanguageModel(workdir, **{"search_batches": 1, "report_batches": 2, **batches}, devices=DEVICES)


def test_a_combined_run_is_read_by_the_trainer(workdir, capsys):
    options = dict(search_batches=1, report_batches=1, devices=1)
    assert combine.main(workdir, "lcsc", epochs=1, children=2, **options) == 0
    out = workdir / "combined" / "lcsc"
    result = json.loads((out / "combination.json").read_text())
    assert result["steps"] == [2, 4, 6]
    assert result["figures"]["combined"]["search"] <= result["figures"]["last"]["search"]
    assert pretrain.main(f"generate --workdir {out} --length 5 --prompt abc".split()) == 0
    assert "abc" in capsys.readouterr().out
    assert combine.main(workdir, "lcsc", **options) == 2
    assert "out must be a directory without a combination" in capsys.readouterr().out


def test_search_and_report_read_different_text(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{number:06d} " for number in range(3000)))
    model = ModelSettings(layers=1, width=16, heads=2, hidden=16, context=28)
    settings = Settings(model=model, data=DataSettings(data=f"file:{tmp_path / 'text.txt'}", batch=8)).complete()
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(settings)))
    run = open_run(tmp_path, search_batches=2, report_batches=3)
    search, report = (np.concatenate(batches).astype(np.uint8) for batches in (run._search, run._report))
    assert len(search) == 2 * 8
    assert len(report) == 3 * 8
    numbers = [
        {number for row in rows for number in re.findall(r"\d{6}", bytes(row).decode())} for rows in (search, report)
    ]
    assert len(numbers[0]) > 3 * 16
    assert not numbers[0] & numbers[1]


def test_fitness_is_the_mean_loss_and_the_same_at_every_call(workdir):
    run = open_run(workdir)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.shapes.params)
    # All logits are alike: a uniform guess among 256 bytes.
    assert run.fitness(params) == pytest.approx(np.log(256), rel=1e-5)
    assert run.report(params) == {"loss": pytest.approx(np.log(256), rel=1e-5)}


def test_too_many_batches_for_the_text_are_refused(workdir):
    with pytest.raises(ValueError, match=r"too short for 2001 batches"):
        open_run(workdir, search_batches=2000, report_batches=1)
    with pytest.raises(ValueError, match=r"^search_batches must be in \[1, inf\), got 0"):
        open_run(workdir, search_batches=0)


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert combine.main(tmp_path) == 2
    assert "workdir must be that of a run" in capsys.readouterr().out
