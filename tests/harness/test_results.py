import json
import pathlib

import jax
import numpy as np
import pytest

from experiments.harness import results


def test_json_comes_back_and_nan_is_null(tmp_path):
    path = tmp_path / "a.json"
    results.write_json(path, {"x": [1.5, float("nan")], "y": {"z": (np.inf, "text", None, True)}})
    assert json.loads(path.read_text()) == {"x": [1.5, None], "y": {"z": [None, "text", None, True]}}


def test_a_write_that_dies_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    results.write_json(path, {"version": 1})

    def die(file):
        file.write(b'{"version": 2, "half": ')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.write_atomically(path, die)
    assert json.loads(path.read_text()) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_unusable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(results.OutputError, match=r"cannot write to the output directory .*file/below: "):
        results.prepare(tmp_path / "file" / "below")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket"])
def test_an_address_is_no_directory(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(results.OutputError, match="the directory must be in a file system of this machine, got"):
        results.prepare(pathlib.Path(address))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_result_is_named(tmp_path):
    for content, reason in (("{", "Expecting"), ("[]", "lacks"), ('{"slug": "x"}', "it lacks arxiv, backend")):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(results.ResultError, match=rf"broken.json is not a result of a claim: .*{reason}"):
            results.read_all(tmp_path)


def test_the_environment_names_versions_and_backend_but_no_machine():
    found = results.environment(jax.devices()[:1])
    assert found["backend"] == jax.default_backend()
    assert found["versions"]["jax"] == jax.__version__
    assert set(found) == {"backend", "devices", "versions"}
