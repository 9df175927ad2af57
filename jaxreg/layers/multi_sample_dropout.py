"""Multi-sample dropout: several dropout masks for one pass through the trunk.

Dropout's gradient is noisy. Where the head is cheap next to the network below it, its noise can be averaged out almost
for free: compute the features once, drop them out M times, apply the same head to each copy, and average the M losses.
Evaluation is that of ordinary dropout, one pass without masks.

Losses are averaged, not logits: the mean of the losses is what M repetitions of the example in the batch would give,
while the loss of the mean logits lets one copy make up for another.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike, Shaped, checked
from jaxreg.validation import check_range


@checked
def multi_sample_dropout(
    key: PRNGKeyArray,
    features: Float[Array, "*batch features"],
    *,
    num_samples: int = 8,
    rate: ScalarLike = 0.3,
    antithetic: bool = False,
) -> Float[Array, "{num_samples} *batch features"]:
    r"""Several copies of the features, each under its own inverted dropout mask.

    .. math:: h^{(m)} = \frac{z^{(m)} \odot h}{1 - p}, \qquad z^{(m)} \sim \operatorname{Bernoulli}(1 - p)

    Args:
        key: random key.
        features: ``h``, what enters the head.
        num_samples: ``M >= 1``, the number of masks (paper: 8, up to 64).
        rate: ``p`` in [0, 1), the chance that a feature is dropped (paper: 0.3 to 0.5).
        antithetic: whether masks come in opposite pairs, see :func:`antithetic_masks`; not in the paper.

    Returns:
        The copies, samples first, in the features' dtype.

    Raises:
        ValueError: ``num_samples`` or ``rate`` is outside its range.

    References:
        Inoue, *Multi-Sample Dropout for Accelerated Training and Better Generalization*, arXiv 1905.09788.
    """
    check_range("num_samples", num_samples, "[1, inf)")
    check_range("rate", rate, "[0, 1)")
    if antithetic:
        keep = antithetic_masks(key, features.shape, num_samples=num_samples, rate=rate)
    else:
        keep = jax.random.bernoulli(key, 1.0 - rate, (num_samples, *features.shape))
    return jnp.where(keep, features / (1.0 - rate), 0).astype(features.dtype)


@checked
def antithetic_masks(
    key: PRNGKeyArray, shape: tuple[int, ...], *, num_samples: int = 8, rate: ScalarLike = 0.3
) -> Bool[Array, "{num_samples} ..."]:
    r"""Dropout masks in pairs that are as unlike each other as masks of this rate can be.

    .. math:: z^{(2i)} = [u_i < 1 - p], \qquad z^{(2i+1)} = [1 - u_i \le 1 - p], \qquad u_i \sim U[0, 1)

    Every mask by itself is an ordinary one. Within a pair entries correlate with :math:`-p / (1 - p)` for ``p <= 1/2``
    (at one half the masks are complements), so whatever is linear in the features varies less on average.

    Args:
        key: random key.
        shape: of one mask.
        num_samples: ``M >= 1``, the number of masks; if odd, the last one has no partner.
        rate: ``p`` in [0, 1), the chance of False.

    Returns:
        Masks, True where a feature is kept; pairs are adjacent.

    Raises:
        ValueError: ``num_samples`` or ``rate`` is outside its range.
    """
    check_range("num_samples", num_samples, "[1, inf)")
    check_range("rate", rate, "[0, 1)")
    u = jax.random.uniform(key, ((num_samples + 1) // 2, *shape))
    # Written as u >= p, the second comparison is exact also at p = 0, where it must hold for u = 0.
    pairs = jnp.stack([u < 1.0 - rate, u >= rate], axis=1)
    return pairs.reshape(-1, *shape)[:num_samples]


class MultiSampleDropout(nn.Module):
    r"""A head behind multi-sample dropout: one set of weights, several masks.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from jaxreg.layers import MultiSampleDropout
    >>> layer = MultiSampleDropout(nn.Dense(10), num_samples=8, rate=0.5)
    >>> features = jnp.ones((4, 16))
    >>> params = layer.init(jax.random.key(0), features, deterministic=True)
    >>> layer.apply(params, features, deterministic=False, rngs={"dropout": jax.random.key(1)}).shape
    (8, 4, 10)
    >>> layer.apply(params, features, deterministic=True).shape
    (4, 10)

    Attributes:
        head: a module or function of the features, of any depth. It is called once, on all copies together, so it must
            act on the last axis and broadcast over those before, as dense layers do.
        num_samples: ``M >= 1``, the number of masks (paper: 8, up to 64).
        rate: ``p`` in [0, 1), the chance that a feature is dropped (paper: 0.3 to 0.5).
        antithetic: whether masks come in opposite pairs, see :func:`antithetic_masks`; not in the paper.
        deterministic: whether to evaluate; either here or when called, as in :class:`flax.linen.Dropout`.

    References:
        Inoue, *Multi-Sample Dropout for Accelerated Training and Better Generalization*, arXiv 1905.09788.
    """

    head: Callable[..., Array]
    num_samples: int = 8
    rate: ScalarLike = 0.3
    antithetic: bool = False
    deterministic: bool | None = None

    @checked
    def __call__(
        self, features: Float[Array, "*batch features"], *, deterministic: bool | None = None
    ) -> Float[Array, "..."]:
        """The head's outputs for every mask, for :func:`multi_sample_loss`; without masks when deterministic.

        Args:
            features: what the trunk computed, once.
            deterministic: True to evaluate, False to train, which needs the ``"dropout"`` random stream.

        Returns:
            ``[samples, *batch, classes]`` in training, ``[*batch, classes]`` when deterministic.

        Raises:
            ValueError: ``num_samples`` or ``rate`` is outside its range.
        """
        check_range("num_samples", self.num_samples, "[1, inf)")
        check_range("rate", self.rate, "[0, 1)")
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return self.head(features)
        return self.head(
            multi_sample_dropout(
                self.make_rng("dropout"),
                features,
                num_samples=self.num_samples,
                rate=self.rate,
                antithetic=self.antithetic,
            )
        )


@checked
def multi_sample_loss(
    logits: Float[Array, "samples *batch classes"],
    labels: Int[Array, "*batch"] | Float[Array, "*batch classes"],
    loss_fn: Callable[..., Shaped[Array, "..."]],
) -> Float[Array, "*batch"]:
    r"""Mean over the dropout samples of each example's loss.

    .. math:: \frac1M \sum_m \ell(f^{(m)}, y)

    For a convex loss this is at least the loss of the mean logits.

    >>> import jax.numpy as jnp, optax
    >>> from jaxreg.layers import multi_sample_loss
    >>> logits = jnp.array([[[4.0, 8.0]], [[4.0, 0.0]]])  # two samples of one example
    >>> loss = multi_sample_loss(logits, jnp.array([0]), optax.softmax_cross_entropy_with_integer_labels)
    >>> print(f"{loss[0]:.3f}")
    2.018

    Args:
        logits: ``f``, the head's output for every sample.
        labels: ``y``, class indices or a distribution over classes, shared by the samples.
        loss_fn: ``l``, from logits ``[*batch, classes]`` and labels to losses ``[*batch]``.

    Returns:
        The loss of each example, in at least float32.

    References:
        Inoue, *Multi-Sample Dropout for Accelerated Training and Better Generalization*, arXiv 1905.09788.
    """
    losses = jax.vmap(loss_fn, in_axes=(0, None))(logits, labels)
    return jnp.mean(at_least_float32(losses), axis=0)
