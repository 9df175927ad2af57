import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import refine
from experiments.harness.journal import METRICS, Journal, read_journal, series


def write_steps(journal, steps):
    for step in steps:
        journal.write(step, loss=jnp.float32(8 / step), gradient_norm=np.float32(2 / step))


def test_a_killed_and_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    with Journal(tmp_path / "whole") as journal:
        write_steps(journal, range(1, 7))
    with Journal(tmp_path / "killed") as journal:
        write_steps(journal, range(1, 6))
    log = tmp_path / "killed" / METRICS
    log.write_bytes(log.read_bytes()[:-9])  # the fifth line is torn
    with Journal(tmp_path / "killed", resume_step=3) as journal:
        write_steps(journal, range(4, 7))
        journal.sync()
    assert log.read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()
    assert [line["loss"] for line in read_journal(log)] == [np.float32(8 / step) for step in range(1, 7)]


def test_a_step_that_diverged_is_null(tmp_path):
    with Journal(tmp_path) as journal:
        journal.write(1, loss=float("nan"), runs=jnp.array([1.0, jnp.inf]))
        assert read_journal(tmp_path / METRICS) == [{"step": 1, "loss": None, "runs": [1.0, None]}]


def test_a_figure_is_read_with_its_steps_and_null_is_not_a_number(tmp_path):
    with Journal(tmp_path) as journal:
        for step, loss in ((1, 2.0), (2, np.nan), (3, np.inf)):
            journal.write(step, loss=loss)
            journal.write(step, validation_loss=3.0)
    steps, losses = series(read_journal(tmp_path / METRICS), "loss")
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(losses, [2.0, np.nan, np.nan])
    assert [len(values) for values in series([], "loss")] == [0, 0]


def test_a_journal_can_be_taken_back(tmp_path):
    with Journal(tmp_path) as journal:
        write_steps(journal, range(1, 5))
        journal.rewind(2)
        journal.write(3, skipped=True)
    assert [line["step"] for line in read_journal(tmp_path / METRICS)] == [1, 2, 3]
    assert read_journal(tmp_path / METRICS)[2] == {"step": 3, "skipped": True}


def test_a_schedule_can_be_refined_from_it(tmp_path):
    """The weights of norms 2, 1, 2/3 are their inverse squares 1/4, 1, 9/4, each times the sum of those after it."""
    with Journal(tmp_path) as journal:
        for step in range(1, 4):
            write_steps(journal, [step])
            journal.write(step, validation_loss=3.0)
    np.testing.assert_allclose(refine.read_norms(tmp_path / METRICS, field="gradient_norm"), [2, 1, 2 / 3], rtol=1e-6)
    assert refine.main(tmp_path / METRICS, smoothing=0.0) == 0
    rates = json.loads((tmp_path / "metrics.refined.json").read_text())["rates"]
    np.testing.assert_allclose(rates, [0.8125 / 2.25, 1, 0], rtol=0.05, atol=0.01)


class TestTensorBoard:
    def test_the_numbers_are_there_with_their_steps(self, tmp_path):
        pytest.importorskip("tensorboardX")
        with Journal(tmp_path, tensorboard=True) as journal:
            journal.write(3, loss=1.5, gradient_norm=jnp.float32(2.5), name="text", runs=np.ones(2))
            journal.sync()
            first = [("loss", 3, 1.5), ("gradient_norm", 3, 2.5)]
            assert events(tmp_path) == first
            journal.rewind(2)
            journal.write(3, loss=4.0)
        assert events(tmp_path) == [*first, ("start", 3, None), ("loss", 3, 4.0)]
        assert len(read_journal(tmp_path / METRICS)) == 1

    def test_a_run_that_goes_on_hides_what_came_after_its_checkpoint(self, tmp_path):
        pytest.importorskip("tensorboardX")
        with Journal(tmp_path, resume_step=7, tensorboard=True) as journal:
            journal.close()
        assert events(tmp_path) == [("start", 8, None)]

    def test_what_to_install_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(ValueError, match="needs the package tensorboardX: pip install tensorboardX"):
            Journal(tmp_path, tensorboard=True)
        assert not list(tmp_path.iterdir())


def events(workdir):
    """What TensorBoard would read: records of a length, a checksum, an event, a checksum."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            if event.session_log.status == SessionLog.START:
                found.append(("start", event.step, None))
            content = content[16 + length :]
    return found
