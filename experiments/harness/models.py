"""Small models, written so that a whole training run compiles to fast code on a CPU."""

import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.layers import NoiseEmbedding, QKNormAttention
from jaxreg.typing import Array, Float, Int, PRNGKeyArray

scaled_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
"""N(0, 1 / fan_in)."""


class Mlp(nn.Module):
    """Dense layers with an activation after each but the last.

    Attributes:
        features: widths of all layers, the number of outputs last.
        activation: elementwise.
        final_activation: whether the last layer is activated too (a trunk to put a head on).
        use_bias: whether the layers have biases.
    """

    features: Sequence[int]
    activation: Callable = nn.relu
    final_activation: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        for layer, width in enumerate(self.features, start=1):
            x = nn.Dense(width, use_bias=self.use_bias, kernel_init=scaled_normal)(x)
            if layer < len(self.features) or self.final_activation:
                x = self.activation(x)
        return x


def plain_mlps(key: PRNGKeyArray, *networks: Sequence[int]) -> list[list[dict[str, Array]]]:
    """Parameters of several MLPs for :func:`plain_mlp`, from one draw: each draw takes most of a second to compile.

    Args:
        key: of the kernels.
        networks: of each the widths of its layers, the number of inputs first.

    Returns:
        Of each network the layers, with a ``kernel`` from N(0, 1 / inputs) and a ``bias`` of zeros.
    """
    shapes = [list(itertools.pairwise(widths)) for widths in networks]
    sizes = [inputs * outputs for layers in shapes for inputs, outputs in layers]
    draws = iter(jnp.split(jax.random.normal(key, [sum(sizes)]), list(itertools.accumulate(sizes))[:-1]))
    return [
        [{"kernel": next(draws).reshape(shape) / shape[0] ** 0.5, "bias": jnp.zeros(shape[1])} for shape in layers]
        for layers in shapes
    ]


def plain_mlp(
    layers: list[dict[str, Array]], x: Float[Array, "*batch inputs"], *, final_activation: bool = False
) -> Float[Array, "*batch outputs"]:
    """Dense layers with a rectified linear unit after each but the last, or after that too."""
    for position, layer in enumerate(layers, start=1):
        x = x @ layer["kernel"] + layer["bias"]
        if position < len(layers) or final_activation:
            x = nn.relu(x)
    return x


class Experts(nn.Module):
    """Several classifiers on the features of one trunk, each of a hidden layer and an output layer of its own.

    Attributes:
        classes: number of outputs.
        trunk: width of the trunk's one layer.
        hidden: width of each expert's hidden layer.
        experts: how many there are.
        cosine_scale: outputs are cosines between features and class vectors times this; if None, a dense layer.
    """

    classes: int
    trunk: int = 128
    hidden: int = 64
    experts: int = 3
    cosine_scale: float | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "experts *batch classes"]:
        features = Mlp((self.trunk,), final_activation=True)(x)
        cosines = self.cosine_scale is not None
        widths = (self.hidden,) if cosines else (self.hidden, self.classes)
        copies = nn.vmap(
            Mlp,
            in_axes=None,
            axis_size=self.experts,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        outputs = copies(widths, final_activation=cosines)(features)
        if not cosines:
            return outputs
        vectors = self.param("class_vectors", scaled_normal, (self.experts, self.hidden, self.classes))
        unit_vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        # The root of a sum that is not zero: all units of a layer may be off.
        lengths = jnp.sqrt(jnp.sum(jnp.square(outputs), axis=-1, keepdims=True) + 1e-12)
        return self.cosine_scale * jnp.einsum("e...h,ehc->e...c", outputs / lengths, unit_vectors)


class BatchNormMlp(nn.Module):
    """Dense layers, each but the last without a bias and followed by batch normalization and an activation.

    The kernels before a normalization are scale-invariant. Running statistics are in the collection ``batch_stats``.

    Attributes:
        features: widths of all layers, the number of outputs last.
        activation: elementwise.
        momentum: of the running statistics.
        norm: another batch normalization than flax's, called as that is.
    """

    features: Sequence[int]
    activation: Callable = nn.relu
    momentum: float = 0.9
    norm: Callable = nn.BatchNorm

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"], *, train: bool) -> Float[Array, "*batch outputs"]:
        *hidden, outputs = self.features
        for width in hidden:
            x = nn.Dense(width, use_bias=False, kernel_init=scaled_normal)(x)
            x = self.activation(self.norm(use_running_average=not train, momentum=self.momentum)(x))
        return nn.Dense(outputs, kernel_init=scaled_normal)(x)


class NoiseMlp(nn.Module):
    """Diffusion and consistency models of points: dense layers on the point and on embeddings of noise levels.

    The last layer starts at zero. ``init`` returns the collections ``params`` and ``buffers``
    (:class:`jaxreg.layers.NoiseEmbedding`), of which the second is not trained.

    Attributes:
        outputs: dimensions of a point.
        hidden: widths of the other layers.
        norm: makes a normalization, applied before each activation.
    """

    outputs: int = 2
    hidden: Sequence[int] = (64, 64, 64)
    norm: Callable[[], Callable] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"], *noises: Float[Array, "*batch"]) -> Array:
        x = jnp.concatenate([x, *(NoiseEmbedding()(noise) for noise in noises)], axis=-1)
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=scaled_normal)(x)
            x = nn.silu(x if self.norm is None else self.norm()(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(x)


class CharMlp(nn.Module):
    """Predicts the next byte from the embeddings of the last few, with an MLP.

    Attributes:
        classes: size of the alphabet.
        embed: width of a byte's embedding, drawn from N(0, 1).
        hidden: widths of the tanh layers.
    """

    classes: int = 64
    embed: int = 16
    hidden: Sequence[int] = (64, 64)

    @nn.compact
    def __call__(self, context: Int[Array, "*batch length"]) -> Float[Array, "*batch classes"]:
        table = self.param("embedding", nn.initializers.normal(1.0), (self.classes, self.embed))
        # A product with one-hot rows: the gradient of a gather is a scatter, which XLA runs serially on a CPU.
        embedded = jax.nn.one_hot(context, self.classes) @ table
        flat = embedded.reshape(*context.shape[:-1], -1)
        return Mlp((*self.hidden, self.classes), activation=nn.tanh)(flat)


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a normalization and added to its input.

    Attributes:
        heads, hidden, gated, qk_norm, use_bias, norm, kernel_init: see :class:`CharTransformer`.
    """

    heads: int
    hidden: int
    gated: bool
    qk_norm: bool
    use_bias: bool
    norm: Callable[[bool], Callable]
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "*batch length width"], *, train: bool) -> Float[Array, "*batch length width"]:
        def dense(features, name):
            return nn.Dense(features, use_bias=self.use_bias, kernel_init=self.kernel_init, name=name)

        attention = QKNormAttention(self.heads, self.qk_norm, self.use_bias, self.kernel_init, name="attention")
        causal = jnp.tril(jnp.ones([x.shape[-2]] * 2, bool))
        x = x + attention(self.norm(train)(x), causal)
        h = self.norm(train)(x)
        up = dense(self.hidden, "up")(h)
        h = nn.silu(dense(self.hidden, "gate")(h)) * up if self.gated else nn.relu(up)
        return x + dense(x.shape[-1], "down")(h)


class CharTransformer(nn.Module):
    """A causal transformer over bytes: normalization before each part and at the end, learned positions.

    The parameters of block ``n`` are ``params["params"]["block_n"]``: the kernels ``query``, ``key``, ``value`` and
    ``out`` of ``attention``, the MLP's ``up``, ``gate`` and ``down``, and normalizations under their class names.
    Attention sows its logits as ``attention_logits`` in the collection ``intermediates``.

    Attributes:
        classes: size of the alphabet.
        context: longest sequence.
        layers: number of blocks.
        width: of the stream between the blocks.
        heads: of attention.
        hidden: width of the MLP.
        gated: whether the MLP is ``down(silu(gate(x)) * up(x))`` (SwiGLU), otherwise ``down(relu(up(x)))``.
        qk_norm: whether attention normalizes queries and keys.
        use_bias: whether linear maps have biases.
        norm: makes a normalization, given whether it is for training: ``lambda train: nn.BatchNorm(not train)``.
        kernel_init: of all matrices, embeddings and the output included.
    """

    classes: int = 64
    context: int = 32
    layers: int = 2
    width: int = 32
    heads: int = 2
    hidden: int = 64
    gated: bool = True
    qk_norm: bool = False
    use_bias: bool = False
    norm: Callable[[bool], Callable] = lambda train: nn.RMSNorm()
    kernel_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(
        self, symbols: Int[Array, "*batch length"], *, train: bool = False
    ) -> Float[Array, "*batch length classes"]:
        table = self.param("embedding", self.kernel_init, (self.classes, self.width))
        positions = self.param("positions", self.kernel_init, (self.context, self.width))
        # A product with one-hot rows, as in CharMlp.
        x = jax.nn.one_hot(symbols, self.classes) @ table + positions[: symbols.shape[-1]]
        for layer in range(self.layers):
            block = TransformerBlock(
                self.heads,
                self.hidden,
                self.gated,
                self.qk_norm,
                self.use_bias,
                self.norm,
                self.kernel_init,
                name=f"block_{layer}",
            )
            x = block(x, train=train)
        head = nn.Dense(self.classes, use_bias=self.use_bias, kernel_init=self.kernel_init, name="head")
        return head(self.norm(train)(x))
