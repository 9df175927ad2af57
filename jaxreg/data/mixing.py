"""Mixing examples: training on convex combinations of two inputs.

Each example of a batch is averaged with a partner from the same batch. Whatever else belongs to an example (one-hot
labels, targets) is mixed with the same partner and weight. The weight is drawn for the whole batch, or for each pair
from an interval that a network has learned to allow it (AdaMixUp, :func:`jaxreg.losses.adamixup_loss`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.axes import per_example
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


class Mixup(NamedTuple):
    """Result of :func:`mixup`.

    Attributes:
        inputs: the mixed inputs, in the dtype of the originals.
        partner: position in the batch of the example that each one is mixed with, a permutation.
        weight: ``w`` in [0, 1], the share of the example itself, float32.
    """

    inputs: Float[Array, "batch *shape"]
    partner: Int[Array, "batch"]
    weight: Float[Array, ""]


class PolicyInterval(NamedTuple):
    """The weights that AdaMixUp allows each pair, from :func:`policy_interval`.

    Attributes:
        low: the least weight ``a``, in (0, 1).
        width: ``d``, the largest less the least; ``a + d`` is below 1.
    """

    low: Float[Array, "*batch"]
    width: Float[Array, "*batch"]


class SelfMix(NamedTuple):
    """Result of :func:`self_mix`.

    Attributes:
        inputs: the mixed crops, in the dtype of the first.
        targets: their targets, mixed likewise.
        weight: share of the pixels that are the first crop's, float32.
    """

    inputs: Float[Array, "*batch height width channels"]
    targets: Float[Array, "*batch classes"]
    weight: Float[Array, ""]


@checked
def mixup(
    key: PRNGKeyArray, inputs: Float[Array, "batch *shape"], *, alpha: ScalarLike = 1.0, keep_larger: bool = False
) -> Mixup:
    r"""Mixup: the batch averaged with a random permutation of itself.

    .. math:: \tilde x_i = w\, x_i + (1 - w)\, x_{\pi(i)}, \qquad w \sim \operatorname{Beta}(\alpha, \alpha)

    One weight and one permutation for the batch, as in the authors' code.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.data import mix, mixup
    >>> images, labels = jnp.zeros([8, 28, 28]), jnp.arange(8)
    >>> mixed = mixup(jax.random.key(0), images)
    >>> soft_labels = mix(jax.nn.one_hot(labels, 10), mixed.partner, mixed.weight)
    >>> mixed.inputs.shape, soft_labels.shape
    ((8, 28, 28), (8, 10))

    Args:
        key: of the weight and the permutation.
        inputs: ``x``, examples first.
        alpha: positive (paper: 0.1 to 0.4 for ImageNet, 1 for CIFAR-10); to 0 nothing is mixed, to infinity all
            weights become 1/2.
        keep_larger: use ``max(w, 1 - w)``, so that an example always keeps the larger share (as ELR+ and MixMatch
            do, whose targets belong to an example).

    Returns:
        The mixed inputs, the partners and the weight.

    Raises:
        ValueError: ``alpha`` is not positive and finite.

    References:
        Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, arXiv 1710.09412.
    """
    check_range("alpha", alpha, "(0, inf)")
    key_weight, key_partner = jax.random.split(key)
    weight = jax.random.beta(key_weight, alpha, alpha, dtype=jnp.float32)
    if keep_larger:
        weight = jnp.maximum(weight, 1.0 - weight)
    partner = jax.random.permutation(key_partner, inputs.shape[0])
    return Mixup(mix(inputs, partner, weight), partner, weight)


@checked
def mix(
    values: Float[Array, "batch *shape"],
    partner: Int[Array, "batch"],
    weight: ScalarLike | Float[Array, "batch"],
) -> Float[Array, "batch *shape"]:
    r"""Averages every example with its partner.

    .. math:: w_i v_i + (1 - w_i)\, v_{\pi(i)}

    Args:
        values: ``v``, examples first.
        partner: ``pi``, positions in the batch.
        weight: ``w`` in [0, 1], the share of the example itself, one for all or one for each.

    Returns:
        The mixed values, in the dtype of ``values``, computed in at least float32.

    Raises:
        ValueError: ``weight`` is outside [0, 1].

    References:
        Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, arXiv 1710.09412.
    """
    check_range("weight", weight, "[0, 1]")
    wide = at_least_float32(values)
    weight = per_example(jnp.asarray(weight), wide)
    return (weight * wide + (1 - weight) * wide[partner]).astype(values.dtype)


@checked
def policy_blend(
    key: PRNGKeyArray, inputs: Float[Array, "batch *shape"], partner: Int[Array, "batch"]
) -> Float[Array, "batch *shape"]:
    r"""What AdaMixUp's policy network sees of each pair: a random blend, every entry with weights of its own.

    .. math:: \tfrac12 (m \odot x_i + m' \odot x_{\pi(i)}), \qquad m, m' \sim N(0, 1) \text{ truncated to } [-2, 2]

    Args:
        key: of the weights.
        inputs: ``x``, examples first.
        partner: ``pi``, positions in the batch.

    Returns:
        The blends, in the dtype of the inputs.

    References:
        Guo et al., *MixUp as Locally Linear Out-Of-Manifold Regularization*, AAAI 2019, arXiv 1809.02499.
    """
    wide = at_least_float32(inputs)
    own, other = jax.random.truncated_normal(key, -2.0, 2.0, (2, *wide.shape), wide.dtype)
    return (0.5 * (own * wide + other * wide[partner])).astype(inputs.dtype)


@checked
def policy_interval(policy_logits: Float[Array, "*batch 3"]) -> PolicyInterval:
    r"""The interval of weights that the policy network allows each pair.

    .. math:: (a, d, 1 - a - d) = \operatorname{softmax}(g), \qquad w \in [a, a + d]

    At logits of zero it is [1/3, 2/3]. Since it is inside of (0, 1), a pair is always mixed.

    Args:
        policy_logits: ``g``, three for each pair.

    Returns:
        The interval, at least float32.

    References:
        Guo et al., *MixUp as Locally Linear Out-Of-Manifold Regularization*, AAAI 2019, arXiv 1809.02499.
    """
    shares = jax.nn.softmax(at_least_float32(policy_logits))
    return PolicyInterval(shares[..., 0], shares[..., 1])


@checked
def sample_policy(key: PRNGKeyArray, interval: PolicyInterval) -> Float[Array, "*batch"]:
    r"""A weight for each pair, uniform in its interval and differentiable with respect to it.

    .. math:: w = a + u\, d, \qquad u \sim U[0, 1)

    For :func:`mix`, as each example's own share.

    Args:
        key: of ``u``.
        interval: from :func:`policy_interval`.

    Returns:
        The weights.

    References:
        Guo et al., *MixUp as Locally Linear Out-Of-Manifold Regularization*, AAAI 2019, arXiv 1809.02499.
    """
    low, width = interval
    return low + width * jax.random.uniform(key, low.shape, low.dtype)


@checked
def self_mix(
    key: PRNGKeyArray,
    crop_a: Float[Array, "*batch height width channels"],
    crop_b: Float[Array, "*batch height width channels"],
    target_a: Float[Array, "*batch classes"],
    target_b: Float[Array, "*batch classes"],
    *,
    alpha: ScalarLike = 1.0,
) -> SelfMix:
    r"""SelfMix: a box of one crop of an image is pasted into another crop of the same image.

    .. math::
        \tilde x = m \odot x_a + (1 - m) \odot x_b, \qquad \tilde t = w\, t_a + (1 - w)\, t_b

    The mask ``m`` is zero in the box, which has sides :math:`\sqrt{1 - \lambda}` of the crop's, with
    :math:`\lambda \sim \operatorname{Beta}(\alpha, \alpha)`, and a uniformly drawn centre; what sticks out is cut off.
    ``w`` is the share of pixels that ``a`` keeps. Crops of one image have similar soft labels, so the mixed ones vary
    less than with partners from the batch. One box for all examples, as in CutMix; ``jax.vmap`` draws one for each.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.data import self_mix
    >>> crops, targets = jnp.zeros([2, 6, 8, 8, 1]), jnp.ones([2, 6, 10]) / 10
    >>> self_mix(jax.random.key(0), *crops, *targets).inputs.shape
    (6, 8, 8, 1)

    Args:
        key: of the box.
        crop_a: ``x_a``, crops of some images.
        crop_b: ``x_b``, other crops of the same images.
        target_a: ``t_a``, targets of the first crops, such as a teacher's probabilities.
        target_b: ``t_b``, of the second.
        alpha: positive; larger means boxes of half the area more often.

    Returns:
        The mixed crops, their targets and the weight of ``a``.

    Raises:
        ValueError: ``alpha`` is not positive and finite.

    References:
        Shen, *FerKD: Surgical Label Adaptation for Efficient Distillation*, ICCV 2023, arXiv 2312.17473; the box is
        that of Yun et al., *CutMix*, ICCV 2019, arXiv 1905.04899.
    """
    check_range("alpha", alpha, "(0, inf)")
    key_area, key_row, key_column = jax.random.split(key, 3)
    side = jnp.sqrt(1.0 - jax.random.beta(key_area, alpha, alpha, dtype=jnp.float32))

    def within(key, length):
        half = (side * length).astype(jnp.int32) // 2
        centre = jax.random.randint(key, [], 0, length)
        position = jnp.arange(length)
        return (position >= centre - half) & (position < centre + half)

    height, width = crop_a.shape[-3:-1]
    box = within(key_row, height)[:, None] & within(key_column, width)
    weight = 1.0 - jnp.mean(box, dtype=jnp.float32)
    targets = weight * at_least_float32(target_a) + (1 - weight) * at_least_float32(target_b)
    inputs = jnp.where(box[..., None], crop_b, crop_a)
    return SelfMix(inputs.astype(crop_a.dtype), targets.astype(target_a.dtype), weight)
