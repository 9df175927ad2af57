"""Attention whose queries and keys are normalized.

In training at a large learning rate the logits of attention grow until the softmax is one-hot and its gradient gone.
Layer normalization of queries and keys bounds them: their products are then at most the root of the head's size, times
the gains that are learnt.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, ScalarLike, checked
from jaxreg.validation import check_range


class QKNormAttention(nn.Module):
    r"""Multi-head self-attention with layer normalization of the queries and keys of each head.

    .. math::
        \ell_{ij} = \frac{\operatorname{LN}(q_i)^\top \operatorname{LN}(k_j)}{\sqrt{d}}, \qquad
        o_i = \sum_j \operatorname{softmax}(\ell_i)_j v_j

    LN has a learnt gain of size ``d``, shared by the heads, and no bias. At unit gain :math:`|\ell| \le \sqrt d`. The
    logits that the softmax sees, at least float32, are sown as ``attention_logits`` in the collection
    ``intermediates``, so that they can be watched:

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import QKNormAttention
    >>> layer, x = QKNormAttention(heads=2), jnp.ones([5, 8])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> y, seen = layer.apply(variables, x, mutable=["intermediates"])
    >>> y.shape, seen["intermediates"]["attention_logits"][0].shape
    ((5, 8), (2, 5, 5))

    Attributes:
        heads: number of heads; the features of the input are split among them.
        qk_norm: whether queries and keys are normalized; without it is ordinary attention.
        use_bias: whether the four projections have biases (paper: no).
        kernel_init: of the four projections.
        epsilon: added to the variance of queries and keys, >= 0.

    Raises:
        ValueError: ``heads`` does not divide the number of features, or ``epsilon`` is negative.

    References:
        Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
        arXiv 2309.14322; after Dehghani et al., *Scaling Vision Transformers to 22 Billion Parameters*, ICML 2023.
    """

    heads: int
    qk_norm: bool = True
    use_bias: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    epsilon: ScalarLike = 1e-6

    @nn.compact
    @checked
    def __call__(
        self, x: Float[Array, "*batch length features"], mask: Bool[Array, "*#batch length length"] | None = None
    ) -> Float[Array, "*batch length features"]:
        """Attends.

        Args:
            x: what queries, keys and values are projected from.
            mask: which keys (last axis) each query sees, at least one; all by default.

        Returns:
            The projected mixtures of values, in the dtype of ``x``; the statistics of LN are at least float32.
        """
        check_range("epsilon", self.epsilon, "[0, inf)")
        *batch, length, features = x.shape
        dtype = jnp.result_type(x)
        if self.heads < 1 or features % self.heads:
            raise ValueError(f"heads must divide the {features} features, got {self.heads}")

        def project(name):
            return nn.Dense(features, use_bias=self.use_bias, kernel_init=self.kernel_init, dtype=dtype, name=name)

        def norm(name):
            # The fast variance is the difference of two squares, of which an offset of the inputs leaves nothing.
            return nn.LayerNorm(epsilon=self.epsilon, use_bias=False, use_fast_variance=False, dtype=dtype, name=name)

        def split(y):
            return jnp.swapaxes(y.reshape(*batch, length, self.heads, -1), -2, -3)

        q, k, v = (split(project(name)(x)) for name in ("query", "key", "value"))
        if self.qk_norm:
            q, k = norm("query_norm")(q), norm("key_norm")(k)
        logits = at_least_float32(q @ jnp.swapaxes(k, -1, -2)) / jnp.sqrt(q.shape[-1])
        if mask is not None:
            logits = jnp.where(mask[..., None, :, :], logits, jnp.finfo(logits.dtype).min)
        self.sow("intermediates", "attention_logits", logits)
        mixed = jax.nn.softmax(logits).astype(v.dtype) @ v
        return project("out")(jnp.swapaxes(mixed, -2, -3).reshape(x.shape))
