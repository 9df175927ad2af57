"""Text from a language model, one token after the other."""

import jax
import jax.numpy as jnp

from experiments.harness.llama import Llama, LlamaConfig
from jaxreg.typing import Array, Int, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def generate(
    config: LlamaConfig,
    params: PyTree,
    prompt: Int[Array, "*batch prompt"],
    *,
    length: int,
    key: PRNGKeyArray,
    temperature: ScalarLike = 1.0,
) -> Int[Array, "*batch length"]:
    r"""Continues sequences, drawing each token from what the model expects after those before it.

    .. math:: p(x_t = k) \propto e^{z_k / \tau}

    Every token reads the last ``config.context`` ones anew. Keeping keys and values would be faster, but once the
    context is full they would not be those of a window that slides.

    Args:
        config: of the model.
        params: its parameters.
        prompt: tokens to continue, at least one; of those before the last ``config.context`` nothing is seen.
        length: how many tokens to add, at least 1.
        key: of the draws.
        temperature: ``tau >= 0``; with 0 the likeliest token is taken.

    Returns:
        The added tokens.

    Raises:
        ValueError: an argument is outside its range, or the prompt is empty.
    """
    check_range("length", length, "[1, inf)")
    check_range("temperature", temperature, "[0, inf)")
    if prompt.shape[-1] == 0:
        raise ValueError("prompt must have at least one token, got none")
    model = Llama(config)
    prompt = jnp.asarray(prompt, jnp.int32)[..., -config.context :]
    size = min(config.context, prompt.shape[-1] + length)
    unknown = jnp.zeros([*prompt.shape[:-1], size - prompt.shape[-1]], jnp.int32)

    def add(carry, n):
        window, known = carry
        # What is not known yet stands behind, where nobody looks.
        logits = jnp.take(model.apply(params, window), known - 1, axis=-2)
        sharpened = logits / jnp.where(temperature > 0, temperature, 1.0)
        drawn = jax.random.categorical(jax.random.fold_in(key, n), sharpened)
        token = jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        full = known == size
        window = jnp.where(full, jnp.roll(window, -1, axis=-1), window)
        known = jnp.where(full, size, known + 1)
        return (window.at[..., known - 1].set(token), known), token

    start = jnp.concatenate([prompt, unknown], axis=-1), jnp.int32(prompt.shape[-1])
    _, tokens = jax.lax.scan(add, start, jnp.arange(length))
    return jnp.moveaxis(tokens, 0, -1)
