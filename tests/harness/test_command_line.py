"""The command line as a user meets it: exit codes, messages, files left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import experiments.__main__ as command_line
from experiments.harness import measure as measuring
from experiments.harness import registry, results


def test_an_unknown_slug_suggests_near_matches(capsys):
    assert command_line.main(["run", "spma"]) == 2
    assert "no claim is called 'spma'; did you mean spam" in capsys.readouterr().out
    assert command_line.main(["run", "xyzxyz"]) == 2
    assert "`python -m experiments list` shows all" in capsys.readouterr().out


def test_no_slug_and_bad_numbers_are_refused(capsys):
    assert command_line.main(["run"]) == 2
    assert "name at least one claim" in capsys.readouterr().out
    assert command_line.main(["run", "spam", "--seeds", "0"]) == 2
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().out
    assert command_line.main(["run", "spam", "--devices", "0"]) == 2
    assert "--devices must be in 1..8 (cpu devices here), got 0" in capsys.readouterr().out


def test_an_unwritable_directory_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "measure", lambda *args, **kwargs: pytest.fail("it measured"))
    (tmp_path / "file").write_text("")
    assert command_line.main(["run", "spam", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot write to the output directory" in capsys.readouterr().out


def test_cores_are_counted_where_the_system_does_not_tell_which_are_usable(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert command_line.usable_cores() == os.cpu_count()


def test_list_filters_by_family_and_words(capsys):
    assert command_line.main(["list", "optim"]) == 0
    text = capsys.readouterr().out
    assert "spam" in text
    assert "rliable" not in text
    assert command_line.main(["list", "--search", "momentum", "SPIKE"]) == 0
    assert "spam" in capsys.readouterr().out
    assert command_line.main(["list", "--search", "no such words"]) == 0
    assert "no claim matches" in capsys.readouterr().out
    assert command_line.main(["list", "optimism"]) == 2
    assert "no family is called 'optimism'; there are" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_was_finished_and_writes_nothing_else(tmp_path, capsys, monkeypatch):
    finished = []

    def measure(claim, run, **options):
        if finished:
            raise KeyboardInterrupt
        finished.append(claim.slug)
        return measuring.measure(claim, run, smoke=True)

    monkeypatch.setattr(command_line, "measure", measure)
    assert command_line.main(["run", "elr", "spam", "--out", str(tmp_path)]) == 130
    assert "interrupted while measuring spam: nothing of it was written" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elr.json", "elr.png"]


def test_control_c_ends_a_real_run_cleanly(tmp_path):
    command = [sys.executable, "-m", "experiments", "run", "rliable", "--seeds", "8", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=registry.ROOT.parent, bufsize=1,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert "rliable" in process.stdout.readline()  # the title: measuring has begun
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)  # what a device computes ends first
    assert process.returncode == 130, output
    assert "interrupted while measuring rliable" in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_was_swallowed_ends_the_run_after_the_batch():
    def swallow(on_batch):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        on_batch("measuring", 1, 2)
        pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        command_line.with_progress(swallow)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_report_writes_the_document(tmp_path, capsys):
    out = tmp_path / "results"
    assert command_line.main(["report", "--out", str(out)]) == 0
    assert "0 results" in capsys.readouterr().out
    assert (tmp_path / "RESULTS.md").read_text().startswith("# Measured claims")


@pytest.mark.parametrize("slug", registry.entries())
def test_every_claim_runs(slug, tmp_path):
    assert command_line.main(["run", slug, "--smoke", "--out", str(tmp_path)]) == 0
    (result,) = results.read_all(tmp_path)
    assert result["smoke"]
    assert (tmp_path / f"{slug}.png").exists()
