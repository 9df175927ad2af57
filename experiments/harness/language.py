"""The language models that several claims train: bytes of Python's documentation, each predicted from those before."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.llama import Llama, LlamaConfig, next_token_loss
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, PyTree


class CharTask(NamedTuple):
    """What :func:`~experiments.harness.training.train` needs to train a language model.

    Attributes:
        params: initial parameters.
        loss: ``(params, state, key) -> (nats per byte on a batch from random positions, state)``.
        validation_loss: ``(params, state) -> nats per byte`` on an eighth of the last tenth of the text.
        state: what the loss carries along at first; empty if nothing.
    """

    params: Any
    loss: Callable[[Any, Any, PRNGKeyArray], tuple[Float[Array, ""], Any]]
    validation_loss: Callable[[Any, Any], Float[Array, ""]]
    state: Any = ()


def char_task(
    key: PRNGKeyArray,
    *,
    context: int = 8,
    batch: int = 128,
    classes: int = 64,
    part: tuple[int | Int[Array, ""], int] = (0, 1),
) -> CharTask:
    """A character-level language model, :class:`~experiments.harness.models.CharMlp`, on Python's documentation.

    Its validation loss is the mean over every eighth position.

    Args:
        key: decides the initial parameters.
        context: bytes seen.
        batch: positions of the text in one training batch.
        classes: size of the alphabet; ``log(classes)`` is the loss of a uniform guess.
        part: which part of the training text, and of how many equal ones, training batches are from.

    Returns:
        Parameters and losses.
    """
    text = data.documentation(classes=classes)
    model = models.CharMlp(classes)
    which, parts = part
    length = (len(text.train) - context) // parts
    params = model.init(key, jnp.zeros([1, context], jnp.int32))

    def cross_entropy(params, symbols, positions):
        windows = _windows(symbols, positions, context)
        logits = model.apply(params, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()

    def loss(params, state, key):
        positions = which * length + jax.random.randint(key, [batch], 0, length)
        return cross_entropy(params, text.train, positions), state

    def validation_loss(params, state):
        return cross_entropy(params, text.validation, jnp.arange(0, len(text.validation) - context, 8))

    return CharTask(params, loss, validation_loss)


def transformer_task(
    key: PRNGKeyArray,
    model: models.CharTransformer,
    *,
    batch: int = 8,
    penalty: Callable[[Float[Array, "*batch classes"]], Float[Array, "*batch"]] | None = None,
    differentiated: Sequence[str] = ("params",),
) -> CharTask:
    """A transformer on Python's documentation that predicts every byte of a window of ``model.context`` bytes.

    Its validation loss is the mean over :func:`validation_windows`. The task's state are the model's collections that
    are not differentiated, such as ``batch_stats``, as the last training step left them.

    Args:
        key: decides the initial parameters.
        model: the transformer.
        batch: windows in one training batch.
        penalty: what the training loss has, besides cross-entropy, for the logits of every position.
        differentiated: collections that ``params`` is a dictionary of.

    Returns:
        Parameters, losses and state.
    """
    text = data.documentation(classes=model.classes)
    variables = model.init(key, jnp.zeros([1, model.context], jnp.int32))
    params = {name: tree for name, tree in variables.items() if name in differentiated}
    state = {name: tree for name, tree in variables.items() if name not in differentiated}
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss(params, state, key):
        positions = jax.random.randint(key, [batch], 0, len(text.train) - model.context)
        windows = _windows(text.train, positions, model.context)
        logits, state = model.apply({**params, **state}, windows[:, :-1], train=True, mutable=list(state))
        losses = cross_entropy(logits, windows[:, 1:])
        if penalty is not None:
            losses += penalty(logits)
        return losses.mean(), state

    def validation_loss(params, state):
        windows = validation_windows(model)
        return cross_entropy(model.apply({**params, **state}, windows[:, :-1]), windows[:, 1:]).mean()

    return CharTask(params, loss, validation_loss, state)


def llama_task(
    key: PRNGKeyArray,
    config: LlamaConfig,
    *,
    batch: int = 8,
    weights: Callable[[PyTree], PyTree] = lambda params: params,
) -> CharTask:
    """The decoder that is pretrained, :class:`~experiments.harness.llama.Llama`, on Python's documentation.

    Its validation loss is the mean over the same windows as that of :func:`transformer_task`.

    Args:
        key: decides the initial parameters.
        config: of the model; its ``vocab_size`` is the size of the alphabet.
        batch: windows in one training batch.
        weights: the parameters that the model is given in place of those that are trained.

    Returns:
        Parameters and losses.
    """
    model, length = Llama(config), config.context
    text = data.documentation(classes=config.vocab_size)

    def cross_entropy(params, windows):
        return next_token_loss(model.apply(weights(params), windows[:, :-1]), windows[:, 1:])[0].mean()

    def loss(params, state, key):
        positions = jax.random.randint(key, [batch], 0, len(text.train) - length)
        return cross_entropy(params, _windows(text.train, positions, length)), state

    def validation_loss(params, state):
        return cross_entropy(params, _every_eighth(text.validation, length))

    return CharTask(model.init(key, jnp.zeros([1, length], jnp.int32)), loss, validation_loss)


def validation_windows(model: models.CharTransformer) -> Int[Array, "windows length"]:
    """Every eighth of the windows into which the last tenth of the text falls, each with the byte that follows it."""
    return _every_eighth(data.documentation(classes=model.classes).validation, model.context)


def _every_eighth(symbols, context):
    return _windows(symbols, jnp.arange(0, len(symbols) - context, 8 * context), context)


def _windows(symbols, positions, context):
    """For each position so many bytes of context from there on, and the next."""
    return jnp.asarray(symbols, jnp.int32)[positions[:, None] + jnp.arange(context + 1)]
