"""Small models, written so that a whole training run compiles to fast code on a CPU."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from jaxreg.typing import Array, Float, Int

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


class BatchNormMlp(nn.Module):
    """Dense layers, each but the last without a bias and followed by batch normalization and an activation.

    The kernels before a normalization are scale-invariant. Running statistics are in the collection ``batch_stats``.

    Attributes:
        features: widths of all layers, the number of outputs last.
        activation: elementwise.
        momentum: of the running statistics.
    """

    features: Sequence[int]
    activation: Callable = nn.relu
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"], *, train: bool) -> Float[Array, "*batch outputs"]:
        *hidden, outputs = self.features
        for width in hidden:
            x = nn.Dense(width, use_bias=False, kernel_init=scaled_normal)(x)
            x = self.activation(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))
        return nn.Dense(outputs, kernel_init=scaled_normal)(x)


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
