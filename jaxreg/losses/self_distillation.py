"""Self-distillation: yesterday's predictions soften today's targets.

In progressive self-knowledge distillation (PS-KD) a network is its own teacher. The target of an example is its label
mixed with what the network predicted for it in the epoch before, and the prediction's share grows as the network gets
better. Targets so become as soft as the example is hard, without a second network::

    state = pskd_init(num_examples, num_classes)
    for epoch in range(epochs):
        alpha = pskd_alpha(epoch, total=epochs)
        for index in batches_of_a_permutation:
            losses, state = pskd(state, logits, labels, index, alpha=alpha)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


class PskdState(NamedTuple):
    """State of :func:`pskd`.

    Attributes:
        past: class probabilities last predicted for each training example, zero before its first visit.
    """

    past: Float[Array, "examples classes"]


@checked
def pskd_init(num_examples: int, num_classes: int) -> PskdState:
    """State of :func:`pskd` before the first epoch.

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
    return PskdState(jnp.zeros([num_examples, num_classes], jnp.float32))


@checked
def pskd(
    state: PskdState,
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    index: Int[Array, "batch"],
    *,
    alpha: ScalarLike,
) -> tuple[Float[Array, "batch"], PskdState]:
    r"""PS-KD: cross-entropy with labels softened by the network's own last prediction.

    .. math::
        q &= (1 - \alpha)\, e_y + \alpha\, P_{t-1}(x_i) \\
        \ell_i &= -\sum_k q_k \log \operatorname{softmax}(z)_k

    Then :math:`P_t(x_i) = \operatorname{softmax}(z)` takes the place of :math:`P_{t-1}(x_i)`. At the first visit of an
    example its label stands in for the prediction. The gradient with respect to ``z`` is
    :math:`\operatorname{softmax}(z) - q`.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import pskd, pskd_init
    >>> state = pskd_init(num_examples=100, num_classes=3)
    >>> logits, labels, index = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([1]), jnp.array([42])
    >>> losses, state = pskd(state, logits, labels, index, alpha=0.4)
    >>> round(float(losses[0]), 4), [round(float(p), 4) for p in state.past[42]]
    (1.4076, [0.6652, 0.2447, 0.09])

    Args:
        state: from :func:`pskd_init`, or the last call.
        logits: unnormalized class scores ``z`` of the batch, in training mode.
        labels: class indices ``y``.
        index: position ``i`` of each example in the training set. Each should be visited once an epoch: then the past
            is that of the epoch before.
        alpha: in [0, 1), share of the past; 0 is cross-entropy. Paper: :func:`jaxreg.schedules.pskd_alpha` of the
            epoch, up to 0.8.

    Returns:
        The loss of each example, at least float32, and the new state. No gradient flows through the past.

    Raises:
        ValueError: ``alpha`` is outside [0, 1).

    References:
        Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, ICCV 2021, arXiv 2006.12000.
    """
    check_range("alpha", alpha, "[0, 1)")
    logits = at_least_float32(logits)
    past = jax.lax.stop_gradient(state.past[index].astype(logits.dtype))
    # Whatever the past does not have of the target is the label's: all of it before the first visit.
    of_label = 1 - alpha * jnp.sum(past, axis=-1)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    losses = log_sum - of_label * at_labels(logits, labels) - alpha * jnp.sum(past * logits, axis=-1)
    # Shares are not negative: this is log_sum. But now nothing can be put into the table before the past has been taken
    # out, and XLA need not copy the whole table to have both.
    log_sum = jnp.where(of_label < -jnp.inf, 0.0, log_sum)
    now = jnp.exp(jax.lax.stop_gradient(logits - log_sum[:, None])).astype(state.past.dtype)
    return losses, PskdState(state.past.at[index].set(now))


@checked
def pskd_gradient_scale(
    probability: Float[Array, "*batch"], past_probability: Float[Array, "*batch"], *, alpha: ScalarLike
) -> Float[Array, "*batch"]:
    r"""How much of cross-entropy's pull towards the label PS-KD leaves: large for examples that are still hard.

    .. math:: 1 - \alpha \, \frac{1 - P_{t-1}(x)_y}{1 - P_t(x)_y}

    The gradient of the loss with respect to the label's logit is that of cross-entropy times this. Of two examples
    that are predicted alike now, the one whose label was less probable before is scaled down more. Below zero, the
    label is more probable than its target.

    Args:
        probability: ``P_t(x)_y``, of the label, now. What misses to 1 counts as at least 1e-6.
        past_probability: ``P_{t-1}(x)_y``, the same in the epoch before.
        alpha: in [0, 1), share of the past.

    Returns:
        The factor of each example, at most 1.

    Raises:
        ValueError: ``alpha`` is outside [0, 1).

    References:
        Kim et al., *Self-Knowledge Distillation with Progressive Refinement of Targets*, ICCV 2021, arXiv 2006.12000,
        section 3.2.
    """
    check_range("alpha", alpha, "[0, 1)")
    missing = jnp.maximum(1 - at_least_float32(probability), 1e-6)
    return 1 - alpha * (1 - at_least_float32(past_probability)) / missing
