"""Label-distributionally robust losses.

Cross-entropy trusts the given label fully. These losses let an adversary move the weight to other labels, at a price
measured by the KL divergence from uniform weights, and so interpolate between the max-margin loss (price 0) and the
mean margin (price infinite), which noisy labels hurt less. ALDR-KL learns the price of each training example on the
way: the more certain the model is of an example, the lower it gets.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range

Normalizer = Literal["softplus_mean", "l1_mean"]


@checked
def ldr_kl(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    temperature: ScalarLike = 1.0,
    margin: ScalarLike = 0.1,
    normalize: Normalizer | None = "softplus_mean",
) -> Float[Array, "*batch"]:
    r"""LDR-KL: temperature-scaled, margin-shifted log-mean-exp of the score gaps.

    .. math::
        \max_{p \in \Delta_K} \sum_k p_k d_k - \lambda \operatorname{KL}(p \,\|\, \tfrac1K)
        = \lambda \log \tfrac1K \sum_k \exp(d_k / \lambda),
        \qquad d_k = f_k - f_y + c\,[k \ne y]

    At ``temperature=1``, ``margin=0``, ``normalize=None`` it is cross-entropy minus :math:`\log K`.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import ldr_kl
    >>> loss = ldr_kl(jnp.array([2.0, 1.0, 0.0]), jnp.array(1), temperature=0.5, margin=2.0, normalize=None)
    >>> round(float(loss), 4)
    2.461

    Args:
        logits: unnormalized class scores ``f``.
        labels: class indices ``y`` in ``[0, classes)``.
        temperature: ``lambda > 0`` (paper: 0.1, 1 or 10); to 0 it becomes ``max(0, max_k d_k)``, to infinity the
            mean of ``d``.
        margin: ``c >= 0``, added to every wrong class (paper: 0.1).
        normalize: what makes the scale of the scores comparable with the margin. ``"softplus_mean"``, the authors'
            choice here, replaces ``f`` by ``softplus(f)`` divided by its mean over the classes; ``"l1_mean"``, their
            choice for :func:`aldr_kl`, divides ``f`` by the mean of ``|f|`` (scores that are all 0 stay as they are);
            None takes the scores as they are.

    Returns:
        The loss of each example, at least float32; it may be negative, down to ``-temperature * log(classes)``.

    Raises:
        ValueError: ``temperature`` is not positive and finite, or ``margin`` negative.

    References:
        Zhu et al., *Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and
        Adaptivity*, ICML 2023, arXiv 2112.14869.
    """
    check_range("temperature", temperature, "(0, inf)")
    check_range("margin", margin, "[0, inf)")
    return _ldr(_normalized(logits, normalize), labels, temperature, margin)


class AldrState(NamedTuple):
    """State of :func:`aldr_kl`.

    Attributes:
        lam: the temperature of each training example, positive.
    """

    lam: Float[Array, "examples"]


@checked
def aldr_kl_init(num_examples: int, temperature: ScalarLike = 1.0) -> AldrState:
    """State of :func:`aldr_kl` before the first step: every example at the same temperature.

    Args:
        num_examples: size of the whole training set, at least 1.
        temperature: ``lambda_0 > 0``, the one then given to :func:`aldr_kl`.

    Returns:
        The state, float32.

    Raises:
        ValueError: an argument is outside its range.
    """
    check_range("num_examples", num_examples, "[1, inf)")
    check_range("temperature", temperature, "(0, inf)")
    return AldrState(jnp.full([num_examples], temperature, jnp.float32))


@checked
def aldr_kl(
    state: AldrState,
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    index: Int[Array, "batch"],
    *,
    temperature: ScalarLike = 1.0,
    alpha: ScalarLike = 2.0,
    margin: ScalarLike = 0.1,
    normalize: Normalizer | None = "l1_mean",
) -> tuple[Float[Array, "batch"], AldrState]:
    r"""ALDR-KL: LDR-KL whose temperature adapts to each example.

    The adversary also picks :math:`\lambda`, held near :math:`\lambda_0` by a quadratic. One step of it, at the
    temperature stored for the example, precedes the loss:

    .. math::
        p &= \operatorname{softmax}(f / \lambda_i), \qquad
        \lambda_i \leftarrow \lambda_0 - \frac{\lambda_0}{\alpha \log K} \operatorname{KL}(p \,\|\, \tfrac1K) \\
        \ell_i &= \lambda_i \log \tfrac1K \sum_k \exp(d_k / \lambda_i)
            - \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2

    with :math:`d` as in :func:`ldr_kl`. No gradient flows through :math:`\lambda_i`. As in the authors' code the
    margin stays out of :math:`p`; their ``1e-5`` added to ``p``, which only guards a logarithm, is not needed here.

    Args:
        state: from :func:`aldr_kl_init`, or the last call.
        logits: unnormalized class scores ``f`` of the batch, at least two classes.
        labels: class indices ``y`` in ``[0, classes)``.
        index: position ``i`` of each example in the training set. If one repeats, one of its updates is kept.
        temperature: ``lambda_0 > 0`` (paper: 0.1, 1 or 10).
        alpha: above 1 (authors' code: 2), which keeps ``lambda_i >= lambda_0 (1 - 1 / alpha)``; the larger, the less
            the temperatures adapt.
        margin: ``c >= 0``, added to every wrong class (paper: 0.1).
        normalize: see :func:`ldr_kl`.

    Returns:
        The loss of each example, at least float32, and the new state.

    Raises:
        ValueError: a hyperparameter is outside its range, or there is only one class.

    References:
        Zhu et al., *Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and
        Adaptivity*, ICML 2023, arXiv 2112.14869.
    """
    check_range("temperature", temperature, "(0, inf)")
    check_range("alpha", alpha, "(1, inf)")
    check_range("margin", margin, "[0, inf)")
    check_range("the number of classes in logits", logits.shape[-1], "[2, inf)")
    scores = _normalized(logits, normalize)
    log_classes = math.log(scores.shape[-1])
    log_p = jax.nn.log_softmax(scores / state.lam[index, None])
    divergence = jnp.sum(jnp.exp(log_p) * (log_p + log_classes), axis=-1)
    lam = jax.lax.stop_gradient(temperature - temperature * divergence / (alpha * log_classes))
    penalty = alpha * log_classes / (2 * temperature) * jnp.square(lam - temperature)
    losses = _ldr(scores, labels, lam, margin) - penalty
    return losses, AldrState(state.lam.at[index].set(lam.astype(state.lam.dtype)))


@checked
def ldr_kl_bayes_probabilities(
    probabilities: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 1.0,
    margin: ScalarLike = 0.1,
) -> Float[Array, "*batch classes"]:
    r"""What LDR-KL makes of the true class probabilities when it is minimised exactly.

    .. math:: s = \operatorname{softmax}(f^* / \lambda), \qquad f^* = \arg\min_f \sum_y q_y \, \ell(f, y)

    for the unnormalized loss. With :math:`a = 1 - e^{-c/\lambda}` the minimiser is where
    :math:`s_y (1 - a s_y) \propto q_y`: without a margin :math:`s = q`, and the larger the margin, the more sharply
    it favours the likeliest class. ``s`` orders the classes as ``q`` does, which is what makes the loss top-k
    consistent for every k.

    Args:
        probabilities: ``q``, non-negative with sum 1.
        temperature: ``lambda > 0``.
        margin: ``c >= 0``.

    Returns:
        ``s``, at least float32. No gradient flows through it.

    Raises:
        ValueError: ``temperature`` is not positive and finite, or ``margin`` negative.

    References:
        Zhu et al., *Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and
        Adaptivity*, ICML 2023, arXiv 2112.14869.
    """
    check_range("temperature", temperature, "(0, inf)")
    check_range("margin", margin, "[0, inf)")
    q = at_least_float32(probabilities)
    classes = q.shape[-1]
    is_top = jnp.arange(classes) == jnp.argmax(q, axis=-1, keepdims=True)
    ratio = jnp.where(is_top, 0.0, q / jnp.max(q, axis=-1, keepdims=True))
    a, one_minus_a = -jnp.expm1(-margin / temperature), jnp.exp(-margin / temperature)

    # s (1 - a s) rises up to s = 1 / (2a) >= 1/2, so that at most one class, the likeliest, is beyond. Given its s,
    # all others follow from the quadratic's smaller root. The risk is convex, hence one s alone makes the sum 1.
    # Bisecting its logit keeps 1 - s exact; ">=" settles on even odds where two classes tie and rounding hides a < 1.
    def others(logit):
        s, rest = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
        height = s * (rest + one_minus_a * s)
        # Equals 1 - 4 a ratio height, without cancellation where classes tie.
        discriminant = jnp.square(1 - 2 * a * s) + 4 * a * height * (1 - ratio)
        return jnp.where(is_top, 0.0, 2 * ratio * height / (1 + jnp.sqrt(discriminant)))

    def bisect(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_much = jnp.sum(others(middle), axis=-1, keepdims=True) >= jax.nn.sigmoid(-middle)
        return jnp.where(too_much, low, middle), jnp.where(too_much, middle, high)

    low = jnp.full_like(q[..., :1], -math.log(classes))  # the likeliest class has s >= 1 / classes
    low, high = jax.lax.fori_loop(0, 60, bisect, (low, jnp.full_like(low, 80.0)))
    logit = (low + high) / 2
    return jax.lax.stop_gradient(jnp.where(is_top, jax.nn.sigmoid(logit), others(logit)))


def _ldr(scores, labels, temperature, margin):
    """LDR-KL of scores at one temperature, or at one for each example."""
    wrong = jnp.arange(scores.shape[-1]) != labels[..., None]
    gaps = scores - at_labels(scores, labels)[..., None] + margin * wrong
    scaled = gaps / jnp.asarray(temperature)[..., None]
    return temperature * (jax.nn.logsumexp(scaled, axis=-1) - math.log(scores.shape[-1]))


def _normalized(logits, normalize):
    f = at_least_float32(logits)
    classes = f.shape[-1]
    if normalize == "softplus_mean":
        # softplus(f) / mean(softplus(f)), which would be 0/0 for scores that are all very negative.
        return classes * jax.nn.softmax(_log_softplus(f), axis=-1)
    if normalize == "l1_mean":
        mean = jnp.mean(jnp.abs(f), axis=-1, keepdims=True)
        # An output layer that starts at zero must get a gradient, and a finite one.
        return f / jnp.where(mean > 1e-12, mean, 1.0)
    return f


def _log_softplus(x):
    """Logarithm of softplus, where softplus itself underflows too."""
    deep = x < -16
    return jnp.where(deep, x - jnp.exp(jnp.minimum(x, -16)) / 2, jnp.log(jax.nn.softplus(jnp.where(deep, -16.0, x))))
