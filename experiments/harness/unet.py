"""A U-Net for diffusion and consistency models of images."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.layers import NoiseEmbedding
from jaxreg.typing import Array, Float

LAST_LAYER = "out"
"""Name of the layer that the output comes from, which starts at zero."""

_spread = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros


class UNet(nn.Module):
    """Residual blocks at smaller and smaller sides and back again, with noise levels in each of them.

    Blocks going up also see what the block of the same place going down has made. ``init`` returns the collections
    ``params`` and ``buffers`` (:class:`jaxreg.layers.NoiseEmbedding`), of which the second is not trained. With a
    random number generator ``dropout`` there is dropout.

    Attributes:
        channels: at the full side.
        multipliers: of the channels at each side; every side is half of the one before.
        blocks: at each side, one more going up.
        attention: sides at which every block is followed by attention; the middle always has one.
        head_width: channels of a head of attention.
        dropout: in [0, 1), within the blocks.
        norm: makes a normalization; in groups of at most 32 if None.
        dtype: of the computation; parameters and output are float32.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks: int = 2
    attention: Sequence[int] = (16,)
    head_width: int = 64
    dropout: float = 0.0
    norm: Callable[[], Callable] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], *noises: Float[Array, "batch"]) -> Array:
        """Maps noisy images and their noise levels to images.

        Raises:
            ValueError: height or width cannot be halved as often as there are sides.
        """
        halvings = len(self.multipliers) - 1
        outputs = x.shape[-1]
        for length in x.shape[1:3]:
            if length % 2**halvings:
                raise ValueError(
                    f"multipliers must be so few that images of {x.shape[1]} x {x.shape[2]} can be halved from one to "
                    f"the next, got {len(self.multipliers)}"
                )
        level = jnp.concatenate([NoiseEmbedding(features=self.channels)(noise) for noise in noises], axis=-1)
        for layer in range(2):
            level = nn.silu(nn.Dense(4 * self.channels, dtype=self.dtype, name=f"noise_{layer}")(level))
        x = nn.Conv(self.channels, (3, 3), kernel_init=_spread, dtype=self.dtype, name="in")(x.astype(self.dtype))
        passed = [x]
        for depth, multiplier in enumerate(self.multipliers):
            for number in range(self.blocks):
                x = self._block(f"down_{depth}_{number}", multiplier)(x, level)
                passed.append(x)
            if depth < halvings:
                x = nn.avg_pool(x, (2, 2), (2, 2))
                passed.append(x)
        x = self._block("middle_0", self.multipliers[-1], attends=True)(x, level)
        x = self._block("middle_1", self.multipliers[-1])(x, level)
        for depth, multiplier in reversed(list(enumerate(self.multipliers))):
            for number in range(self.blocks + 1):
                x = jnp.concatenate([x, passed.pop()], axis=-1)
                x = self._block(f"up_{depth}_{number}", multiplier)(x, level)
            if depth > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = nn.silu(_normalize(self.norm, self.dtype, "out_norm")(x))
        x = nn.Conv(outputs, (3, 3), kernel_init=_zeros, dtype=self.dtype, name=LAST_LAYER)(x)
        return x.astype(jnp.float32)

    def _block(self, name, multiplier, attends=False):
        features = multiplier * self.channels
        return UNetBlock(
            features,
            tuple(self.attention),
            attends,
            max(1, features // self.head_width),
            self.dropout,
            self.norm,
            self.dtype,
            name=name,
        )


class UNetBlock(nn.Module):
    """Two convolutions, the second of them scaled and shifted by the noise level, added to the input; then attention.

    Attributes:
        features: channels that come out.
        attention: sides at which there is attention.
        attends: whether there is attention whatever the side.
        heads: of attention.
        dropout, norm, dtype: see :class:`UNet`.
    """

    features: int
    attention: Sequence[int]
    attends: bool
    heads: int
    dropout: float
    norm: Callable[[], Callable] | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width inputs"], level: Float[Array, "batch width"]) -> Array:
        h = nn.silu(_normalize(self.norm, self.dtype, "norm_0")(x))
        h = nn.Conv(self.features, (3, 3), kernel_init=_spread, dtype=self.dtype, name="conv_0")(h)
        changes = nn.Dense(2 * self.features, kernel_init=_zeros, dtype=self.dtype, name="noise")(level)
        scale, shift = jnp.split(changes[:, None, None], 2, axis=-1)
        h = nn.silu(_normalize(self.norm, self.dtype, "norm_1")(h) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        h = nn.Conv(self.features, (3, 3), kernel_init=_zeros, dtype=self.dtype, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=_spread, dtype=self.dtype, name="skip")(x)
        # Sums of two keep their variance.
        x = (x + h) * 2**-0.5
        if not (self.attends or x.shape[1] in self.attention):
            return x
        batch, height, width, features = x.shape
        h = _normalize(self.norm, self.dtype, "attention_norm")(x).reshape(batch, height * width, features)
        parts = nn.Dense(3 * features, kernel_init=_spread, dtype=self.dtype, name="attention_in")(h)
        query, key, value = jnp.split(parts.reshape(batch, height * width, self.heads, -1), 3, axis=-1)
        h = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        h = nn.Dense(features, kernel_init=_zeros, dtype=self.dtype, name="attention_out")(h)
        return (x + h) * 2**-0.5


def _normalize(norm, dtype, name):
    def apply(x):
        if norm is not None:
            return norm()(x).astype(dtype)
        groups = next(groups for groups in range(min(32, x.shape[-1]), 0, -1) if x.shape[-1] % groups == 0)
        return nn.GroupNorm(groups, dtype=dtype, name=name)(x)

    return apply
