"""RankMixup: a mixed input should be classified less surely than a whole one, and the less surely the more it is mixed.

Mixed labels say exactly how sure a network should be, which is more than is known. These losses use only their order,
beside cross-entropy on the raw examples. A step, with the mixtures of :func:`jaxreg.data.mixup`::

    raw = apply_fn(params, inputs)
    losses = optax.softmax_cross_entropy(raw, targets) + 0.1 * mixup_ranking(
        raw, apply_fn(params, mixed.inputs), mix(targets, mixed.partner, mixed.weight)
    )
"""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def mixup_ranking(
    logits: Float[Array, "*batch classes"],
    mixed_logits: Float[Array, "*batch classes"],
    mixed_targets: Float[Array, "*batch classes"],
    *,
    margin: ScalarLike = 2.0,
) -> Float[Array, "*batch"]:
    r"""MRL: the largest logit of a mixture should be smaller than that of the example itself, by a margin.

    .. math:: \max\bigl(0,\; \max_k \tilde z_k - \max_k z_k + m\bigr)

    It is 0 for mixtures within one class, whose target has a single entry. To be added to the cross-entropy of the raw
    examples with a weight of 0.1 (paper).

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import mixup_ranking
    >>> raw, mixed, targets = jnp.array([3.0, 0.0]), jnp.array([1.5, 1.0]), jnp.array([0.6, 0.4])
    >>> float(mixup_ranking(raw, mixed, targets))
    0.5

    Args:
        logits: scores ``z`` of the raw inputs.
        mixed_logits: scores of the inputs mixed with a partner.
        mixed_targets: one-hot labels, mixed likewise.
        margin: ``m >= 0`` (paper: 2 for CIFAR, 1 for Tiny ImageNet).

    Returns:
        The loss of each example, at least float32.

    Raises:
        ValueError: ``margin`` is negative.

    References:
        Noh et al., *RankMixup: Ranking-Based Mixup Training for Network Calibration*, ICCV 2023, arXiv 2308.11990.
    """
    check_range("margin", margin, "[0, inf)")
    raw, mixed = (jnp.max(at_least_float32(z), axis=-1) for z in (logits, mixed_logits))
    # Counted, because the two shares of one class need not add up to exactly 1.
    several_classes = jnp.sum(mixed_targets > 0, axis=-1) > 1
    return jnp.where(several_classes, jax.nn.relu(mixed - raw + margin), 0.0)


@checked
def mndcg(
    logits: Float[Array, "*batch classes"],
    mixed_logits: Float[Array, "*batch mixtures classes"],
    mixed_targets: Float[Array, "*batch mixtures classes"],
) -> Float[Array, "*batch"]:
    r"""M-NDCG: the confidences of an example and of several mixtures of it should follow their shares.

    .. math::
        1 - \min\Bigl(\frac DI, \frac ID\Bigr), \qquad
        D = \sum_{r=1}^{M+1} \frac{c_{(r)}}{\log_2(r + 1)}, \quad I = \sum_{r=1}^{M+1} \frac{s_{(r)}}{\log_2(r + 1)}

    The example itself comes first, with share 1, then its mixtures in the order of the larger of their two shares
    :math:`s`; :math:`c` is the largest probability of each. To be added to the cross-entropy of the raw examples with a
    weight of 0.1 (paper).

    Args:
        logits: scores of the raw inputs.
        mixed_logits: scores of ``M`` mixtures of each input with partners (paper: 3).
        mixed_targets: one-hot labels, mixed likewise.

    Returns:
        The loss of each example in [0, 1), at least float32; 0 if all confidences equal the shares.

    References:
        Noh et al., *RankMixup: Ranking-Based Mixup Training for Network Calibration*, ICCV 2023, arXiv 2308.11990.
    """
    raw, mixed = (jnp.max(jax.nn.softmax(at_least_float32(z)), axis=-1) for z in (logits, mixed_logits))
    shares = jnp.max(at_least_float32(mixed_targets), axis=-1)
    order = jnp.argsort(-shares, axis=-1)
    shares, mixed = (jnp.take_along_axis(x, order, axis=-1) for x in (shares, mixed))
    gain = _discounted_gain(raw, mixed)
    ideal = _discounted_gain(jnp.ones_like(raw), shares)
    return 1.0 - jnp.where(ideal > gain, gain / ideal, ideal / gain)


def _discounted_gain(first, rest):
    discounts = 1.0 / jnp.log2(jnp.arange(2, rest.shape[-1] + 3))
    return first * discounts[0] + jnp.sum(rest * discounts[1:], axis=-1)
