"""Whether an unlearned model is like one that never saw the data.

Unlearning is judged by models retrained without the data to be forgotten: by accuracies and a membership attack
(SalUn), or by the distribution of every example's margin over models of different seeds (KLoM).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def margin(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    r"""Log-odds of the true class.

    .. math:: z_y - \log \sum_{k \ne y} e^{z_k}

    It orders examples as the probability of the true class does, but does not round to 1.

    Args:
        logits: unnormalized class scores ``z``.
        labels: class indices ``y`` in ``[0, classes)``.

    Returns:
        The margin of each example, at least float32.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232.
    """
    logits = at_least_float32(logits)
    is_label = jnp.arange(logits.shape[-1]) == jnp.asarray(labels)[..., None]
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1) - others


@checked
def membership_inference_efficacy(
    retain_scores: Float[Array, "retain"], test_scores: Float[Array, "test"], forget_scores: Float[Array, "forget"]
) -> Float[Array, ""]:
    r"""Share of the forgotten examples that a confidence attack takes for examples never trained on.

    The attacker learns on examples whose membership is known to predict "trained on" where the score is at least a
    threshold :math:`\tau`, and takes the one of highest balanced accuracy, the lowest of several:

    .. math:: \tau = \arg\max_\tau \Pr(s_r \ge \tau) + \Pr(s_t < \tau), \qquad \text{result } \Pr(s_f < \tau)

    The authors fit a support vector machine with an RBF kernel to the same scores.

    Args:
        retain_scores: scores ``s_r`` of examples trained on, such as :func:`margin`: higher means more confident.
        test_scores: scores ``s_t`` of examples never trained on.
        forget_scores: scores ``s_f`` of the forgotten examples.

    Returns:
        The share, 0 if no threshold tells the known examples apart, NaN if a score is.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508, appendix C.3; after Jia et al., *Model Sparsity
        Can Simplify Machine Unlearning*, NeurIPS 2023.
    """
    retain, test = jnp.sort(at_least_float32(retain_scores)), jnp.sort(at_least_float32(test_scores))
    candidates = jnp.sort(jnp.concatenate([jnp.full([1], -jnp.inf, retain.dtype), retain, test]))

    common = math.lcm(len(retain), len(test))

    def share_below(scores):
        count = jnp.searchsorted(scores, candidates, side="left")
        # Over the common denominator, as long as int32 holds it: rounded, equal differences would not be equal.
        return count * (common // len(scores)) if 0 < common < 2**31 else count / len(scores)

    threshold = candidates[jnp.argmax(share_below(test) - share_below(retain))]
    largest = [jnp.max(scores, initial=-jnp.inf) for scores in (retain, test, forget_scores)]
    return unless_nan(jnp.mean(forget_scores < threshold), *largest)


class UnlearningMetrics(NamedTuple):
    """Result of :func:`unlearning_metrics`, all in [0, 1].

    Attributes:
        unlearning_accuracy: UA, error rate on the forgotten examples.
        remaining_accuracy: RA, accuracy on the training examples that stay.
        testing_accuracy: TA, accuracy on examples never trained on.
        membership_inference: MIA, see :func:`membership_inference_efficacy`.
    """

    unlearning_accuracy: Float[Array, ""]
    remaining_accuracy: Float[Array, ""]
    testing_accuracy: Float[Array, ""]
    membership_inference: Float[Array, ""]


@checked
def unlearning_metrics(
    forget: tuple[Float[Array, "forget classes"], Int[Array, "forget"]],
    retain: tuple[Float[Array, "retain classes"], Int[Array, "retain"]],
    test: tuple[Float[Array, "test classes"], Int[Array, "test"]],
) -> UnlearningMetrics:
    """The four figures by which SalUn compares an unlearned model with a retrained one.

    Args:
        forget: logits and true classes of the forgotten examples.
        retain: those of the training examples that stay.
        test: those of examples never trained on.

    Returns:
        The figures; those of the retrained model are the goal, not 0 or 1.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508.
    """

    def accuracy(logits, labels):
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    return UnlearningMetrics(
        unlearning_accuracy=1 - accuracy(*forget),
        remaining_accuracy=accuracy(*retain),
        testing_accuracy=accuracy(*test),
        membership_inference=membership_inference_efficacy(margin(*retain), margin(*test), margin(*forget)),
    )


@checked
def unlearning_gap(method: PyTree, retrain: PyTree) -> Float[Array, ""]:
    r"""How far a method is from retraining: the mean of the absolute differences of their figures.

    .. math:: \tfrac1n \sum_{i=1}^n |a_i - b_i|

    Args:
        method: figures ``a`` of the unlearned model: :class:`UnlearningMetrics`, or any tree of numbers.
        retrain: the same figures ``b`` of the retrained model.

    Returns:
        The gap, in the unit of the figures.

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, ICLR 2024, arXiv 2310.12508.
    """
    differences = jax.tree.map(lambda a, b: jnp.abs(at_least_float32(jnp.asarray(a)) - jnp.asarray(b)), method, retrain)
    return jnp.mean(jnp.stack(jax.tree.leaves(differences)))


@checked
def klom(
    unlearned: Float[Array, "unlearned examples"],
    oracle: Float[Array, "oracle examples"],
    *,
    bins: int = 20,
    eps: ScalarLike = 1e-5,
    clip: ScalarLike = 100.0,
) -> Float[Array, "examples"]:
    r"""KLoM: divergence of the margins of unlearned models from those of retrained models, for each example.

    .. math:: \operatorname{KL}(p \,\|\, q) = \sum_b p_b \log \frac{p_b}{q_b}

    with the histograms :math:`p` of the unlearned and :math:`q` of the retrained models' margins over equal bins from
    the smallest to the largest margin of both, :math:`q_b` at least ``eps`` where :math:`p_b > 0` and then
    normalized.

    Args:
        unlearned: margins of ``unlearned`` models, each unlearned from a training run of its own.
        oracle: margins of ``oracle`` models, retrained without the forgotten data, with seeds of their own.
        bins: at least 1 (paper: 20).
        eps: > 0 (paper: 1e-5); histograms without overlap give ``log(1 / eps)``, about.
        clip: > 0, margins are clipped to ``[-clip, clip]`` (paper: 100).

    Returns:
        The divergence of each example, 0 for equal histograms; NaN where a margin is.

    Raises:
        ValueError: ``bins``, ``eps`` or ``clip`` is outside its range.

    References:
        Georgiev et al., *Attribute-to-Delete: Machine Unlearning via Datamodel Matching*, arXiv 2410.23232. The
        authors' code drops the largest margin, which is on the edge of the last bin; here it belongs to it.
    """
    check_range("bins", bins, "[1, inf)")
    check_range("eps", eps, "(0, inf)")
    check_range("clip", clip, "(0, inf)")
    p_margins = jnp.clip(at_least_float32(unlearned), -clip, clip)
    q_margins = jnp.clip(at_least_float32(oracle), -clip, clip)
    low = jnp.minimum(jnp.min(p_margins, axis=0), jnp.min(q_margins, axis=0))
    high = jnp.maximum(jnp.max(p_margins, axis=0), jnp.max(q_margins, axis=0))
    width = jnp.where(high > low, high - low, 1.0)

    def histogram(margins):
        index = jnp.clip(jnp.floor((margins - low) / width * bins), 0, bins - 1)
        return jnp.mean(index[..., None] == jnp.arange(bins), axis=0)

    p, q = histogram(p_margins), histogram(q_margins)
    q = jnp.where(p > 0, jnp.maximum(q, eps), q)
    q = q / jnp.sum(q, axis=-1, keepdims=True)
    terms = jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p / jnp.where(p > 0, q, 1.0), 1.0)), 0.0)
    # NaN is in no bin: without margins there would be no divergence.
    return unless_nan(jnp.sum(terms, axis=-1), low)
