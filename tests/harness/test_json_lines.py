import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.json_lines import JsonLines, read_lines


def test_every_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "log.jsonl"
    file = JsonLines(path)
    file.append({"step": 1, "x": [1.5, None, "text"]})
    assert path.read_bytes() == b'{"step": 1, "x": [1.5, null, "text"]}\n'
    file.append({"step": 2}, sync=True)
    assert read_lines(path) == [{"step": 1, "x": [1.5, None, "text"]}, {"step": 2}]
    file.close()
    file.close()


def test_arrays_are_lists_and_what_json_does_not_know_is_null(tmp_path):
    file = JsonLines(tmp_path / "log.jsonl")
    file.append({"a": jnp.array([1.0, jnp.nan]), "b": np.float32(np.inf), "c": {"d": (np.int64(3), -np.inf, True)}})
    assert read_lines(tmp_path / "log.jsonl") == [{"a": [1.0, None], "b": None, "c": {"d": [3, None, True]}}]


@pytest.mark.parametrize("torn", [b"", b'{"step": 4, "lo', b"\0\0\0"])
def test_a_resumed_file_is_that_of_an_uninterrupted_run(tmp_path, torn):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    uninterrupted = JsonLines(whole)
    uninterrupted.append({"settings": "no step"})
    for step in range(1, 6):
        uninterrupted.append({"step": step, "loss": 1 / step})
    killed.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:4]) + torn)
    resumed = JsonLines(killed, resume_step=2)
    for step in range(3, 6):
        resumed.append({"step": step, "loss": 1 / step})
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_an_open_file_can_go_back_and_on(tmp_path):
    file = JsonLines(tmp_path / "log.jsonl")
    for step in range(4):
        file.append({"step": step})
    file.rewind(1)
    file.append({"step": 2, "again": True})
    assert read_lines(tmp_path / "log.jsonl") == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]


def test_without_a_step_to_go_on_from_the_file_is_new(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    JsonLines(path)
    assert path.read_bytes() == b""
    JsonLines(tmp_path / "other.jsonl", resume_step=5)
    assert (tmp_path / "other.jsonl").read_bytes() == b""


def test_a_last_line_without_its_end_counts_if_it_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    JsonLines(path, resume_step=2).append({"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*log.jsonl: No such file"),
        ('{"step": 1}\n{"st\n{"step": 3}\n', "line 2 of .*log.jsonl is not JSON"),
        ("{}\n[1]\n", "line 2 of .*log.jsonl must be a JSON object, got list"),
    ],
)
def test_what_is_no_log_is_said_and_left_alone(tmp_path, text, message):
    path = tmp_path / "log.jsonl"
    if text is not None:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            JsonLines(path, resume_step=5)
        assert path.read_text() == text
    with pytest.raises(ValueError, match=message):
        read_lines(path)
