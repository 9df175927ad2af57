import dataclasses
import itertools
import json
import math
import random
import shutil
import signal

import jax
import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from experiments import consistency
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.combination import COMBINATION
from experiments.harness.consistency_settings import RECIPES, Settings
from experiments.harness.consistency_training import ConsistencyTraining
from experiments.harness.journal import METRICS, Journal, read_journal
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.training_run import CONFIG, read_settings
from tests.training_processes import Process, compilation_cache

SMALL = "--data ring --devices 1 --width 8 --layers 1 --batch 16 --evaluation-samples 32"
STEPS = 60
OPTIONS = f"{SMALL} --steps {STEPS} --checkpoint-every 7 --keep 20 --evaluate-every 25"


def command(workdir, options=OPTIONS):
    return f"train {options} --workdir {workdir}".split()


def last_state(workdir):
    """The last checkpoint: parameters, average, optimizer state and feed."""
    run = ConsistencyTraining(read_settings(workdir, Settings), DeviceSettings(devices=1))
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        return checkpoints.restore(checkpoints.latest(), run.shapes())


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Many runs here are of the same programs."""
    with compilation_cache(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert consistency.main(command(workdir)) == 0
    return workdir


def test_a_run_leaves_settings_checkpoints_figures_and_samples(finished):
    assert {CONFIG, "checkpoints", METRICS, "run.png", "samples"} <= {path.name for path in finished.iterdir()}
    lines = read_journal(finished / METRICS)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "energy_distance" in line] == [25, 50, 60]
    assert {path.name for path in (finished / "samples").iterdir()} == {f"step_{step}.png" for step in (25, 50, 60)}
    kept = sorted(int(path.name) for path in (finished / "checkpoints").iterdir())
    assert kept == [*range(7, STEPS, 7), STEPS]
    assert (
        json.loads((finished / CONFIG).read_text())["optimization"]["learning_rate"] == RECIPES["points"].learning_rate
    )


def test_a_killed_run_ends_with_the_same_bits_and_the_same_journal(finished, tmp_path):
    killed = tmp_path / "killed"
    moment = random.SystemRandom().randrange(2, STEPS - 2)
    Process("experiments.consistency", command(killed), devices=8).kill_at(killed, moment, signal.SIGKILL)
    assert consistency.main(command(killed)) == 0
    jax.tree.map(np.testing.assert_array_equal, last_state(killed), last_state(finished))
    assert (killed / METRICS).read_bytes() == (finished / METRICS).read_bytes(), moment


def test_a_finished_run_is_not_trained_further_and_its_directory_is_for_no_other(finished, capsys):
    before = (finished / METRICS).read_bytes()
    assert consistency.main(command(finished)) == 0
    assert f"on from step {STEPS}" in capsys.readouterr().out
    assert (finished / METRICS).read_bytes() == before
    assert consistency.main(command(finished, f"{OPTIONS} --decay 0.5")) == 2
    assert "holds a run with decay = 0.99, got 0.5" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--decay 1.5", "decay must be in [0, 1], got 1.5"),
        ("--s0 20 --s1 10", "s1 must be in [20, inf), got 10"),
        ("--network unet", "network must be mlp for ring, got unet"),
        ("--dropout 0.1", "dropout is for the unet, got 0.1 for the mlp"),
        ("--accumulate 3", "accumulate must divide the batch, 16, got 3"),
        ("--optimizer adamm", "adam"),
        ("--objective slct --coupling 5", "coupling must divide the examples of a device and a part, 16, got 5"),
        ("--data file:nowhere", "nowhere: there is no such file"),
        ("--data rings", 'data must be "digits", "ring", "moons", "file:PATH" or "hf:NAME", got \'rings\''),
        ("--evaluation-samples 1", "samples must be in [2, inf), got 1"),
        ("--devices 8 --fsdp 3", "fsdp must divide the number of devices, 8, got 3"),
    ],
)
def test_what_cannot_be_used_is_named_and_takes_no_directory(tmp_path, capsys, options, message):
    assert consistency.main(command(tmp_path / "run", f"{SMALL} --steps 2 {options}")) == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()


def test_a_combination_is_shown_by_its_parameters_and_a_run_by_its_average(finished, tmp_path, capsys):
    combined = tmp_path / "combined"
    combined.mkdir()
    shutil.copytree(finished / "checkpoints" / str(STEPS), combined / "checkpoints" / str(STEPS))
    shutil.copyfile(finished / CONFIG, combined / CONFIG)
    (combined / COMBINATION).write_text("{}")
    pictures = {}
    for name, workdir, more in (("average", finished, ""), ("last", finished, "--weights last"), ("own", combined, "")):
        out = tmp_path / f"[{name}].png"
        assert consistency.main(f"generate --workdir {workdir} --count 40 --out {out} {more}".split()) == 0
        assert f"samples: {out}" in capsys.readouterr().out
        pictures[name] = matplotlib.image.imread(out)
    np.testing.assert_array_equal(pictures["own"], pictures["last"])
    assert (pictures["own"] != pictures["average"]).any()
    assert consistency.main(f"generate --workdir {combined} --weights average".split()) == 2
    assert "weights must be combined in" in capsys.readouterr().out


def test_a_run_that_diverged_and_went_on_is_plotted(finished, tmp_path, capsys):
    diverged = tmp_path / "run"
    shutil.copytree(finished, diverged)
    (diverged / "run.png").unlink()
    with Journal(diverged) as journal:
        journal.write(STEPS, loss=math.nan)
        journal.write(STEPS, energy_distance=math.nan)
    assert consistency.main(command(diverged)) == 0
    assert f"samples to held-out data: nan, after step {STEPS}" in " ".join(capsys.readouterr().out.split())
    assert (diverged / "run.png").exists()


def test_images_of_an_archive_and_of_a_folder_are_trained_on(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number:02}.png")
    workdir = tmp_path / "run"
    network = "--devices 1 --network mlp --width 8 --layers 1 --batch 8 --evaluation-samples 16 --steps 2"
    assert consistency.main(command(workdir, f"{network} --flip --data file:{tmp_path / 'folder'}")) == 0
    assert matplotlib.image.imread(workdir / "samples" / "step_2.png").shape[:2] == (4 * 33 + 1, 4 * 33 + 1)
    settings = read_settings(workdir, Settings)
    data = dataclasses.replace(settings.data, data=f"file:{tmp_path / 'images.npz'}")
    folder, archive = (ConsistencyTraining(dataclasses.replace(settings, data=d)) for d in (settings.data, data))
    assert archive.shape == (4, 4, 3)
    for first, second in zip(itertools.islice(folder.batches(), 6), archive.batches(), strict=False):
        np.testing.assert_array_equal(first.rows, second.rows)


def test_the_defaults_keep_twenty_checkpoints_for_a_search():
    upkeep = consistency.train.__defaults__[2]
    assert upkeep.keep >= 20
    for recipe in RECIPES.values():
        assert recipe.steps // upkeep.checkpoint_every >= 20
