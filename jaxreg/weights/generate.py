r"""Generating the parameters of a network from a description (IGPG).

A VQ-VAE turns rows of parameters (:func:`jaxreg.weights.tokenize_params`) into a few tokens each. A network is then a
sequence of tokens, layer by layer, whose length depends on its architecture, and a causal transformer models

.. math:: p(s \mid c) = \prod_t p(s_t \mid s_{<t}, c)

where ``c`` are vectors that describe task, data set and architecture. What it samples is decoded to parameters, to be
used as they are, or as a start for training. All networks of a zoo should be fine-tuned from one initialization: the
neurons of others are permuted, and their mean is no network. ::

    vqvae, prior = WeightVQVAE(), WeightTransformer(codes=256)
    losses = vqvae_loss(vqvae.apply(vqvae_params, rows, mask), rows, mask)
    logits = prior.apply(prior_params, condition, tokens)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    params = sample_params(key, functools.partial(prior.apply, prior_params), decode, condition, template)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.layers import QKNormAttention, vector_quantize
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range
from jaxreg.weights.chunks import ChunkScale, chunk_layers, detokenize


class VQVAEOutput(NamedTuple):
    """What :class:`WeightVQVAE` makes of rows of parameters.

    Attributes:
        reconstruction: the decoded rows.
        codes: the tokens of each row.
        latents: what was quantized.
        codebook_loss: of each row, sum over its tokens.
        commitment_loss: of each row, sum over its tokens.
    """

    reconstruction: Float[Array, "*batch chunk"]
    codes: Int[Array, "*batch tokens"]
    latents: Float[Array, "*batch tokens latent"]
    codebook_loss: Float[Array, "*batch"]
    commitment_loss: Float[Array, "*batch"]


class WeightVQVAE(nn.Module):
    """A tokenizer of parameters: an MLP, vector quantization of what it gives, and an MLP back.

    Attributes:
        chunk: length of a row.
        latent: size of a code.
        codes: size of the codebook.
        tokens_per_chunk: how many tokens a row becomes.
        hidden: widths of the encoder; the decoder has them in reverse.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012. Their
        quantizer is a Gumbel-softmax, sizes are our choice.
    """

    chunk: int = 64
    latent: int = 32
    codes: int = 256
    tokens_per_chunk: int = 4
    hidden: Sequence[int] = (128,)

    def setup(self):
        shape = self.codes, self.latent
        self.codebook = self.param("codebook", nn.initializers.variance_scaling(1.0, "fan_out", "normal"), shape)
        self.encoder = [nn.Dense(width) for width in (*self.hidden, self.tokens_per_chunk * self.latent)]
        self.decoder = [nn.Dense(width) for width in (*reversed(self.hidden), self.chunk)]

    @checked
    def __call__(self, chunks: Float[Array, "*batch chunk"], mask: Bool[Array, "*#batch chunk"]) -> VQVAEOutput:
        """Encodes, quantizes and decodes.

        Args:
            chunks: rows of parameters, standardized.
            mask: where they are not padding, which is not looked at.

        Returns:
            The reconstruction, the tokens and the losses of quantization.
        """
        latents = self.encode(chunks, mask)
        quantized = vector_quantize(latents, self.codebook)
        reconstruction = _mlp(self.decoder, quantized.values.reshape(*chunks.shape[:-1], -1))
        losses = (jnp.sum(loss, axis=-1) for loss in (quantized.codebook_loss, quantized.commitment_loss))
        return VQVAEOutput(reconstruction, quantized.codes, latents, *losses)

    @checked
    def encode(
        self, chunks: Float[Array, "*batch chunk"], mask: Bool[Array, "*#batch chunk"]
    ) -> Float[Array, "*batch tokens latent"]:
        """What is quantized."""
        flat = _mlp(self.encoder, jnp.where(mask, chunks, 0.0))
        return flat.reshape(*chunks.shape[:-1], self.tokens_per_chunk, self.latent)

    @checked
    def decode(self, codes: Int[Array, "*batch tokens"]) -> Float[Array, "*batch chunk"]:
        """The rows that tokens stand for."""
        values = self.codebook[codes]
        return _mlp(self.decoder, values.reshape(*codes.shape[:-1], -1))


@checked
def vqvae_loss(
    output: VQVAEOutput,
    chunks: Float[Array, "*batch chunk"],
    mask: Bool[Array, "*#batch chunk"],
    *,
    beta: ScalarLike = 0.25,
) -> Float[Array, "*batch"]:
    r"""The objective of the tokenizer.

    .. math::
        \frac{\|m \odot (\theta - \hat\theta)\|^2}{\sum m} + \|\operatorname{sg}[z] - e\|^2
        + \beta \|z - \operatorname{sg}[e]\|^2

    Args:
        output: of :class:`WeightVQVAE`.
        chunks: ``theta``, what it was given.
        mask: ``m``, where they are not padding.
        beta: >= 0, weight of the commitment (paper: 0.25).

    Returns:
        The loss of each row, at least float32.

    Raises:
        ValueError: ``beta`` is negative.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    check_range("beta", beta, "[0, inf)")
    mask = jnp.broadcast_to(mask, chunks.shape)
    errors = jnp.where(mask, jnp.square(at_least_float32(output.reconstruction) - chunks), 0.0)
    mean = jnp.sum(errors, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return mean + output.codebook_loss + beta * output.commitment_loss


class WeightTransformer(nn.Module):
    """A causal transformer over the tokens of a network, behind vectors that describe what it is for.

    Attributes:
        codes: number of different tokens.
        context: the longest sequence of tokens.
        width: of the stream between the blocks.
        heads: of attention.
        layers: number of blocks.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """

    codes: int
    context: int = 256
    width: int = 64
    heads: int = 4
    layers: int = 2

    @nn.compact
    @checked
    def __call__(
        self, condition: Float[Array, "*batch prefix features"], tokens: Int[Array, "*batch length"]
    ) -> Float[Array, "*batch length codes"]:
        """Predicts every token from the condition and the tokens before it.

        Args:
            condition: embeddings of task, data set and architecture, at least one, in this order.
            tokens: of a network, or a window of them.

        Returns:
            Logits of each token, the first one's from the condition alone, at least float32.

        Raises:
            ValueError: there are more tokens than ``context``.
        """
        length = tokens.shape[-1]
        check_range("the number of tokens", length, f"[1, {self.context}]")
        # A product with one-hot rows: the gradient of a gather is a scatter, which is slow on a CPU.
        embedded = nn.Dense(self.width, use_bias=False, name="tokens")(jax.nn.one_hot(tokens[..., :-1], self.codes))
        prefix = nn.Dense(self.width, name="condition")(condition)
        x = jnp.concatenate([prefix, embedded], axis=-2)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.context, self.width))
        first = condition.shape[-2] - 1
        x = x.at[..., first:, :].add(positions[:length])
        causal = jnp.tri(x.shape[-2], dtype=bool)
        for _ in range(self.layers):
            x = x + QKNormAttention(self.heads)(nn.LayerNorm()(x), causal)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return at_least_float32(nn.Dense(self.codes, name="head")(nn.LayerNorm()(x[..., first:, :])))


@checked
def sample_tokens(
    key: PRNGKeyArray,
    prior_fn: Callable[[Any, Any], Any],
    condition: PyTree,
    length: int,
    *,
    context: int | None = None,
    temperature: ScalarLike = 1.0,
    top_k: int | None = None,
) -> Int[Array, "length"]:
    r"""Draws the tokens of a network, one after the other.

    .. math:: s_t \sim \operatorname{softmax}(\ell_t / T) \quad \text{over the } k \text{ likeliest}

    Args:
        key: source of randomness.
        prior_fn: from ``condition`` and tokens to logits, such as :class:`WeightTransformer` with its parameters.
        condition: what ``prior_fn`` takes.
        length: how many tokens, at least 1.
        context: how many tokens ``prior_fn`` sees at once; beyond, a window slides over them. All by default.
        temperature: ``T > 0``.
        top_k: ``k >= 1``; all tokens by default.

    Returns:
        The tokens.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    check_range("length", length, "[1, inf)")
    check_range("temperature", temperature, "(0, inf)")
    check_range("context", context, "[1, inf)")
    window = length if context is None else min(length, context)

    def step(tokens, position):
        start = jnp.maximum(position - window + 1, 0)
        logits = prior_fn(condition, jax.lax.dynamic_slice(tokens, [start], [window]))[position - start]
        if top_k is not None:
            check_range("top_k", top_k, f"[1, {logits.shape[-1]}]")
            values, numbers = jax.lax.top_k(logits, top_k)
        else:
            values, numbers = logits, jnp.arange(logits.shape[-1])
        chosen = jax.random.categorical(jax.random.fold_in(key, position), values / temperature)
        return tokens.at[position].set(numbers[chosen]), None

    return jax.lax.scan(step, jnp.zeros([length], jnp.int32), jnp.arange(length))[0]


@checked
def sample_params(
    key: PRNGKeyArray,
    prior_fn: Callable[[Any, Any], Any],
    decode_fn: Callable[[Any], Any],
    condition: PyTree,
    template: PyTree,
    *,
    chunk: int = 64,
    tokens_per_chunk: int = 4,
    scale: ChunkScale | None = None,
    context: int | None = None,
    temperature: ScalarLike = 1.0,
    top_k: int | None = None,
) -> PyTree:
    """Draws a network: tokens for its architecture, decoded to rows, shaped as it is.

    To keep the best of several on a little data of the task, ``jax.vmap`` it over keys.

    Args:
        key: source of randomness.
        prior_fn: see :func:`sample_tokens`, as are the last three.
        decode_fn: from tokens ``[rows, tokens_per_chunk]`` to rows ``[rows, chunk]``, such as the method ``decode`` of
            :class:`WeightVQVAE` with its parameters.
        condition: of the task, the data set and the architecture.
        template: a network of the architecture, or its shapes.
        chunk: length of a row.
        tokens_per_chunk: how many tokens a row has.
        scale: that the rows were standardized with (:func:`jaxreg.weights.chunk_scale`), undone; None if not.
        context: how many tokens ``prior_fn`` sees at once.
        temperature: of the sampling.
        top_k: how many tokens are sampled from.

    Returns:
        The parameters, a tree like ``template``.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    check_range("tokens_per_chunk", tokens_per_chunk, "[1, inf)")
    rows = len(chunk_layers(template, chunk=chunk))
    options = {"context": context, "temperature": temperature, "top_k": top_k}
    tokens = sample_tokens(key, prior_fn, condition, rows * tokens_per_chunk, **options)
    chunks = decode_fn(tokens.reshape(rows, tokens_per_chunk))
    return detokenize(chunks if scale is None else scale.restore(chunks), template)


def _mlp(layers, x):
    *hidden, last = layers
    for layer in hidden:
        x = nn.gelu(layer(x))
    return last(x)
