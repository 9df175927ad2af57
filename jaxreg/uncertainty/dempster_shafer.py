"""Dempster-Shafer theory: opinions that know how uncertain they are, and how two of them become one.

An expert who has seen much evidence is sure; several experts who agree are surer than each of them. Trustworthy
long-tailed classification adds experts for an example only as long as they are not sure together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.losses import exponential_evidence
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


class Opinion(NamedTuple):
    """Result of :func:`opinion` and :func:`dempster_combine`. Beliefs and uncertainty together are 1.

    Attributes:
        belief: ``b``, mass of each class.
        uncertainty: ``u``, mass of not knowing which.
    """

    belief: Float[Array, "*batch classes"]
    uncertainty: Float[Array, "*batch"]


@checked
def opinion(evidence: Float[Array, "*batch classes"]) -> Opinion:
    r"""The opinion that evidence founds: that of a Dirichlet distribution with parameters :math:`e + 1`.

    .. math:: b_k = \frac{e_k}{S}, \qquad u = \frac{K}{S}, \qquad S = \sum_k (e_k + 1)

    Args:
        evidence: ``e >= 0``, finite (:func:`jaxreg.losses.exponential_evidence`).

    Returns:
        Belief and uncertainty, at least float32.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022, arXiv 2111.09030; after Sensoy et al.,
        *Evidential Deep Learning to Quantify Classification Uncertainty*, NeurIPS 2018, arXiv 1806.01768.
    """
    evidence = at_least_float32(evidence)
    classes = evidence.shape[-1]
    total = jnp.sum(evidence, axis=-1) + classes
    return Opinion(evidence / total[..., None], classes / total)


@checked
def dempster_combine(
    belief_1: Float[Array, "*batch classes"],
    uncertainty_1: Float[Array, "*batch"],
    belief_2: Float[Array, "*batch classes"],
    uncertainty_2: Float[Array, "*batch"],
) -> Opinion:
    r"""Dempster's rule: what two independent opinions say together.

    .. math::
        b_k = \frac{b^1_k b^2_k + b^1_k u^2 + b^2_k u^1}{1 - C}, \qquad u = \frac{u^1 u^2}{1 - C}, \qquad
        C = \sum_{i \ne j} b^1_i b^2_j

    >>> import jax.numpy as jnp
    >>> from jaxreg.uncertainty import dempster_combine, opinion
    >>> one, other = opinion(jnp.exp(jnp.array([2.0, 1.0, 0.0]))), opinion(jnp.exp(jnp.array([1.0, 2.0, 0.0])))
    >>> round(float(dempster_combine(*one, *other).uncertainty), 4)
    0.077

    Args:
        belief_1: ``b^1``, of one opinion.
        uncertainty_1: ``u^1``, which makes its beliefs sum to 1.
        belief_2: ``b^2``, of the other.
        uncertainty_2: ``u^2``.

    Returns:
        The combined opinion, at least float32. Opinions without uncertainty that contradict each other in everything
        cannot be combined; the result is zero.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022, arXiv 2111.09030; Shafer, *A Mathematical
        Theory of Evidence*, 1976.
    """
    b1, u1, b2, u2 = map(at_least_float32, (belief_1, uncertainty_1, belief_2, uncertainty_2))
    agreement = _agreement(b1, u1, b2, u2)
    belief = b1 * b2 + b1 * u2[..., None] + b2 * u1[..., None]
    return Opinion(belief / agreement[..., None], u1 * u2 / agreement)


@checked
def engagement_weights(expert_logits: Float[Array, "experts *batch classes"]) -> Float[Array, "experts+1 *batch"]:
    r"""How much each of several experts is still needed, given those before it.

    .. math:: w_0 = 1, \qquad w_{m+1} = \frac{w_m u_m}{1 - C_m}

    where :math:`C_m` is the conflict of expert :math:`m` with the one before it (:math:`C_0 = 0`) and evidence is
    :func:`jaxreg.losses.exponential_evidence`. For two experts :math:`w_2` is the uncertainty of Dempster's rule.

    Args:
        expert_logits: scores of each expert, cosines times the scale (paper: 30).

    Returns:
        ``w``: the weight of each expert, and last the uncertainty of all of them together. No gradient flows through.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022, arXiv 2111.09030.
    """
    beliefs, uncertainties = opinion(exponential_evidence(jax.lax.stop_gradient(expert_logits)))
    agreement = _agreement(beliefs[:-1], uncertainties[:-1], beliefs[1:], uncertainties[1:])
    shrinkage = jnp.concatenate([uncertainties[:1], uncertainties[1:] / agreement])
    return jnp.concatenate([jnp.ones_like(uncertainties[:1]), jnp.cumprod(shrinkage, axis=0)])


@checked
def engaged_logits(
    expert_logits: Float[Array, "experts *batch classes"],
    weights: Float[Array, "experts+1 *batch"],
    *,
    temperature: ScalarLike = 0.2,
) -> Float[Array, "*batch classes"]:
    r"""Scores of several experts as one, those that are needed counting more.

    .. math:: \sum_m v_m f_m, \qquad v = \operatorname{softmax}(w_{0 \dots M - 1} / \tau)

    Args:
        expert_logits: ``f``.
        weights: ``w`` of :func:`engagement_weights`, of which the last is not used.
        temperature: ``tau > 0`` (authors' code: 0.2).

    Returns:
        The scores, at least float32.

    Raises:
        ValueError: ``temperature`` is not positive.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022, arXiv 2111.09030. The authors' code normalizes
        over the batch, this over the experts.
    """
    check_range("temperature", temperature, "(0, inf)")
    share = jax.nn.softmax(at_least_float32(weights[:-1]) / temperature, axis=0)
    return jnp.sum(share[..., None] * at_least_float32(expert_logits), axis=0)


def _agreement(b1, u1, b2, u2):
    """1 - C as a sum of what is not negative: C itself may round to 1."""
    agreement = jnp.sum(b1 * b2, axis=-1) + u1 + u2 * jnp.sum(b1, axis=-1)
    return jnp.where(agreement > 0, agreement, 1.0)
