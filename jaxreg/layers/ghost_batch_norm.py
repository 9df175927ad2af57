"""Ghost batch normalization: a large batch, normalized as the small ones that it is made of.

Statistics of a large batch are precise, and the noise of those of small batches regularizes. So each small part of the
large batch is normalized by its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


class GhostBatchNorm(nn.Module):
    r"""Batch normalization over parts of the batch, which share the scale and the shift.

    .. math::
        y = \gamma\, \frac{x - \mu_i}{\sqrt{\sigma_i^2 + \epsilon}} + \beta \quad\text{for } x \text{ in part } i

    with the mean and the biased variance over the examples of a part and all axes between. Running statistics, which
    evaluation uses, take the parts in one after another, :math:`n` a step:

    .. math:: r \leftarrow m^n r + (1 - m) \sum_{i=1}^n m^{n-i} \mu_i

    Parameters and statistics have the names and shapes of :class:`flax.linen.BatchNorm`, which it equals if
    ``ghost_size`` is the size of the batch. Parts are neighbours in the batch: shuffle it.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import GhostBatchNorm
    >>> layer, x = GhostBatchNorm(ghost_size=2, use_running_average=False), jnp.array([[1.0], [3.0], [50.0], [54.0]])
    >>> y, variables = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(value), 3) for value in y[:, 0]]
    [-1.0, 1.0, -1.0, 1.0]

    Attributes:
        ghost_size: examples in a part (paper: 128, the small batch's size); it divides the batch's size.
        momentum: ``m`` in [0, 1) of the running statistics, for each part (one minus the paper's momentum).
        epsilon: > 0.
        use_bias: whether a shift is learnt.
        use_scale: whether a scale is learnt.
        use_running_average: whether to evaluate; either here or when called, as in :class:`flax.linen.BatchNorm`.

    Raises:
        ValueError: ``ghost_size`` does not divide the batch's size, or another attribute is outside its range.

    References:
        Hoffer et al., *Train longer, generalize better: closing the generalization gap in large batch training of
        neural networks*, NeurIPS 2017, arXiv 1705.08741.
    """

    ghost_size: int = 128
    momentum: ScalarLike = 0.9
    epsilon: ScalarLike = 1e-5
    use_bias: bool = True
    use_scale: bool = True
    use_running_average: bool | None = None

    @nn.compact
    @checked
    def __call__(
        self, x: Float[Array, "batch *between channels"], *, use_running_average: bool | None = None
    ) -> Float[Array, "batch *between channels"]:
        """Normalizes, and in training updates the running statistics.

        Args:
            x: a batch, examples first and channels last.
            use_running_average: True to evaluate, a batch of any size then; False to train.

        Returns:
            The normalized batch, in the dtype of ``x``.
        """
        check_range("momentum", self.momentum, "[0, 1)")
        check_range("epsilon", self.epsilon, "(0, inf)")
        evaluate = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if evaluate:
            y = (at_least_float32(x) - running_mean.value) * jax.lax.rsqrt(running_var.value + self.epsilon)
        else:
            if self.ghost_size < 1 or x.shape[0] % self.ghost_size:
                raise ValueError(f"ghost_size must divide the batch's {x.shape[0]} examples, got {self.ghost_size}")
            parts = at_least_float32(x).reshape(-1, self.ghost_size, *x.shape[1:])
            axes = tuple(range(1, parts.ndim - 1))
            mean = jnp.mean(parts, axis=axes, keepdims=True)
            var = jnp.var(parts, axis=axes, keepdims=True)
            y = ((parts - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
            if not self.is_initializing():
                running_mean.value = self._take_in(running_mean.value, mean)
                running_var.value = self._take_in(running_var.value, var)
        if self.use_scale:
            y *= self.param("scale", nn.initializers.ones, (channels,))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (channels,))
        return y.astype(x.dtype)

    def _take_in(self, running, parts):
        parts = parts.reshape(-1, running.size)
        n = len(parts)
        m = jnp.asarray(self.momentum, running.dtype)
        return m**n * running + (1 - m) * m ** jnp.arange(n - 1, -1, -1) @ parts
