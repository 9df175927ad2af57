"""Nested dropout: features in order of importance.

Of the features before the last layer only the first ``k`` are kept, with a new ``k`` for every batch. The first ones
are almost always there, so what matters for most examples settles in them, and what only few examples need, such as
wrong labels, comes late. A network trained so can be cut off after its best number of features::

    features = nested_dropout(key, features, std=100.0)                  # when training
    width = best_width(accuracies)                                      # validation accuracies of all cuts
    logits = head(truncate(features, width))                             # afterwards
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def nested_pmf(width: int, *, std: ScalarLike, mean: ScalarLike = 0.0) -> Float[Array, "{width}"]:
    r"""How likely nested dropout keeps ``k`` features, for ``k`` from 1 to the width.

    .. math:: P(k) \propto \exp\Bigl(-\Bigl(\frac{k - \mu}{s}\Bigr)^2\Bigr)

    without the factor 1/2 of a Gaussian, as in the authors' code. Feature ``j`` is kept with probability
    :math:`\sum_{k \ge j} P(k)`.

    Args:
        width: ``D >= 1``, number of features.
        std: ``s > 0`` (authors' code: 10 to 250 for 512 features); to infinity all ``k`` become alike.
        mean: ``mu`` (authors' code: 0).

    Returns:
        The probabilities.

    Raises:
        ValueError: ``width`` or ``std`` is outside its range.

    References:
        Chen et al., *Compressing Features for Learning with Noisy Labels*, arXiv 2206.13140.
    """
    check_range("width", width, "[1, inf)")
    check_range("std", std, "(0, inf)")
    return jax.nn.softmax(-jnp.square((jnp.arange(1, width + 1) - mean) / std))


@checked
def nested_dropout(
    key: PRNGKeyArray, features: Float[Array, "*batch features"], *, std: ScalarLike, mean: ScalarLike = 0.0
) -> Float[Array, "*batch features"]:
    r"""Keeps the first ``k`` features of all examples, ``k`` drawn once from :func:`nested_pmf`; the rest become zero.

    .. math:: \tilde h_j = [j \le k]\, h_j, \qquad k \sim P

    Args:
        key: of ``k``.
        features: ``h``, what enters the last layer.
        std: ``s > 0`` of :func:`nested_pmf`.
        mean: ``mu``, likewise.

    Returns:
        The features, those kept unscaled.

    Raises:
        ValueError: ``std`` is not positive.

    References:
        Chen et al., *Compressing Features for Learning with Noisy Labels*, arXiv 2206.13140; after Rippel et al.,
        *Learning Ordered Representations with Nested Dropout*, ICML 2014, arXiv 1402.0915.
    """
    pmf = nested_pmf(features.shape[-1], std=std, mean=mean)
    return truncate(features, 1 + jax.random.categorical(key, jnp.log(pmf)))


@checked
def truncate(features: Float[Array, "*batch features"], k: int | Int[Array, ""]) -> Float[Array, "*batch features"]:
    """Sets all but the first ``k`` features to zero, so that the layer above stays as it is.

    Args:
        features: what enters the last layer.
        k: how many are kept; all, if it is the width or more.

    Returns:
        The features, in their dtype.
    """
    return jnp.where(jnp.arange(features.shape[-1]) < k, features, 0).astype(features.dtype)


@checked
def best_width(accuracies: Float[Array, " width"]) -> Int[Array, ""]:
    r"""After how many features to cut a network off: the best accuracy, and the fewer features of two that are as good.

    .. math:: \operatorname{argmax}_k \; a_k - 10^{-5} k

    Args:
        accuracies: ``a``, on validation data in [0, 1], with the first 1, 2, ... features.

    Returns:
        ``k``, from 1 to the width, for :func:`truncate`.

    References:
        Chen et al., *Compressing Features for Learning with Noisy Labels*, arXiv 2206.13140.
    """
    accuracies = at_least_float32(accuracies)
    return 1 + jnp.argmax(accuracies - 1e-5 * jnp.arange(1, len(accuracies) + 1))


class NestedDropout(nn.Module):
    r"""Nested dropout as a layer, see :func:`nested_dropout`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.layers import NestedDropout
    >>> layer, features = NestedDropout(std=4.0), jnp.ones([2, 8])
    >>> layer.apply({}, features, deterministic=False, rngs={"dropout": jax.random.key(1)}).shape
    (2, 8)

    Attributes:
        std: ``s > 0`` of :func:`nested_pmf`.
        mean: ``mu``, likewise.
        deterministic: whether to keep all features; either here or when called, as in :class:`flax.linen.Dropout`.

    References:
        Chen et al., *Compressing Features for Learning with Noisy Labels*, arXiv 2206.13140.
    """

    std: ScalarLike
    mean: ScalarLike = 0.0
    deterministic: bool | None = None

    @checked
    def __call__(
        self, features: Float[Array, "*batch features"], *, deterministic: bool | None = None
    ) -> Float[Array, "*batch features"]:
        """The first features, the rest zero; all when deterministic.

        Args:
            features: what enters the last layer.
            deterministic: True to evaluate, False to train, which needs the ``"dropout"`` random stream.

        Returns:
            The features.

        Raises:
            ValueError: ``std`` is not positive.
        """
        check_range("std", self.std, "(0, inf)")
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return features
        return nested_dropout(self.make_rng("dropout"), features, std=self.std, mean=self.mean)
