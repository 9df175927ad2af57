import dataclasses
import json
import math
import random
import shutil
import signal
import socket

import jax
import numpy as np
import optax
import pytest

from experiments import pretrain
from experiments.harness import sweeps
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.feed import own_feed
from experiments.harness.journal import METRICS, Journal, read_journal
from experiments.harness.pretraining import FaultSettings, Pretraining, Settings, adopt_state
from experiments.harness.run_settings import DeviceSettings, from_json
from experiments.harness.training_run import read_settings, take_directory
from tests.training_processes import Process, compilation_cache

SMALL = "--devices 1 --layers 2 --width 16 --heads 2 --hidden 16 --context 16 --batch 8 --validation-batches 1"
SPIKES = "--spike-probability 0.3 --spike-scale 30 --checkpoint-every 4"


def command(workdir, options="", *, steps=6):
    return ["train", *f"{SMALL} --steps {steps} --workdir {workdir} {options}".split()]


def replay(workdir, options):
    return ["replay", *f"--devices 1 --workdir {workdir} {options}".split()]


def losses(workdir):
    return [line["loss"] for line in read_journal(workdir / METRICS) if "loss" in line]


def last_state(workdir):
    """Parameters, optimizer state and feed of the last checkpoint."""
    run = Pretraining(read_settings(workdir, Settings), DeviceSettings(devices=1))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(checkpoints.latest(), run.shapes())


def assert_same(state, expected):
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Many runs here are of the same programs."""
    with compilation_cache(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert pretrain.main(command(workdir, SPIKES, steps=12)) == 0
    return workdir


def process(arguments):
    return Process("experiments.pretrain", arguments)


def test_a_run_leaves_everything_in_its_directory(finished):
    assert {"checkpoints", "config.json", METRICS, "run.png", "spikes.jsonl"} <= {p.name for p in finished.iterdir()}
    assert len(losses(finished)) == 12
    settings = json.loads((finished / "config.json").read_text())
    assert settings["model"]["width"] == 16
    assert settings["optimization"]["learning_rate"] == 3e-3  # the preset's


def test_a_finished_run_is_not_trained_further(finished, capsys):
    before = (finished / METRICS).read_bytes()
    assert pretrain.main(command(finished, SPIKES, steps=12)) == 0
    assert "on from step 12" in capsys.readouterr().out
    assert (finished / METRICS).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--accumulate 3", "accumulate must divide the batch, 8, got 3"),
        ("--batch 0", "batch must be at least 1, got 0"),
        ("--optimizer adamm", "adam"),
        ("--option b2=0.5,0.6", "no step can be taken with adamw b2=0.5,0.6: TypeError"),
        ("--spike-probability 2", "probability must be in [0, 1], got 2.0"),
        ("--spike-probability 0.5 --spike-leaves foo", "leaves must be found in one of the paths"),
        ("--validation-batches 0", "batches must be in [1, inf), got 0"),
        ("--devices 8 --batch 12", "batch must be a multiple of the number of devices, 8, got 12"),
        ("--devices 2 --parallel pmap --accumulate 8", "accumulate must divide the rows of a device, 8 / 2, got 8"),
        ("--data file:nowhere.txt", "nowhere.txt"),
        ("--sweep learning_rate=fast", "sweep must be NAME=VALUE"),
        ("--sweep learning_rate=-1,1e-3", "learning_rate must be in [0, inf), got -1"),
        ("--sweep learning_rate=1e-3 --sweep-at-once 0", "sweep_at_once must be at least 1, got 0"),
        ("--optimizer spam --sweep density=0.1,0.5", "density decides how spam is compiled, not just a number in it"),
        ("--optimizer spam --sweep b1=0.5,1.5", "b1 must be in [0, 1), got 1.5"),
        ("--devices 8 --fsdp 3", "fsdp must divide the number of devices, 8, got 3"),
        ("--devices 9", "devices must be in [1, 8], got 9"),
        ("--heads 3", "heads must cut the width 16 in parts of even size, got 3"),
    ],
)
def test_what_cannot_be_used_is_named_and_takes_no_directory(tmp_path, capsys, options, message):
    assert pretrain.main(command(tmp_path / "run", options)) == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()


def test_a_path_that_can_hold_no_checkpoints_is_named_and_not_taken(tmp_path, capsys):
    assert pretrain.main(command(tmp_path / "run[lr=1]")) == 2
    assert "got [ in" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_directory_is_for_one_run(finished, capsys):
    assert pretrain.main(command(finished, f"{SPIKES} --learning-rate 0.1", steps=12)) == 2
    message = " ".join(capsys.readouterr().out.split())
    assert "holds a run with learning_rate = 0.003, got 0.1; go on with the same settings" in message


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(tmp_path):
    options = "--checkpoint-every 5 --evaluate-every 20 --log-every 2 --optimizer spam --option reset_every=7"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process(command(whole, options, steps=60)).output()
    moments = sorted(random.SystemRandom().sample(range(2, 30), 3))  # in lines of the journal
    for moment in moments:
        process(command(killed, options, steps=60)).kill_at(killed, moment, signal.SIGKILL)
    process(command(killed, options, steps=60)).output()
    (state, extra), (expected, extra_expected) = last_state(killed), last_state(whole)
    assert int(state.step) == 60, moments
    assert_same(state, expected)
    assert extra == extra_expected
    assert (killed / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def test_a_terminated_run_saves_and_exits_cleanly(tmp_path):
    child = process(command(tmp_path, "--checkpoint-every 10000", steps=5000))
    output = child.kill_at(tmp_path, 20, signal.SIGTERM)
    assert child.process.returncode == 0, output
    assert "which is saved; the same command goes on from there" in " ".join(output.split())
    state, _ = last_state(tmp_path)
    assert 20 <= int(state.step) < 5000


def test_one_device_eight_devices_pmap_and_two_processes_train_alike(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    wide = "--width 64 --devices {devices} {more}"  # so that there is something to spread
    two = wide.format(devices=2, more=f"--fsdp 2 --coordinator {address} --processes 2")
    pair = [process(command(tmp_path / "two", f"{two} --process {number}", steps=4)) for number in range(2)]
    for child in pair:
        child.output()
    process(command(tmp_path / "one", "--width 64", steps=4)).output()
    for name, more in (("eight", "--fsdp 2"), ("pmap", "--parallel pmap")):
        assert pretrain.main(command(tmp_path / name, wide.format(devices=8, more=more), steps=4)) == 0
    expected, extra = losses(tmp_path / "one"), last_state(tmp_path / "one")[1]
    for name in ("two", "eight", "pmap"):
        np.testing.assert_allclose(losses(tmp_path / name), expected, rtol=1e-5)
        assert own_feed(last_state(tmp_path / name)[1]) == own_feed(extra)  # the same rows, as tests of the corpus show


def test_all_options_work_together(tmp_path):
    model = "--dtype bfloat16 --weight-bits 4 --activation-bits 4 --qk-norm True --tied True --scan True --remat True"
    training = (
        "--z-loss 1e-4 --mup-base-width 8 --state-bits 8 --accumulate 2 --clip-norm 1 --schedule wsd --tensorboard"
    )
    assert pretrain.main(command(tmp_path, f"{model} {training} --optimizer stable_spam --option b2=0.95")) == 0
    assert np.all(np.isfinite(losses(tmp_path)))
    (validation,) = [line for line in read_journal(tmp_path / METRICS) if "validation_loss" in line]
    assert validation["validation_loss"] < losses(tmp_path)[0]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_streamed_data_set_is_resumed_where_it_was(tmp_path):
    documents = [{"text": f"Document {n}: " + "words and more words, " * (n % 7)} for n in range(200)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    options = f"--data hf:json:{tmp_path / 'text.jsonl'} --checkpoint-every 2"
    assert pretrain.main(command(tmp_path / "whole", options)) == 0
    assert pretrain.main(command(tmp_path / "parts", options)) == 0
    for step in (4, 6):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / str(step))
    assert pretrain.main(command(tmp_path / "parts", options)) == 0
    assert_same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))


def test_a_run_that_breaks_says_where_and_is_plotted(tmp_path, capsys):
    options = "--learning-rate 1e20 --schedule constant --warmup 0 --checkpoint-every 1"
    assert pretrain.main(command(tmp_path, options)) == 1
    message = " ".join(capsys.readouterr().out.split())
    assert "at step 1 (batch 0): the gradients are finite, the update is not" in message
    assert "the last good checkpoint is none" in message
    assert (tmp_path / "run.png").exists()


def test_a_run_that_diverged_and_went_on_is_plotted(finished, tmp_path, capsys):
    diverged = tmp_path / "run"
    shutil.copytree(finished, diverged)
    (diverged / "run.png").unlink()
    with Journal(diverged) as journal:
        journal.write(12, loss=math.nan)
        journal.write(12, validation_loss=math.nan)
    assert pretrain.main(command(diverged, SPIKES, steps=12)) == 0
    assert "validation loss: nan nats a token, after step 12" in capsys.readouterr().out
    assert (diverged / "run.png").exists()


def test_a_replay_with_nothing_changed_is_what_happened(finished, capsys):
    assert pretrain.main(replay(finished, "--step 9 --after 2")) == 0
    assert "replaying steps 9 to 11 with adamw" in capsys.readouterr().out
    happened = [line for line in read_journal(finished / METRICS) if 9 <= line["step"] <= 11]
    assert read_journal(finished / "replays" / "step_9" / "adamw" / METRICS) == happened
    assert (finished / "replays" / "step_9" / "replays.png").stat().st_size > 1000


def test_a_replay_trains_the_same_batches_otherwise(finished):
    options = "--step 9 --after 2 --optimizer spam --clip-norm 1 --spike-probability 0"
    assert pretrain.main(replay(finished, options)) == 0
    (replayed,) = (finished / "replays" / "step_9").glob(f"spam*/{METRICS}")
    happened = [line for line in read_journal(finished / METRICS) if 9 <= line["step"] <= 11 and "loss" in line]
    lines = read_journal(replayed)
    assert [line["batch"] for line in lines] == [line["batch"] for line in happened]
    assert lines[0]["loss"] == pytest.approx(happened[0]["loss"], rel=1e-5)  # before the first update
    assert lines[-1]["loss"] != happened[-1]["loss"]


def test_a_replay_leaves_out_what_the_run_left_out_after_its_checkpoint(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with (tmp_path / "run" / METRICS).open("a") as file:
        file.write(json.dumps({"step": 8, "skipped": 9}) + "\n")
    assert pretrain.main(replay(tmp_path / "run", "--step 9 --after 2")) == 0
    lines = read_journal(tmp_path / "run" / "replays" / "step_9" / "adamw" / METRICS)
    assert [line["batch"] for line in lines] == [8, 10, 11]


def test_a_replay_of_no_step_is_named(finished, capsys):
    assert pretrain.main(replay(finished, "--step 13")) == 2
    assert "step must be in [1, 12], got 13" in capsys.readouterr().out


def test_another_optimizer_takes_over_the_moments():
    params = {"kernel": np.ones([2, 3], np.float32)}
    adam, lion = optax.adam(0.1), optax.lion(0.1)
    _, state = adam.update(params, adam.init(params), params)
    np.testing.assert_allclose(adopt_state(lion.init(params), state)[0].mu["kernel"], 0.1)
    assert_same(adopt_state(adam.init(params), state), state)
    counts = optax.chain(adam, optax.scale_by_schedule(lambda step: 1.0)), optax.chain(adam, adam)
    one, two = (optimizer.init(params) for optimizer in counts)
    leaves = jax.tree.leaves(adopt_state(two, one))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # or they could not be donated
    assert_same(adopt_state(lion.init({"other": np.ones(2)}), state)[0].mu, {"other": np.zeros(2)})


def test_a_sweep_in_parts_trains_what_a_single_run_trains(tmp_path):
    options = "--sweep learning_rate=1e-3,1e-2,1e20 --sweep-at-once 2 --schedule constant --warmup 0"
    assert pretrain.main(command(tmp_path / "sweep", options)) == 0
    assert pretrain.main(command(tmp_path / "alone", "--learning-rate 1e-2 --schedule constant --warmup 0")) == 0
    swept = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert swept["values"] == [1e-3, 1e-2, 1e20]
    assert (tmp_path / "sweep" / "sweep.png").exists()
    alone = [line for line in read_journal(tmp_path / "alone" / METRICS) if "validation_loss" in line]
    assert swept["validation_loss"][1] == pytest.approx(alone[-1]["validation_loss"], rel=1e-5)
    assert swept["validation_loss"][2] is None  # diverged, and the others went on
    lines = [line for line in read_journal(tmp_path / "sweep" / METRICS) if "loss" in line]
    assert [line["learning_rate"] for line in lines] == 6 * [[1e-3, 1e-2]] + 6 * [[1e20]]
    np.testing.assert_allclose([line["loss"][1] for line in lines[:6]], losses(tmp_path / "alone"), rtol=1e-5)


def test_a_sweep_is_not_written_over_a_run_nor_over_another_sweep(finished, tmp_path, capsys):
    before = (finished / METRICS).read_bytes()
    assert pretrain.main(command(finished, f"{SPIKES} --sweep learning_rate=1e-3,1e-2", steps=12)) == 2
    assert "holds a run; choose another --workdir for the sweep" in " ".join(capsys.readouterr().out.split())
    assert (finished / METRICS).read_bytes() == before
    (tmp_path / "sweep.json").write_text('{"hyperparameter": "learning_rate", "values": [0.001, 0.01]}')
    for options in ("", "--sweep learning_rate=1e-3", "--sweep weight_decay=1e-3,1e-2"):
        assert pretrain.main(command(tmp_path, options)) == 2
        assert "holds the sweep learning_rate=0.001,0.01; choose another" in " ".join(capsys.readouterr().out.split())
    sweeps.check_directory(tmp_path, ("learning_rate", (1e-3, 1e-2)))  # the same one may be done again


def test_a_sweep_is_for_one_process(monkeypatch):
    run = Pretraining(Settings().complete(), DeviceSettings(devices=1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="a sweep is for one process, there are 2"):
        sweeps.check_sweep(run, "learning_rate", (1e-3, 1e-2))


def test_a_sample_continues_its_prompt(finished, capsys):
    prompt = "f[:x:] :m: [b]a"
    assert pretrain.main(["generate", "--workdir", str(finished), "--prompt", prompt, "--length", "5"]) == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_settings_survive_json():
    settings = Settings().complete()
    assert from_json(Settings, json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


def test_settings_that_are_not_finite_are_the_same_again(tmp_path):
    faults = FaultSettings(spike_scale=math.inf, spike_entries=math.nan)
    settings = dataclasses.replace(Settings(), faults=faults)
    take_directory(tmp_path, settings)
    take_directory(tmp_path, settings)
    stored = read_settings(tmp_path, Settings).faults
    assert (stored.spike_scale, math.isnan(stored.spike_entries)) == (math.inf, True)
    with pytest.raises(ValueError, match="holds a run with spike_scale = inf, got nan"):
        take_directory(tmp_path, dataclasses.replace(settings, faults=FaultSettings(spike_scale=math.nan)))
