"""AdaMixUp: mixing only as far as no mixture looks like a real example of another class.

A mixture intrudes if it lies where real examples lie, with a label that contradicts theirs. Two more networks keep that
from happening, beside the classifier: one says for every pair which weights are allowed, one tells real examples from
mixtures. All three minimise the same sum. Weights whose mixtures cannot be told from real examples cost the third
network, and labels that contradict real ones the classifier, so that the first learns to avoid both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreg.data import mix, policy_blend, policy_interval, sample_policy
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def intrusion_loss(real_scores: Float[Array, "real"], mixed_scores: Float[Array, "mixed"]) -> Float[Array, ""]:
    r"""Cross-entropy of telling real examples from mixtures.

    .. math::
        \frac{1}{R + B} \Bigl(\sum_{i=1}^{R} \log(1 + e^{-s_i}) + \sum_{i=1}^{B} \log(1 + e^{\tilde s_i})\Bigr)

    Args:
        real_scores: log-odds ``s`` of being real that the discriminator gives real examples.
        mixed_scores: those that it gives mixtures.

    Returns:
        The mean over all examples, in nats, at least float32: ``log 2`` if nothing is told apart by scores of 0.

    References:
        Guo et al., *MixUp as Locally Linear Out-Of-Manifold Regularization*, AAAI 2019, arXiv 1809.02499.
    """
    scores = jnp.concatenate([-at_least_float32(real_scores), at_least_float32(mixed_scores)])
    return jnp.mean(jax.nn.softplus(scores))


@checked
def adamixup_loss(
    classifier_fn: Callable[[Any, Any], Any],
    discriminator_fn: Callable[[Any, Any], Any],
    policy_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    targets: Float[Array, "batch classes"],
    unseen: Float[Array, "unseen *shape"],
    key: PRNGKeyArray,
    *,
    intrusion_weight: ScalarLike = 1.0,
) -> Float[Array, ""]:
    r"""AdaMixUp's objective: classify examples and mixtures, and tell them apart, with weights from a learned policy.

    .. math::
        \frac{1}{2B} \sum_{i=1}^{B} \bigl(H(t_i, f(x_i)) + H(\tilde t_i, f(\tilde x_i))\bigr)
        + \gamma\, L_{\text{intrusion}}, \qquad
        \tilde x_i = w_i x_i + (1 - w_i) x_{\pi(i)}, \quad w_i \sim U[a_i, a_i + d_i]

    where :math:`H` is cross-entropy, :math:`\tilde t` the targets mixed likewise, and the interval that of
    :func:`jaxreg.data.policy_interval`, for a blend of the pair (:func:`jaxreg.data.policy_blend`). It is to be
    minimised by the parameters of all three networks. The policy's last layer should start near zero (authors' code:
    standard deviation 0.001), so that weights start in [1/3, 2/3].

    Args:
        classifier_fn: ``f``, from parameters and inputs to logits.
        discriminator_fn: from parameters and inputs to the log-odds of each being real; in the paper it shares all
            but the last layers with the classifier.
        policy_fn: from parameters and blends to three logits each.
        params: of all three.
        inputs: ``x``, examples first.
        targets: ``t``, class probabilities of each example.
        unseen: further real examples, for the discriminator only (paper: as many, from another batch).
        key: of the partners, the blends and the weights.
        intrusion_weight: ``gamma >= 0`` (paper: 1).

    Returns:
        The mean loss, at least float32.

    Raises:
        ValueError: ``intrusion_weight`` is negative, or the classifier's logits are not of ``targets``' classes.

    References:
        Guo et al., *MixUp as Locally Linear Out-Of-Manifold Regularization*, AAAI 2019, arXiv 1809.02499.
    """
    check_range("intrusion_weight", intrusion_weight, "[0, inf)")
    key_partner, key_blend, key_weight = jax.random.split(key, 3)
    partner = jax.random.permutation(key_partner, inputs.shape[0])
    interval = policy_interval(policy_fn(params, policy_blend(key_blend, inputs, partner)))
    weight = sample_policy(key_weight, interval)
    mixed = mix(inputs, partner, weight)

    logits = at_least_float32(classifier_fn(params, jnp.concatenate([inputs, mixed])))
    if logits.shape[-1] != targets.shape[-1]:
        raise ValueError(
            f"classifier_fn must return logits of the {targets.shape[-1]} classes of targets, got {logits.shape[-1]}"
        )
    classification = optax.softmax_cross_entropy(logits, jnp.concatenate([targets, mix(targets, partner, weight)]))
    scores = discriminator_fn(params, jnp.concatenate([inputs, unseen, mixed]))
    real = inputs.shape[0] + unseen.shape[0]
    return jnp.mean(classification) + intrusion_weight * intrusion_loss(scores[:real], scores[real:])
