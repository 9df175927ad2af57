"""Subjective logic: confusion and ignorance are two kinds of not knowing.

Evidence for a class makes the class plausible. Evidence for several classes is conflicting: the example is between
them (confusion). Evidence for none is missing: the example is unlike all of them (ignorance). A prediction can then be
one class, the set of the plausible ones, or none. The evidence is learned with
:func:`jaxreg.losses.flexible_evidential`.

The explicit formulas are this library's reading of the paper, one plausibility function for every class, combined
conjunctively as if independent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, ScalarLike, checked
from jaxreg.validation import check_range


class SingletonOpinion(NamedTuple):
    """Result of :func:`singleton_opinion`. All its masses together are 1.

    Attributes:
        belief: mass of each class alone.
        confusion: mass of all sets of two classes or more.
        ignorance: mass of the empty set: that it is none of the classes.
    """

    belief: Float[Array, "*batch classes"]
    confusion: Float[Array, "*batch"]
    ignorance: Float[Array, "*batch"]


@checked
def plausibility(
    evidence: Float[Array, "*batch classes"], *, prior_weight: ScalarLike = 1.0
) -> Float[Array, "*batch classes"]:
    r"""How plausible each class is, for itself.

    .. math:: p_k = \frac{e_k}{e_k + W}

    Args:
        evidence: ``e_k >= 0``, such as softplus of the logits.
        prior_weight: ``W > 0``, the evidence that makes a class half plausible (1 is our choice).

    Returns:
        The plausibilities, in [0, 1], at least float32; 1 for infinite evidence.

    Raises:
        ValueError: ``prior_weight`` is not positive.

    References:
        Fan et al., *Flexible Visual Recognition by Evidential Modeling of Confusion and Ignorance*, ICCV 2023,
        arXiv 2309.07403.
    """
    check_range("prior_weight", prior_weight, "(0, inf)")
    evidence = at_least_float32(evidence)
    infinite = jnp.isinf(evidence)
    finite = jnp.where(infinite, 0.0, evidence)
    return jnp.where(infinite, 1.0, finite / (finite + prior_weight))


@checked
def singleton_opinion(plausibilities: Float[Array, "*batch classes"]) -> SingletonOpinion:
    r"""Belief in each class, confusion and ignorance.

    Every set :math:`A` of classes has the mass
    :math:`m(A) = \prod_{k \in A} p_k \prod_{k \notin A} (1 - p_k)`. Hence

    .. math:: b_k = p_k \prod_{j \ne k} (1 - p_j), \qquad I = \prod_j (1 - p_j), \qquad C = 1 - I - \sum_k b_k

    >>> import jax.numpy as jnp
    >>> from jaxreg.uncertainty import plausibility, singleton_opinion
    >>> opinion = singleton_opinion(plausibility(jnp.array([9.0, 9.0, 0.0])))
    >>> [round(float(x), 2) for x in (*opinion.belief, opinion.confusion, opinion.ignorance)]
    [0.09, 0.09, 0.0, 0.81, 0.01]

    Args:
        plausibilities: ``p``, each in [0, 1].

    Returns:
        Belief ``b``, confusion ``C`` and ignorance ``I``, at least float32.

    References:
        Fan et al., *Flexible Visual Recognition by Evidential Modeling of Confusion and Ignorance*, ICCV 2023,
        arXiv 2309.07403.
    """
    p = at_least_float32(plausibilities)
    certain = p >= 1
    # Products of many small factors are sums of logarithms; a factor of zero is counted, as its logarithm is infinite.
    log_rest = jnp.where(certain, 0.0, jnp.log1p(-jnp.where(certain, 0.0, p)))
    zeros, log_all = jnp.sum(certain, axis=-1), jnp.sum(log_rest, axis=-1)
    ignorance = jnp.where(zeros > 0, 0.0, jnp.exp(log_all))
    other_zeros = zeros[..., None] - certain
    belief = p * jnp.where(other_zeros > 0, 0.0, jnp.exp(log_all[..., None] - log_rest))
    confusion = jnp.maximum(1 - jnp.sum(belief, axis=-1) - ignorance, 0.0)
    return SingletonOpinion(belief, confusion, ignorance)


@checked
def flexible_decision(
    belief: Float[Array, "*batch classes"],
    confusion: Float[Array, "*batch"],
    ignorance: Float[Array, "*batch"],
    plausibilities: Float[Array, "*batch classes"],
    *,
    reject: ScalarLike = 0.5,
    combine: ScalarLike = 0.5,
) -> Bool[Array, "*batch classes"]:
    r"""Predicts no class, one, or several.

    .. math::
        \emptyset \text{ if } I > r, \qquad \{k : p_k \ge \tfrac12\} \cup \{\arg\max_k b_k\} \text{ else if } C > c,
        \qquad \{\arg\max_k b_k\} \text{ otherwise}

    The second is a set of one where many classes are conflicting and none is plausible.

    Args:
        belief: ``b``, of :func:`singleton_opinion`.
        confusion: ``C``.
        ignorance: ``I``.
        plausibilities: ``p``, of :func:`plausibility`.
        reject: ``r`` in [0, 1], ignorance above which nothing is predicted; 1 never rejects (0.5 is our choice).
        combine: ``c`` in [0, 1], confusion above which all plausible classes are predicted; 1 never does (0.5 is our
            choice).

    Returns:
        Which classes are predicted.

    Raises:
        ValueError: ``reject`` or ``combine`` is outside [0, 1].

    References:
        Fan et al., *Flexible Visual Recognition by Evidential Modeling of Confusion and Ignorance*, ICCV 2023,
        arXiv 2309.07403.
    """
    check_range("reject", reject, "[0, 1]")
    check_range("combine", combine, "[0, 1]")
    belief, plausibilities = jnp.asarray(belief), jnp.asarray(plausibilities)
    most_believed = jax.nn.one_hot(jnp.argmax(belief, axis=-1), belief.shape[-1], dtype=bool)
    several = (confusion > combine)[..., None] & (plausibilities >= 0.5)
    return (most_believed | several) & ~(ignorance > reject)[..., None]
