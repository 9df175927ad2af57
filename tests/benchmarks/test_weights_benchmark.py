import json

import jax
import pytest

from experiments.benchmarks import weights


def test_a_tiny_run_prints_the_table_and_writes_json(tmp_path, capsys):
    options = dict(size=20_000, leaves=10, checkpoints=4, population=3, repeats=1)
    assert weights.main(**options, out=tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"weights_{jax.default_backend()}.json"
    result = json.loads(path.read_text())
    assert result["parameters"] == pytest.approx(20_000, rel=0.01)
    assert [(row["name"], row["peer"]) for row in result["rows"]] == [
        ("one combination", "jnp.sum"),
        ("population of 3", "one combination"),
        ("population of 3, new memory", "one combination"),
        ("loop over checkpoints", "jnp.sum"),
    ]
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        assert 0 < low <= row["ratio"] <= high
    assert result["stream"]["seconds"] > 0
    assert "population of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=10.0), "--size must be at least 10000, got 10.0"),
        (dict(checkpoints=1), "--checkpoints must be at least 2, got 1"),
        (dict(population=1), "--population must be at least 2, got 1"),
        (dict(repeats=0), "--repeats must be at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys):
    assert weights.main(**arguments, out=tmp_path) == 2
    assert capsys.readouterr().err.startswith(message)
