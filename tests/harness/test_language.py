import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import data, models
from experiments.harness.language import char_task, llama_task, transformer_task, validation_windows
from experiments.harness.llama import Llama, LlamaConfig


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


def test_training_can_keep_to_a_part_of_the_text():
    """A part of one byte: every example of the batch is the same."""
    text = np.asarray(data.documentation(classes=20).train)
    parts = len(text) - 3
    task = char_task(jax.random.key(0), context=3, batch=5, classes=20, part=(jnp.array(1234), parts))
    log_p = log_probabilities(task.params, [text[1234 : 1234 + 3]], 20)
    np.testing.assert_allclose(task.loss(task.params, (), jax.random.key(7))[0], -log_p[0, text[1237]], rtol=1e-5)


def test_the_key_decides_the_initial_parameters():
    first, again, other = (char_task(jax.random.key(seed)).params for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
    assert (first["params"]["embedding"] != other["params"]["embedding"]).any()


class TestTransformerTask:
    model = models.CharTransformer(classes=20, context=4, layers=1, width=8, hidden=8)

    def surprises(self, variables, windows):
        """Of every byte of the windows but the first."""
        windows = np.asarray(windows)
        logits = np.asarray(self.model.apply(variables, jnp.asarray(windows[:, :-1], jnp.int32)), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_p, windows[:, 1:, None].astype(int), -1)

    def test_training_predicts_every_byte_of_windows_of_the_first_part(self):
        task = transformer_task(jax.random.key(0), self.model, batch=5)
        text = np.asarray(data.documentation(classes=20).train)
        starts = np.asarray(jax.random.randint(jax.random.key(7), [5], 0, len(text) - 4))
        value, state = task.loss(task.params, task.state, jax.random.key(7))
        expected = self.surprises(task.params, [text[i : i + 5] for i in starts]).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert state == task.state == {}
        penalized = transformer_task(jax.random.key(0), self.model, batch=5, penalty=lambda z: 0 * z[..., 0] + 0.5)
        np.testing.assert_allclose(
            penalized.loss(task.params, task.state, jax.random.key(7))[0], expected + 0.5, rtol=1e-5
        )
        np.testing.assert_array_equal(penalized.validation_loss(task.params, {}), task.validation_loss(task.params, {}))

    def test_validation_is_on_every_eighth_window(self):
        task = transformer_task(jax.random.key(0), self.model)
        text = np.asarray(data.documentation(classes=20).validation)
        windows = [text[i : i + 5] for i in range(0, len(text) - 4, 32)]
        np.testing.assert_array_equal(validation_windows(self.model), windows)
        expected = self.surprises(task.params, windows).mean()
        np.testing.assert_allclose(task.validation_loss(task.params, task.state), expected, rtol=1e-5)

    def test_collections_that_are_not_differentiated_are_the_state(self):
        model = self.model.clone(norm=lambda train: nn.BatchNorm(use_running_average=not train))
        task = transformer_task(jax.random.key(0), model)
        assert (set(task.params), set(task.state)) == ({"params"}, {"batch_stats"})
        gradient, state = jax.grad(task.loss, has_aux=True)(task.params, task.state, jax.random.key(1))
        assert set(gradient) == {"params"}
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), task.state, state)
        assert jax.tree.structure(moved) == jax.tree.structure(task.state)
        assert all(jax.tree.leaves(moved))
        assert jnp.isfinite(task.validation_loss(task.params, state))
        both = transformer_task(jax.random.key(0), model, differentiated=("params", "batch_stats"))
        assert (set(both.params), both.state) == ({"params", "batch_stats"}, {})


class TestLlamaTask:
    config = LlamaConfig(vocab_size=20, context=4, layers=1, width=8, heads=1, hidden=8)

    def surprise(self, params, windows):
        """The mean over all bytes of the windows but their first."""
        windows = np.asarray(windows)
        model = jax.jit(Llama(self.config).apply)
        logits = np.asarray(model(params, jnp.asarray(windows[:, :-1], jnp.int32)), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_p, windows[:, 1:, None].astype(int), -1).mean()

    def test_training_and_validation_predict_every_byte_of_windows_of_their_parts_of_the_text(self):
        task = llama_task(jax.random.key(0), self.config, batch=5)
        text = data.documentation(classes=20)
        starts = np.asarray(jax.random.randint(jax.random.key(7), [5], 0, len(text.train) - 4))
        value, state = jax.jit(task.loss)(task.params, task.state, jax.random.key(7))
        expected = self.surprise(task.params, [text.train[i : i + 5] for i in starts])
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert state == task.state == ()
        every_eighth = [text.validation[i : i + 5] for i in range(0, len(text.validation) - 4, 32)]
        expected = self.surprise(task.params, every_eighth)
        np.testing.assert_allclose(jax.jit(task.validation_loss)(task.params, ()), expected, rtol=1e-5)

    def test_the_model_may_be_given_other_weights_than_those_that_are_trained(self):
        task = llama_task(jax.random.key(0), self.config, weights=lambda params: jax.tree.map(lambda x: 0 * x, params))
        np.testing.assert_allclose(
            [
                jax.jit(task.loss)(task.params, (), jax.random.key(7))[0],
                jax.jit(task.validation_loss)(task.params, ()),
            ],
            np.log(20),  # all logits are zero
            rtol=1e-6,
        )
