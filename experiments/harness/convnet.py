"""A small convolutional network in a form that XLA compiles to fast code on a CPU."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxreg.typing import Array, Float


class Convolution(nn.Module):
    """A 3 x 3 convolution of stride one, zeros around the image: nine shifted images and one product of matrices.

    Its parameters are those of ``flax.linen.Conv(features, (3, 3))``, which is pathologically slow in a scan on a CPU.

    Attributes:
        features: channels that come out.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch height width channels"]) -> Array:
        height, width, channels = x.shape[-3:]
        init = nn.initializers.he_normal()
        kernel = self.param("kernel", init, (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
        shifted = [padded[..., i : i + height, j : j + width, :] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, self.features) + bias


class Cnn(nn.Module):
    """Convolutions with rectified linear units, the image halved after every second one, and a dense layer.

    The layers are named ``Convolution_0``, ... and ``Dense_0``.

    Attributes:
        classes: number of outputs.
        features: channels of the convolutions.
    """

    classes: int
    features: Sequence[int] = (8, 8, 16, 16)

    @nn.compact
    def __call__(self, x: Float[Array, "*batch height width channels"]) -> Float[Array, "*batch classes"]:
        for layer, features in enumerate(self.features):
            x = nn.relu(Convolution(features, name=f"Convolution_{layer}")(x))
            if layer % 2:
                *batch, height, width, channels = x.shape
                x = x.reshape(*batch, height // 2, 2, width // 2, 2, channels).mean((-2, -4))
        return nn.Dense(self.classes, name="Dense_0")(x.reshape(*x.shape[:-3], -1))
