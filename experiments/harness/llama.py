"""The decoder that is pretrained: Llama's, with what is known to keep its training stable as options.

Blocks of attention with rotary positions and a SwiGLU MLP, each behind a root-mean-square normalization and added to
its input; no biases. Options are normalized queries and keys, muP, 4-bit weights and activations, one scanned block for
all layers, and rematerialization.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.harness.attention import causal_attention, einsum_in_float32, rotate
from jaxreg.axes import at_labels
from jaxreg.compression import fake_quant_int4
from jaxreg.paths import is_named
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range

_CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "weight_bits": (4, 16),
    "activation_bits": (4, 16),
    "attention": ("xla", "cudnn"),
}
_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything that decides a :class:`Llama`.

    Attributes:
        vocab_size: number of tokens.
        context: longest sequence it is trained on.
        layers: number of blocks.
        width: of the stream between the blocks.
        heads: of attention, a divisor of ``width``; the size of a head is even.
        hidden: width of the MLP.
        tied: whether the output shares the embedding's table.
        qk_norm: whether queries and keys are normalized, which bounds the logits of attention.
        mup_base_width: the width at which hyperparameters were tuned, for muP, which lets them carry over to other
            widths (with :func:`learning_rate_multipliers`); None is the standard parametrization.
        scan: one block compiled once, its parameters stacked on a leading axis in "blocks"; else "block_0", "block_1"…
        remat: compute each block again in the backward pass instead of storing what is in it.
        dtype: of the computation; parameters and logits are float32.
        weight_bits: 16, or 4 for fake-quantized matrices in the blocks.
        activation_bits: 16, or 4 for fake-quantized inputs of those matrices, with a scale for every token.
        attention: "xla", or "cudnn" for the fused kernel on NVIDIA's GPUs, in half precision.
        one_hot: embed by a product with one-hot rows: the gradient of a gather is a scatter, which XLA runs serially
            on a CPU. None: where there are at most 1024 tokens.

    Raises:
        ValueError: a field is outside its range.
    """

    vocab_size: int = 256
    context: int = 256
    layers: int
    width: int
    heads: int
    hidden: int
    tied: bool = False
    qk_norm: bool = False
    mup_base_width: int | None = None
    scan: bool = True
    remat: bool = False
    dtype: str = "float32"
    weight_bits: int = 16
    activation_bits: int = 16
    attention: str = "xla"
    one_hot: bool | None = None

    def __post_init__(self):
        for name in ("vocab_size", "context", "layers", "width", "heads", "hidden", "mup_base_width"):
            check_range(name, getattr(self, name), "[1, inf)")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention must be 'xla' where dtype is 'float32', got 'cudnn'")
        if self.width % (2 * self.heads):
            raise ValueError(f"heads must cut the width {self.width} in parts of even size, got {self.heads}")


def _published(width, layers, heads, hidden):
    return LlamaConfig(vocab_size=32_000, context=1024, layers=layers, width=width, heads=heads, hidden=hidden)


PRESETS = {
    "tiny": LlamaConfig(context=128, layers=4, width=128, heads=4, hidden=344, scan=False),
    "60m": _published(512, 8, 8, 1376),
    "130m": _published(768, 12, 12, 2048),
    "350m": _published(1024, 24, 16, 2736),
    "1b": _published(2048, 24, 32, 5461),
}
"""A model of bytes for a laptop, unrolled as a scan costs a CPU a fifth more time, and the sizes of the SPAM and
Stable-SPAM papers, which are GaLore's."""


class Llama(nn.Module):
    """A causal language model: the logits of the next token at every position.

    Parameters are ``embedding``; in ``blocks`` (or every ``block_n``) the kernels ``query``, ``key``, ``value`` and
    ``out`` of ``attention`` and ``gate``, ``up`` and ``down`` of ``mlp``, each with the gain of the ``norm`` before it;
    the gain of the last ``norm``; and the ``head``, unless it is tied. Where the collection ``vitals`` is mutable
    every block sows ``max_attention_logit``, see
    :func:`~experiments.harness.vitals.max_attention_logits`.

    Attributes:
        config: sizes and options.
    """

    config: LlamaConfig

    @nn.compact
    @checked
    def __call__(self, tokens: Int[Array, "*batch length"]) -> Float[Array, "*batch length vocab"]:
        """Reads sequences.

        Args:
            tokens: in ``[0, vocab_size)``.

        Returns:
            The logits, float32.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        # With muP the logits shrink with the width instead.
        std = 0.02 if config.mup_base_width is None else config.mup_base_width**-0.5
        table = self.param("embedding", nn.initializers.normal(std), (config.vocab_size, config.width))
        if config.vocab_size <= 1024 if config.one_hot is None else config.one_hot:
            x = _product(jax.nn.one_hot(tokens, config.vocab_size, dtype=dtype), table.astype(dtype), jnp.matmul)
        else:
            x = table.astype(dtype)[tokens]
        block = nn.remat(Block, prevent_cse=not config.scan) if config.remat else Block
        if config.scan:
            axes, keys = {"params": 0, "vitals": 0}, {"params": True}
            block = nn.scan(block, variable_axes=axes, split_rngs=keys, length=config.layers)
            x, _ = block(config, name="blocks")(x, None)
        else:
            for layer in range(config.layers):
                x, _ = block(config, name=f"block_{layer}")(x, None)
        x = _norm(config, "norm")(x)
        if config.tied:
            head = table.T
        else:
            head = self.param("head", nn.initializers.normal(std), (config.width, config.vocab_size))
        logits = _product(x, head.astype(dtype), _wide_product)
        return logits if config.mup_base_width is None else config.mup_base_width / config.width * logits


class Block(nn.Module):
    """Attention and an MLP, each added to its input, in the form that a scan over the layers takes.

    Attributes:
        config: see :class:`Llama`.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch length width"], _: None) -> tuple[Any, None]:
        x = x + Attention(self.config, name="attention")(x)
        return x + Mlp(self.config, name="mlp")(x), None


class Attention(nn.Module):
    """Causal attention with rotary positions, behind a normalization.

    Attributes:
        config: see :class:`Llama`.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch length width"]) -> Float[Array, "*batch length width"]:
        config = self.config
        size = config.width // config.heads
        h = _norm(config, "norm")(x)
        q, k, v = (
            Matrix(config, config.width, name=name)(h).reshape(*h.shape[:-1], config.heads, size)
            for name in ("query", "key", "value")
        )
        if config.qk_norm:
            q, k = _norm(config, "query_norm")(q), _norm(config, "key_norm")(k)
        positions = jnp.arange(x.shape[-2])
        q, k = rotate(q, positions), rotate(k, positions)
        scale = size**-0.5 if config.mup_base_width is None else 1 / size
        mixed, largest = causal_attention(q, k, v, scale=scale, implementation=config.attention)
        if self.is_mutable_collection("vitals") and not self.is_initializing():
            self.sow("vitals", "max_attention_logit", largest(), reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return Matrix(config, config.width, output=True, name="out")(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """``down(silu(gate(x)) * up(x))``, behind a normalization.

    Attributes:
        config: see :class:`Llama`.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        config = self.config
        h = _norm(config, "norm")(x)
        h = nn.silu(Matrix(config, config.hidden, name="gate")(h)) * Matrix(config, config.hidden, name="up")(h)
        return Matrix(config, config.width, output=True, name="down")(h)


class Matrix(nn.Module):
    """A linear map of a block.

    Attributes:
        config: see :class:`Llama`.
        features: number of outputs.
        output: whether it writes to the stream, to which all blocks add: such maps begin smaller in a deeper model.
    """

    config: LlamaConfig
    features: int
    output: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        config, inputs = self.config, x.shape[-1]
        std = 0.02 if config.mup_base_width is None else inputs**-0.5
        if self.output:
            std /= math.sqrt(2 * config.layers)
        kernel = self.param("kernel", nn.initializers.normal(std), (inputs, self.features))
        if config.weight_bits == 4:
            kernel = fake_quant_int4(kernel)
        if config.activation_bits == 4:
            # A scale for every token: one for several would tell a token about those after it.
            x = fake_quant_int4(x.reshape(-1, inputs).T, group=inputs).T.reshape(x.shape)
        return _product(x, kernel.astype(x.dtype), jnp.matmul)


@checked
def next_token_loss(
    logits: Float[Array, "*batch length vocab"], targets: Int[Array, "*batch length"], *, z_loss: ScalarLike = 0.0
) -> tuple[Float[Array, "*batch length"], Float[Array, "*batch length"]]:
    r"""Cross-entropy at every position, with a penalty on the softmax's normalizer.

    .. math:: \log Z - z_y + c \log^2 Z, \qquad Z = \sum_k e^{z_k}

    Args:
        logits: ``z``.
        targets: ``y``, the tokens that follow.
        z_loss: ``c >= 0``, see :func:`jaxreg.losses.z_loss`.

    Returns:
        The loss of every token in nats, and ``log Z``.

    Raises:
        ValueError: ``z_loss`` is negative.
    """
    check_range("z_loss", z_loss, "[0, inf)")
    logits = at_least_float32(logits)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - at_labels(logits, targets) + z_loss * jnp.square(log_z), log_z


def parameter_count(config: LlamaConfig) -> int:
    """How many parameters a model has, from its sizes alone."""
    size = config.width // config.heads
    gains = config.layers * (2 * config.width + (2 * size if config.qk_norm else 0)) + config.width
    tables = (1 if config.tied else 2) * config.vocab_size * config.width
    return config.layers * _block_weights(config) + tables + gains


def flops_per_token(config: LlamaConfig) -> int:
    r"""Floating-point operations of a training step, forward and backward, for one token of a full context.

    .. math:: 6 N + 6\, L\, w\, T

    where ``N`` are the weights of all matrices, output included and embedding not, which are multiplied and added three
    times a step, and ``L`` layers of width ``w`` compare half of the ``T`` positions of the context, on average, to
    mix their values: 12 L w T / 2. What rematerialization computes again doesn't count.
    """
    weights = config.layers * _block_weights(config) + config.vocab_size * config.width
    return 6 * weights + 6 * config.layers * config.width * config.context


def _block_weights(config):
    return 4 * config.width**2 + 3 * config.width * config.hidden


def learning_rate_multipliers(config: LlamaConfig, params: PyTree) -> PyTree:
    """What Adam's learning rate is multiplied by for each leaf: muP's base width over the width, or 1.

    The matrices of the blocks have ever more inputs in a wider model, and move by less. So would the head, but that its
    outputs are divided by the width already, as are those of the embedding's table that it may share.

    Args:
        config: of the model; without ``mup_base_width`` all multipliers are 1.
        params: the model's parameters, arrays or shapes.

    Returns:
        A tree of floats, like ``params``.

    References:
        Yang et al., *Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer*,
        NeurIPS 2021, arXiv 2203.03466, table 8.
    """
    ratio = 1.0 if config.mup_base_width is None else config.mup_base_width / config.width
    return jax.tree_util.tree_map_with_path(lambda path, _: ratio if is_named(path, ["kernel"]) else 1.0, params)


def _norm(config, name):
    return nn.RMSNorm(epsilon=_NORM_EPSILON, dtype=jnp.dtype(config.dtype), name=name)


def _product(x, kernel, matmul):
    # Vectors in one long row: of a batch with several axes XLA writes a transposed copy for the kernel's gradient.
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _wide_product(x, kernel):
    """A product in float32 of what may be in half precision, whose backward pass stays there, as fast as the forward.

    JAX's own multiplies a gradient in float32, which on a GPU is several times slower.
    """
    return einsum_in_float32("ni,ij->nj", x, kernel)


def _wide_product_backward(operands, gradient):
    x, kernel = operands
    gradient = gradient.astype(x.dtype)
    return gradient @ kernel.T, x.T @ gradient


_wide_product.defvjp(lambda *operands: (_wide_product(*operands), operands), _wide_product_backward)
