"""Sampling, against enumeration of what a model expects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.generation import generate
from experiments.harness.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(vocab_size=5, context=4, layers=1, width=8, heads=2, hidden=8, scan=False)
PARAMS = jax.tree.map(
    lambda shape: np.random.default_rng(shape.size).standard_normal(shape.shape).astype(np.float32) / 2,
    jax.eval_shape(Llama(CONFIG).init, jax.random.key(0), jnp.zeros([4], jnp.int32)),
)


def test_the_likeliest_token_is_taken_at_temperature_zero_beyond_the_context_too():
    prompt = jax.random.randint(jax.random.key(1), [3, 2], 0, 5)
    text, apply = np.asarray(prompt), jax.jit(Llama(CONFIG).apply)
    for _ in range(7):
        # Of a window that is not full the rest does not matter: the model is causal.
        window = np.pad(text[:, -4:], [(0, 0), (0, max(0, 4 - text.shape[1]))])
        logits = np.asarray(apply(PARAMS, window))[:, min(text.shape[1], 4) - 1]
        text = np.concatenate([text, np.argmax(logits, axis=-1)[:, None]], axis=-1)
    ours = generate(CONFIG, PARAMS, prompt, length=7, key=jax.random.key(2), temperature=0.0)
    np.testing.assert_array_equal(ours, text[:, 2:])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_the_model_expects(temperature):
    prompt = jnp.tile(jnp.array([3, 1, 4]), [2000, 1])
    drawn = generate(CONFIG, PARAMS, prompt, length=2, key=jax.random.key(0), temperature=temperature)
    logits = np.asarray(Llama(CONFIG).apply(PARAMS, prompt[0]), np.float64)[-1] / temperature
    expected = np.exp(logits) / np.exp(logits).sum()
    shares = np.bincount(drawn[:, 0], minlength=5) / 2000
    np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / np.sqrt(2000))
    assert expected.min() < 0.15 < expected.max()  # so that a uniform draw would fail


def test_the_key_decides():
    def text(seed):
        return generate(CONFIG, PARAMS, jnp.array([1]), length=20, key=jax.random.key(seed), temperature=5.0)

    np.testing.assert_array_equal(text(0), text(0))
    assert (text(0) != text(1)).any()


def test_of_a_long_prompt_the_end_is_read():
    key, prompt = jax.random.key(0), jax.random.randint(jax.random.key(1), [20], 0, 5)
    whole, end = (generate(CONFIG, PARAMS, p, length=4, key=key) for p in (prompt, prompt[-4:]))
    np.testing.assert_array_equal(whole, end)


def test_arguments_that_cannot_be_are_named():
    for wrong, message in (
        ({"length": 0}, r"length must be in \[1, inf\), got 0"),
        ({"temperature": -1.0}, r"temperature must be in \[0, inf\), got -1"),
        ({"prompt": jnp.zeros([0], jnp.int32)}, "prompt must have at least one token"),
    ):
        arguments = {"prompt": jnp.array([1]), "length": 1, "key": jax.random.key(0)} | wrong
        with pytest.raises(ValueError, match=message):
            generate(CONFIG, PARAMS, **arguments)
