"""Early-learning regularization.

A network first learns what the clean labels agree on and only later memorizes the wrong ones. ELR remembers what the
network used to predict for every training example, as a running average of its probabilities, and rewards agreement
with that memory. On examples with wrong labels this cancels the pull of cross-entropy. ELR+ takes the memory from the
averaged weights of a second network, and trains on mixed inputs.

A step of ELR+ for network A, with the averaged weights of network B (``optax.incremental_update`` keeps them)::

    mixed = mixup(key, inputs, alpha=1.0, keep_larger=True)
    targets, state = elr_plus_targets(state, apply_fn(params_b_averaged, inputs), index, beta=0.7)
    losses = elr_plus(
        apply_fn(params_a, mixed.inputs),
        mix(jax.nn.one_hot(labels, num_classes), mixed.partner, mixed.weight),
        mix(targets, mixed.partner, mixed.weight),
        strength=3.0 * sigmoid_rampup(step, rampup_steps=40_000),
    )
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


class ElrState(NamedTuple):
    """State of :func:`elr` and :func:`elr_plus_targets`.

    Attributes:
        target: running average of the class probabilities of each training example. It starts at zero and is not
            debiased: rows sum to ``1 - beta**n`` after ``n`` visits.
    """

    target: Float[Array, "examples classes"]


@checked
def elr_init(num_examples: int, num_classes: int) -> ElrState:
    """State of :func:`elr` before the first step: all targets zero.

    Args:
        num_examples: size of the whole training set, at least 1.
        num_classes: at least 1.

    Returns:
        The state, float32.

    Raises:
        ValueError: an argument is below 1.
    """
    check_range("num_examples", num_examples, "[1, inf)")
    check_range("num_classes", num_classes, "[1, inf)")
    return ElrState(jnp.zeros([num_examples, num_classes], jnp.float32))


@checked
def elr(
    state: ElrState,
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    index: Int[Array, "batch"],
    *,
    strength: ScalarLike = 3.0,
    beta: ScalarLike = 0.7,
) -> tuple[Float[Array, "batch"], ElrState]:
    r"""ELR: cross-entropy plus a pull towards the model's own earlier predictions.

    .. math::
        t_i &\leftarrow \beta t_i + (1 - \beta)\, p / \textstyle\sum_k p_k \\
        \ell_i &= -\log \operatorname{softmax}(z)_y + \lambda \log(1 - \langle p, t_i \rangle)

    where :math:`p` is :math:`\operatorname{softmax}(z)` clipped to :math:`[10^{-4}, 1 - 10^{-4}]`. The target is
    updated before it is used, and no gradient flows through it. The second term is negative and grows in size with
    agreement: the loss can be below zero.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import elr, elr_init
    >>> state = elr_init(num_examples=100, num_classes=3)
    >>> logits, labels, index = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([1]), jnp.array([42])
    >>> losses, state = elr(state, logits, labels, index)
    >>> losses.shape, round(float(state.target[42].sum()), 4)
    ((1,), 0.3)

    Args:
        state: from :func:`elr_init`, or the last call.
        logits: unnormalized class scores ``z`` of the batch.
        labels: class indices ``y`` in ``[0, classes)``, some of them wrong.
        index: position ``i`` of each example in the training set. If one repeats, one of its updates is kept.
        strength: ``lambda >= 0``; 0 is cross-entropy. Authors' code: 3 for CIFAR-10 with symmetric noise, 1 with
            asymmetric noise, 7 for CIFAR-100.
        beta: in [0, 1), memory of the targets. Authors' code: 0.7, 0.9 and 0.9 respectively.

    Returns:
        The loss of each example, at least float32, and the new state.

    Raises:
        ValueError: ``strength`` is negative or ``beta`` outside [0, 1).

    References:
        Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020,
        arXiv 2007.00151.
    """
    check_range("strength", strength, "[0, inf)")
    check_range("beta", beta, "[0, 1)")
    logits = at_least_float32(logits)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    p = _clipped(logits - log_sum[:, None])
    target, state = _update(state, index, p / jnp.sum(p, axis=-1, keepdims=True), beta)
    cross_entropy = log_sum - at_labels(logits, labels)
    return cross_entropy + strength * _log_disagreement(p, target), state


@checked
def elr_plus_targets(
    state: ElrState,
    logits: Float[Array, "batch classes"],
    index: Int[Array, "batch"],
    *,
    beta: ScalarLike = 0.7,
) -> tuple[Float[Array, "batch classes"], ElrState]:
    r"""The targets of ELR+ for one network, from the averaged weights of the other.

    .. math:: t_i \leftarrow \beta t_i + (1 - \beta) \operatorname{softmax}(z)

    Args:
        state: targets of the network to be trained, from :func:`elr_init` or the last call.
        logits: scores ``z`` that the *other* network, with averaged weights, gives the inputs *before* mixing.
        index: position ``i`` of each example in the training set. If one repeats, one of its updates is kept.
        beta: in [0, 1), memory of the targets; values as for :func:`elr`.

    Returns:
        The updated targets of the batch, to be mixed as the inputs are, and the new state. No gradient flows through
        either.

    Raises:
        ValueError: ``beta`` is outside [0, 1).

    References:
        Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020,
        arXiv 2007.00151.
    """
    check_range("beta", beta, "[0, 1)")
    return _update(state, index, jax.nn.softmax(at_least_float32(logits)), beta)


@checked
def elr_plus(
    logits: Float[Array, "*batch classes"],
    soft_labels: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
    *,
    strength: ScalarLike = 3.0,
    reweight_labels: bool = False,
) -> Float[Array, "*batch"]:
    r"""ELR+ on mixed inputs: cross-entropy with the mixed labels plus a pull towards the mixed targets.

    .. math::
        \ell = -\sum_k y_k \log \operatorname{softmax}(z)_k + \lambda \log(1 - \langle p, q \rangle),
        \qquad q = w\, t_i + (1 - w)\, t_j

    where :math:`p` is clipped as in :func:`elr`. The paper's weight rises with the step: give ``strength`` times
    :func:`sigmoid_rampup`.

    Args:
        logits: scores ``z`` of the mixed inputs.
        soft_labels: ``y``, the one-hot labels mixed by the same weight and partners as the inputs.
        targets: ``q``, the targets of :func:`elr_plus_targets`, mixed likewise: non-negative, with sum at most 1.
        strength: ``lambda >= 0``; values as for :func:`elr`.
        reweight_labels: multiply ``y`` by ``q`` and renormalise, as the authors' code does for 100 classes. Labels
            without any target mass stay as they are.

    Returns:
        The loss of each example, at least float32. No gradient flows through ``targets``.

    Raises:
        ValueError: ``strength`` is negative.

    References:
        Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020,
        arXiv 2007.00151.
    """
    check_range("strength", strength, "[0, inf)")
    log_p = jax.nn.log_softmax(at_least_float32(logits))
    y, q = at_least_float32(soft_labels), jax.lax.stop_gradient(at_least_float32(targets))
    if reweight_labels:
        # Dividing by the largest first keeps products of tiny targets from underflowing to 0/0.
        largest = jnp.max(jnp.where(y > 0, q, 0.0), axis=-1, keepdims=True)
        reweighted = y * (q / jnp.where(largest > 0, largest, 1.0))
        total = jnp.sum(reweighted, axis=-1, keepdims=True)
        y = jnp.where(total > 0, reweighted / jnp.where(total > 0, total, 1.0), y)
    return -jnp.sum(y * log_p, axis=-1) + strength * _log_disagreement(_clipped(log_p), q)


@checked
def sigmoid_rampup(step: ScalarLike, *, rampup_steps: ScalarLike) -> Float[Array, ""]:
    r"""The rise from nearly 0 to 1 by which ELR+ brings in its regularizer.

    .. math:: \exp\bigl(-5 (1 - \min(t, T) / T)^2\bigr)

    Args:
        step: ``t``, steps taken.
        rampup_steps: ``T >= 0``; 0 means 1 from the start. Authors' code: 0 for CIFAR-10, 40,000 for CIFAR-100.

    Returns:
        The factor, from ``exp(-5)`` to 1.

    Raises:
        ValueError: ``rampup_steps`` is negative.

    References:
        Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020,
        arXiv 2007.00151; after Laine & Aila, *Temporal Ensembling for Semi-Supervised Learning*, ICLR 2017.
    """
    check_range("rampup_steps", rampup_steps, "[0, inf)")
    t, total = at_least_float32(jnp.asarray(step)), at_least_float32(jnp.asarray(rampup_steps))
    missing = jnp.where(total > 0, 1.0 - jnp.clip(t / jnp.where(total > 0, total, 1.0), 0.0, 1.0), 0.0)
    return jnp.exp(-5.0 * jnp.square(missing))


def _clipped(log_p):
    return jnp.clip(jnp.exp(log_p), 1e-4, 1.0 - 1e-4)


def _update(state, index, p, beta):
    target = beta * state.target[index] + (1 - beta) * jax.lax.stop_gradient(p)
    target = target.astype(state.target.dtype)
    return target, ElrState(state.target.at[index].set(target))


def _log_disagreement(p, target):
    # <p, t> averages entries of p with weights that sum to at most 1, so the clip keeps it off 1.
    return jnp.log1p(-jnp.sum(p * target, axis=-1))
