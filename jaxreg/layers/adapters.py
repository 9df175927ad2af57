"""Layers that bring a new condition into a trained network, and change nothing at first."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked


class ConditionAdapter(nn.Module):
    r"""Cross-attention from the tokens of frames to those of a condition, such as an image to start from.

    .. math:: x \leftarrow x + O \operatorname{softmax}\bigl(Q x \,(K c)^\top / \sqrt d\bigr) V c

    The output projection ``out`` starts at zero, so that the network it is added to works as before until it is
    trained. Train it together with the temporal layers. Editing weights (:func:`jaxreg.weights.extrapolate`) leaves it
    as it is, for the pretrained network has none. Its internals are ours; the paper's may differ.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import ConditionAdapter
    >>> adapter, frames, image = ConditionAdapter(heads=2), jnp.ones([8, 5, 6]), jnp.ones([8, 3, 4])
    >>> variables = adapter.init(jax.random.key(0), frames, image)
    >>> bool(jnp.all(adapter.apply(variables, frames, image) == frames))
    True

    Attributes:
        heads: number of heads; the features of the frames are split among them.
        kernel_init: of the query, key and value projections.

    Raises:
        ValueError: ``heads`` does not divide the number of features.

    References:
        Tian et al., *Extrapolating and Decoupling Image-to-Video Generation Models: Motion Modeling is Easier Than
        You Think*, CVPR 2025, arXiv 2503.00948.
    """

    heads: int
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    @checked
    def __call__(
        self, frames: Float[Array, "*batch tokens features"], condition: Float[Array, "*batch conditions channels"]
    ) -> Float[Array, "*batch tokens features"]:
        """Adds what the condition has to say.

        Args:
            frames: tokens of the video.
            condition: tokens of the condition.

        Returns:
            The tokens of the video, in their dtype.
        """
        features = frames.shape[-1]
        if self.heads < 1 or features % self.heads:
            raise ValueError(f"heads must divide the {features} features, got {self.heads}")

        def project(name, x):
            y = nn.Dense(features, use_bias=False, kernel_init=self.kernel_init, name=name)(x)
            return jnp.swapaxes(y.reshape(*x.shape[:-1], self.heads, -1), -2, -3)

        q, k, v = project("query", frames), project("key", condition), project("value", condition)
        logits = at_least_float32(q @ jnp.swapaxes(k, -1, -2)) / jnp.sqrt(q.shape[-1])
        mixed = jnp.swapaxes(jax.nn.softmax(logits).astype(v.dtype) @ v, -2, -3).reshape(frames.shape)
        out = nn.Dense(features, use_bias=False, kernel_init=nn.initializers.zeros, name="out")(mixed)
        return frames + out.astype(frames.dtype)
