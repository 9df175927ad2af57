import json

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import losses


def test_a_tiny_run_prints_the_table_and_writes_json(tmp_path, capsys):
    rows = ("cross_entropy", "elr", "kd_kl", "bounds, dense")
    assert losses.main(batch=16, classes=5, repeats=1, only=rows, out=tmp_path) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"losses_{jax.default_backend()}.json"
    result = json.loads(path.read_text())
    assert [(row["name"], row["peer"]) for row in result["rows"]] == [
        ("cross_entropy", "cross_entropy"),
        ("elr", "cross_entropy"),
        ("kd_kl", "cross_entropy"),
        ("bounds, dense", "forward pass"),
    ]
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        assert 0 < low <= row["ratio"] <= high
        assert row.get("temp_logits", 0) >= 0
    assert "bounds, dense" in capsys.readouterr().out


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_row_is_a_loss_of_each_example(name):
    logits, given = losses._example(4, 3)
    loss = losses.LOSSES[name]
    state = None if loss.init is None else jax.eval_shape(lambda: loss.init(4, 3))
    result = jax.eval_shape(loss.of, logits, given._replace(state=state))
    values, after = (result, None) if state is None else result
    assert values.shape == (4,)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch=1), "--batch must be in [2, inf), got 1"),
        (dict(classes=1), "--classes must be in [2, inf), got 1"),
        (dict(repeats=0), "--repeats must be in [1, inf), got 0"),
        (dict(only=("hinge",)), "--only: no row 'hinge'; there are 'cross_entropy', "),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message, tmp_path, capsys):
    assert losses.main(**arguments, out=tmp_path) == 2
    assert capsys.readouterr().err.startswith(message)
