import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import refine
from jaxreg.schedules import refine_schedule

NORMS = [4.0, 2.0, 1.0, 1.0, 1.0]
RATES = [0.1, 0.38, 1.0, 0.5, 0.0]  # weights 1/16, 1/4, 1, 1, 1, each times the sum of those after it, over 2


def write(path, norms=NORMS):
    if path.suffix == ".npy":
        np.save(path, norms)
    elif path.suffix == ".jsonl":
        lines = [{"step": 0, "loss": 3.0}, *({"gradient_norm": norm} for norm in norms)]
        path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    else:
        path.write_text("\n".join(map(str, norms)))
    return path


def test_one_command_from_a_log_to_a_schedule(tmp_path):
    log = write(tmp_path / "metrics.jsonl")
    command = [sys.executable, "-m", "experiments.refine", str(log), "--smoothing", "0"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "5 steps, largest after 2 (40% warmup)" in finished.stdout
    assert (tmp_path / "metrics.refined.png").stat().st_size > 1000
    schedule = refine.read_schedule(tmp_path / "metrics.refined.json", peak=10.0)
    np.testing.assert_allclose([schedule(step) for step in range(5)], [1.0, 3.75, 10.0, 5.0, 0.0], rtol=0.05)


@pytest.mark.parametrize("name", ["log.npy", "log.txt", "log.jsonl"])
def test_every_format_gives_the_same(tmp_path, name):
    log, out = write(tmp_path / name), tmp_path / "there" / "out.json"
    assert refine.main(log, smoothing=0.0, out=out) == 0
    np.testing.assert_allclose(json.loads(out.read_text())["rates"], RATES, atol=0.03)


def test_the_options_reach_the_function(tmp_path):
    log = write(tmp_path / "log.txt", norms=[5.0, 1.0, 3.0, 2.0, 8.0, 1.0, 1.0, 9.0])
    refine.main(log, smoothing=0.4, power=1.0)
    wanted = refine_schedule(np.array([5.0, 1, 3, 2, 8, 1, 1, 9], np.float32), smoothing=0.4, power=1.0)
    np.testing.assert_allclose(json.loads((tmp_path / "log.refined.json").read_text())["rates"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.txt", None, "cannot read"),
        ("log.txt", "1.0\nx\n", "does not hold numbers"),
        ("log.jsonl", '{"loss": 1}\n', 'with "gradient_norm", and two at least'),
        ("log.jsonl", "{", 'with "gradient_norm", and two at least'),
        ("log.jsonl", "{\n", "line 1 of"),
        ("log.jsonl", '{"gradient_norm": "x"}\n', "does not hold numbers"),
        ("log.txt", "1.0", "two at least"),
        ("log.txt", "1.0 2.0 nan", "got nan as norm 3 of"),
        ("log.txt", "1.0 -2.0", "got -2.0 as norm 2 of"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, capsys, name, text, message):
    log = tmp_path / name
    if text is not None:
        log.write_text(text)
    assert refine.main(log) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*refined*"))


def test_the_log_of_a_run_that_was_killed_lacks_its_torn_last_line(tmp_path):
    log = write(tmp_path / "log.jsonl")
    whole = refine.read_norms(log, field="gradient_norm")
    log.write_text(log.read_text() + '{"gradient_norm": 3.')
    np.testing.assert_array_equal(refine.read_norms(log, field="gradient_norm"), whole)
    np.testing.assert_array_equal(whole, NORMS)


def test_where_there_is_no_log_nothing_is_made(tmp_path, capsys):
    assert refine.main(tmp_path / "typo" / "metrics.jsonl") == 2
    assert "cannot read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
