"""The language model that several claims train: bytes of Python's documentation, each predicted from the last few."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from jaxreg.typing import Array, Float, PRNGKeyArray


class CharTask(NamedTuple):
    """What :func:`~experiments.harness.training.train` needs to train a language model.

    Attributes:
        params: initial parameters.
        loss: ``(params, state, key) -> (nats per byte on a batch of random positions, state)``.
        validation_loss: ``(params, state) -> nats per byte`` on every eighth position of the last tenth of the text.
    """

    params: Any
    loss: Callable[[Any, Any, PRNGKeyArray], tuple[Float[Array, ""], Any]]
    validation_loss: Callable[[Any, Any], Float[Array, ""]]


def char_task(key: PRNGKeyArray, *, context: int = 8, batch: int = 128, classes: int = 64) -> CharTask:
    """A character-level language model, :class:`~experiments.harness.models.CharMlp`, on Python's documentation.

    Args:
        key: decides the initial parameters.
        context: bytes seen.
        batch: positions of the text in one training batch.
        classes: size of the alphabet; ``log(classes)`` is the loss of a uniform guess.

    Returns:
        Parameters and losses.
    """
    text = data.documentation(classes=classes)
    model = models.CharMlp(classes)
    params = model.init(key, jnp.zeros([1, context], jnp.int32))

    def cross_entropy(params, symbols, positions):
        windows = jnp.asarray(symbols, jnp.int32)[positions[:, None] + jnp.arange(context + 1)]
        logits = model.apply(params, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()

    def loss(params, state, key):
        positions = jax.random.randint(key, [batch], 0, len(text.train) - context)
        return cross_entropy(params, text.train, positions), state

    def validation_loss(params, state):
        return cross_entropy(params, text.validation, jnp.arange(0, len(text.validation) - context, 8))

    return CharTask(params, loss, validation_loss)
