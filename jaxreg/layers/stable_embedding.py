"""An embedding whose gradients 8-bit optimizers can cope with.

Rows of an embedding table are trained as often as their words occur: some seldom and strongly, which is hard on
quantized moments. Normalizing the embedded vectors evens them out.
"""

import flax.linen as nn

from jaxreg.typing import Array, Float, Int


class StableEmbedding(nn.Module):
    r"""Embedding with a layer normalization of its output.

    .. math::
        y = \mathrm{LayerNorm}(E_x), \qquad
        E_{ij} \sim U(-a, a), \quad a = \sqrt{6 / (\text{rows} + \text{features})}

    Positions are added after it. The paper further keeps the optimizer's state of the table in 32 bits, which is an
    option of the optimizer:

    >>> import jax
    >>> from jaxreg.optim import adam8bit
    >>> def is_embedding(params):
    ...     return jax.tree_util.tree_map_with_path(lambda path, _: "embedding" in jax.tree_util.keystr(path), params)
    >>> optimizer = adam8bit(1e-3, full_precision=is_embedding)

    Attributes:
        num_embeddings: number of rows, at least 1.
        features: length of a row, at least 1.
        epsilon: added to the variance by the normalization (PyTorch's and the authors' code: 1e-5).

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """

    num_embeddings: int
    features: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, indices: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """Looks up and normalizes.

        Args:
            indices: in ``[0, num_embeddings)``.

        Returns:
            The normalized rows.
        """
        table = nn.Embed(self.num_embeddings, self.features, embedding_init=nn.initializers.xavier_uniform())
        return nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False)(table(indices))
