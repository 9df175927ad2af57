import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.journal import Journal
from experiments.harness.spikes import SPIKES, Detector, SpikeRecorder, read_spikes, usual_range
from experiments.harness.vitals import Vitals


def events(series, **settings):
    """Where spikes begin in a series of one signal."""
    detector = Detector(["loss"], **settings)
    return [step for step, value in enumerate(series) if detector.see({"loss": value}) is not None]


def noise(steps, seed=0, mean=2.0, deviation=0.1):
    return np.random.default_rng(seed).normal(mean, deviation, steps)


def test_the_usual_range_by_hand():
    """The median is 3, the median deviation 1; a spike among the values hardly matters."""
    np.testing.assert_allclose(usual_range([1, 2, 3, 4, 5], threshold=2.0), (3, 3 + 2 * 1.4826))
    np.testing.assert_allclose(usual_range([1, 2, 3, 4, 1e9], threshold=2.0), (3, 3 + 2 * 1.4826))
    np.testing.assert_allclose(usual_range([7.0] * 9, threshold=8.0), (7, 7 * 1.08))


def test_the_usual_rise_by_hand():
    """Along a line each value is 3 above the median of the five before it, which is 9 for the next one."""
    np.testing.assert_allclose(usual_range(range(12), threshold=2.0), (5.5, 9 + 3 + 2 * 0.01 * 5.5))


def test_a_jump_is_found_although_the_level_has_been_higher():
    """As update norms do while the learning rate falls."""
    series = np.geomspace(1, 0.1, 200) * noise(200, mean=1.0, deviation=0.02)
    series[150] *= 3
    assert series[150] < series[20:51].min()
    assert events(series) == [150]


@pytest.mark.parametrize("seed", range(3))
def test_normal_noise_has_no_spikes(seed):
    assert events(noise(1000, seed)) == []
    assert events(np.exp(noise(1000, seed, deviation=0.1))) == []


def test_a_threefold_value_is_found_at_its_step():
    series = noise(300)
    series[[150, 220]] *= 3
    assert events(series) == [150, 220]


def test_a_fall_is_no_spike():
    series = noise(300)
    series[150:] /= 3
    assert events(series) == []


@pytest.mark.parametrize("end", [0.5, 20.0])
def test_slow_drift_is_no_spike(end):
    assert events(noise(1000) * np.geomspace(1, end, 1000)) == []


def test_a_long_excursion_is_one_spike():
    series = noise(400)
    series[150:170] *= 3
    assert events(series) == [150]
    series[300:] *= 5  # for good: it becomes usual, so that a spike from there is a new one
    series[390] *= 3
    assert events(series) == [150, 300, 390]


def test_nothing_finite_is_a_spike_before_there_is_a_range():
    series = noise(60)
    series[[10, 29]] *= 100
    assert events(series, warmup=30) == []
    series[30] *= 100
    assert events(series, warmup=30) == [30]


def test_what_is_not_finite_is_a_spike_at_once_and_does_not_count_as_usual():
    series = noise(100)
    series[5], series[50:53], series[80] = np.nan, np.inf, 6
    assert events(series) == [5, 50, 80]
    detector = Detector(["loss"])
    assert detector.see({"loss": None}) == ("loss", None, None)


def test_one_spike_for_all_signals_until_all_are_back():
    detector, found = Detector(), []
    loss, update = noise(100), noise(100, 1)
    loss[50:52] *= 3
    update[51:54] *= 3
    update[70] *= 3
    for step, figures in enumerate(zip(loss, update, strict=True)):
        event = detector.see(dict(zip(("loss", "update_norm"), figures, strict=True)))
        if event:
            found.append((step, event[0]))
    assert found == [(50, "loss"), (70, "update_norm")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, r"window must be in \[1, inf\), got 0"),
        ({"warmup": 101}, r"warmup must be in \[1, 100\], got 101"),
        ({"threshold": 0.0}, r"threshold must be in \(0, inf\], got 0.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Detector(**settings)


def vitals(loss, as_array=np.asarray):
    """Norms that tell their step's loss."""
    layers = np.float32([1, 2]) * np.float32(loss)
    tree = Vitals(
        *(np.float32(factor * loss) for factor in (1, 10, 1, 5)),
        {"head": np.float32(loss / 2), "blocks/mlp": layers},
        {"head": np.float32(loss / 4), "blocks/mlp": 3 * layers},
        max_attention_logits=layers,
    )
    return Vitals(*(field if isinstance(field, dict) or field is None else as_array(field) for field in tree))


def train(workdir, losses, *, start=0, resume_step=None, usual=None, kill=None, log_every=1, as_array=np.asarray):
    """Steps 1, 2, … of a run that is journalled and watched; a killed one closes nothing."""
    journal = Journal(workdir, resume_step=resume_step)
    recorder = SpikeRecorder(workdir, resume_step=resume_step, usual=usual, window=40)
    for step, loss in enumerate(losses[start:], start + 1):
        if step == kill:
            return None
        found = vitals(loss, as_array)
        recorder.see(step, found, positions=np.array([10 * step, 10 * step + 1]))
        if step % log_every == 0:
            journal.write(step, loss=found.loss, update_norm=found.update_norm)
    recorder.close()
    return recorder


def spiky(steps=120, at=(60, 100)):
    series = noise(steps)
    series[[step - 1 for step in at]] *= 3
    return series


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_a_spike_is_written_with_its_window(tmp_path, as_array):
    losses = spiky()
    train(tmp_path, losses, as_array=as_array)
    first, second = read_spikes(tmp_path / SPIKES)
    assert (first.step, first.signal, first.positions) == (60, "loss", [600, 601])
    assert (second.step, second.positions) == (100, [1000, 1001])
    assert first.value == np.float32(losses[59])
    np.testing.assert_allclose(first.median, np.median(losses[19:59]), rtol=1e-6)
    assert first.median < first.upper < first.value
    window = first.window
    assert window["step"] == list(range(21, 61))
    np.testing.assert_allclose(window["loss"], losses[20:60], rtol=1e-5)
    np.testing.assert_allclose(window["gradient_norm"], 10 * losses[20:60], rtol=1e-5)
    np.testing.assert_allclose(window["gradient_norms"]["head"], losses[20:60] / 2, rtol=1e-5)
    np.testing.assert_allclose(window["update_norms"]["blocks/mlp"], losses[20:60, None] * [3, 6], rtol=1e-5)
    np.testing.assert_allclose(window["max_attention_logits"], losses[20:60, None] * [1, 2], rtol=1e-5)
    assert set(window) == {"step", "max_attention_logits", *Vitals._fields[:6]}


class UnderWay:
    """A number that a device is still computing, until a step has begun."""

    def __init__(self, value, until, clock):
        self.value, self.until, self.clock = value, until, clock

    def is_ready(self):
        return self.clock[0] >= self.until

    def __array__(self, dtype=None, copy=None):
        assert self.is_ready(), "somebody waited for it"
        return np.asarray(self.value, dtype)


def test_a_step_that_is_under_way_is_not_waited_for(tmp_path):
    """Each step is done when the third after it begins."""
    clock, told = [0], {}
    with SpikeRecorder(tmp_path) as recorder:
        for step, loss in enumerate(spiky(70, at=(60,)), 1):
            clock[0] = step
            told[step] = recorder.see(step, vitals(loss)._replace(loss=UnderWay(loss, step + 3, clock)), [step])
        clock[0] += 3
    assert {step: spike.step for step, spike in told.items() if spike} == {63: 60}


def test_a_resumed_run_finds_the_spikes_of_an_uninterrupted_one(tmp_path):
    losses = spiky()
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", losses)
    train(tmp_path / "killed", losses, kill=110)
    log = tmp_path / "killed" / SPIKES
    log.write_bytes(log.read_bytes() + b'{"step": 109, "sig')
    assert [spike.step for spike in read_spikes(log)] == [60, 100]
    train(tmp_path / "killed", losses, start=90, resume_step=90)
    whole, killed = read_spikes(tmp_path / "whole" / SPIKES), read_spikes(log)
    assert [spike._replace(window={}) for spike in killed] == [spike._replace(window={}) for spike in whole]
    assert killed[0] == whole[0]
    assert killed[1].window["step"] == list(range(91, 101))


def test_where_few_steps_are_logged_the_usual_ranges_come_from_the_checkpoint(tmp_path):
    losses = spiky()
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", losses, log_every=10)
    usual = json.loads(json.dumps(train(tmp_path / "killed", losses[:90], log_every=10).usual()))
    train(tmp_path / "killed", losses, start=90, resume_step=90, usual=usual, log_every=10)
    whole, killed = (read_spikes(tmp_path / name / SPIKES) for name in ("whole", "killed"))
    assert [spike.step for spike in whole] == [60, 100]
    assert [spike._replace(window={}) for spike in killed] == [spike._replace(window={}) for spike in whole]


def test_a_spike_that_is_going_on_when_a_run_resumes_is_not_found_twice(tmp_path):
    losses = noise(120)
    losses[85:95] *= 3
    train(tmp_path, losses, kill=100)
    train(tmp_path, losses, start=90, resume_step=90)
    assert [spike.step for spike in read_spikes(tmp_path / SPIKES)] == [86]


def test_after_a_rollback_its_reason_stays(tmp_path):
    losses = spiky(at=(60, 75))
    losses[79] = np.nan
    journal, recorder = Journal(tmp_path), SpikeRecorder(tmp_path, window=40)

    def go_on(steps):
        for step in steps:
            recorder.see(step, vitals(losses[step - 1]), [step])
            journal.write(step, loss=losses[step - 1], update_norm=losses[step - 1])

    go_on(range(1, 81))
    journal.rewind(70)
    recorder.rewind(70)
    losses[79] = 2.0
    go_on(range(71, 91))
    found = [(spike.step, spike.value is None, spike.rolled_back_to) for spike in read_spikes(tmp_path / SPIKES)]
    assert found == [(60, False, None), (80, True, 70), (75, False, None)]
    assert read_spikes(tmp_path / SPIKES)[2].window["step"] == list(range(41, 76))  # 40 steps before 80 were kept
    SpikeRecorder(tmp_path, resume_step=72)
    assert [spike.step for spike in read_spikes(tmp_path / SPIKES)] == [60, 80]


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / SPIKES).write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    with pytest.raises(ValueError, match=r"spikes.jsonl does not hold spikes"):
        read_spikes(tmp_path / SPIKES)
