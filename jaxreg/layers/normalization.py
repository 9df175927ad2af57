"""Layer normalization that cannot rescale."""

import flax.linen as nn
import jax.numpy as jnp

from jaxreg.typing import Array, Float


class NonScalingLayerNorm(nn.Module):
    r"""Layer normalization with a learnt bias and no gain.

    .. math:: \frac{x - \overline{x}}{\sqrt{\operatorname{var}(x) + \epsilon}} + \beta

    A gain can single out the features in which outliers live. Latent consistency models train better without it.

    Attributes:
        epsilon: added to the variance, > 0.

    References:
        Dao et al., *Improved Training Technique for Latent Consistency Models*, ICLR 2025, arXiv 2502.01441.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Normalizes over the last axis.

        Args:
            x: features.

        Returns:
            The normalized features, in the dtype of ``x``; mean and variance are at least float32.
        """
        dtype = jnp.result_type(x)
        return nn.LayerNorm(epsilon=self.epsilon, use_scale=False, use_fast_variance=False, dtype=dtype)(x)
