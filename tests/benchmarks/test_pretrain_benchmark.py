import json

import jax
import pytest

from experiments.benchmarks import pretrain
from experiments.harness.llama import LlamaConfig, flops_per_token
from experiments.harness.pretraining import ModelSettings

SMALL = ModelSettings(layers=1, width=16, heads=2, hidden=16, context=16)


def test_a_tiny_run_prints_the_table_and_writes_json(tmp_path, capsys, monkeypatch):
    devices, trainer = [], pretrain.trainer
    monkeypatch.setattr(
        pretrain, "trainer", lambda run, *args: devices.append(len(run.placement.devices)) or trainer(run, *args)
    )
    assert pretrain.main(SMALL, batch=8, repeats=2, steps=2, only=("adamw",), out=tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"pretrain_tiny_{jax.default_backend()}.json"
    result = json.loads(path.read_text())
    row = result["rows"][0]
    low, high = row["ratio_quartiles"]
    assert 0 < low <= row["ratio"] <= high
    assert row["tokens_per_second"] == pytest.approx(8 * 16 / (row["step_ms"] / 1e3), rel=0.01)
    config = LlamaConfig(layers=1, width=16, heads=2, hidden=16, context=16)
    expected = row["tokens_per_second"] * flops_per_token(config) / 1e12 / result["matrix_tflops_per_second"]
    assert row["flops_utilisation"] == pytest.approx(expected, abs=1e-3)
    assert "trainer: adamw" in capsys.readouterr().out
    assert row["peak_bytes"] > 4 * (3 * result["parameters"] + 8 * 16 * 256)  # parameters, both moments, the logits
    assert devices == [1]  # as the minimal loop; there are eight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(repeats=0), "--repeats must be at least 1, got 0"),
        (dict(steps=0), "--steps must be at least 1, got 0"),
        (dict(batch=0), "batch must be at least 1, got 0"),
        (dict(only=("adamm",)), "adamm"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys):
    assert pretrain.main(SMALL, **arguments, out=tmp_path) == 2
    assert message in capsys.readouterr().err
