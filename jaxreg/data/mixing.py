"""Mixing examples: training on convex combinations of two inputs.

Each example of a batch is averaged with a partner from the same batch. Whatever else belongs to an example (one-hot
labels, targets) is mixed with the same partner and weight. The weight is drawn for the whole batch, or for each pair
from an interval that a network has learned to allow it (AdaMixUp, :func:`jaxreg.losses.adamixup_loss`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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
    weight = jnp.asarray(weight)
    weight = weight.reshape(weight.shape + (1,) * (wide.ndim - weight.ndim))
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
