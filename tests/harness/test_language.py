import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import data, models
from experiments.harness.language import char_task


def log_probabilities(params, windows, classes):
    logits = np.asarray(models.CharMlp(classes).apply(params, jnp.asarray(windows, jnp.int32)), np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_validation_is_the_mean_surprise_at_every_eighth_position():
    task = char_task(jax.random.key(0), context=3, classes=20)
    text = np.asarray(data.documentation(classes=20).validation)
    starts = range(0, len(text) - 3, 8)
    log_p = log_probabilities(task.params, [text[i : i + 3] for i in starts], 20)
    expected = -np.mean([log_p[row, text[i + 3]] for row, i in enumerate(starts)])
    np.testing.assert_allclose(task.validation_loss(task.params, ()), expected, rtol=1e-5)


def test_training_draws_its_batch_from_the_first_part_of_the_text():
    task = char_task(jax.random.key(0), context=3, batch=5, classes=20)
    text = np.asarray(data.documentation(classes=20).train)
    starts = np.asarray(jax.random.randint(jax.random.key(7), [5], 0, len(text) - 3))
    log_p = log_probabilities(task.params, [text[i : i + 3] for i in starts], 20)
    value, state = task.loss(task.params, "carried along", jax.random.key(7))
    np.testing.assert_allclose(value, -log_p[np.arange(5), text[starts + 3]].mean(), rtol=1e-5)
    assert state == "carried along"


def test_the_key_decides_the_initial_parameters():
    first, again, other = (char_task(jax.random.key(seed)).params for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
    assert (first["params"]["embedding"] != other["params"]["embedding"]).any()
