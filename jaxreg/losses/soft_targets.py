"""Losses of labels, where what is known are probabilities of labels.

Mixing, smoothing and teachers give every class a probability. Cross-entropy takes such targets by itself, being linear
in them; any other loss of a label takes them as the loss to be expected of a label that is drawn from them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked


@checked
def soft_cross_entropy(
    logits: Float[Array, "*batch classes"], targets: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with soft targets: mixed or smoothed labels, a teacher's or earlier predictions.

    .. math:: -\sum_k t_k \log \operatorname{softmax}(f)_k

    The same as ``optax.softmax_cross_entropy``, in one pass over the logits, and half of the time.

    Args:
        logits: unnormalized class scores ``f``.
        targets: ``t``, probabilities of the classes. They need not sum to one: a row of zeros is an example left out.

    Returns:
        The loss of each example, at least float32, and as exact as that is for numbers of the logits' size. No gradient
        flows through ``targets``.
    """
    f, t = at_least_float32(logits), jax.lax.stop_gradient(at_least_float32(targets))
    # Sums over classes only: the logarithms of all probabilities would be an array of their own.
    return jax.nn.logsumexp(f, axis=-1) * jnp.sum(t, axis=-1) - jnp.sum(t * f, axis=-1)


@checked
def expected_loss(
    loss_fn: Callable[[Any, Any], Any],
    logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    r"""The mean of a loss over labels drawn from the targets.

    .. math:: \sum_k t_k\, L(f, k)

    With it any loss of labels goes where targets are soft: into :func:`mixup_loss`, for one.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.losses import expected_loss, ldr_kl, mixup_loss
    >>> inputs, targets = jnp.ones([4, 5]), jax.nn.one_hot(jnp.array([0, 1, 2, 0]), 3)
    >>> losses = mixup_loss(
    ...     lambda weights, x: x @ weights, jnp.zeros([5, 3]), inputs, targets, jax.random.key(0),
    ...     loss_fn=lambda logits, targets: expected_loss(ldr_kl, logits, targets),
    ... )
    >>> losses.shape
    (4,)

    Args:
        loss_fn: ``L``, from logits ``[*batch, classes]`` and labels ``[*batch]`` to the loss of each example. It is
            called once, mapped over all classes: ``classes`` times its work. Of cross-entropy it would be
            :func:`soft_cross_entropy`.
        logits: ``f``.
        targets: ``t``, probabilities. They need not sum to one: a row of zeros is an example left out.

    Returns:
        The expected loss of each example, at least float32. What has no probability counts nothing, even where its
        loss is infinite.
    """
    labels = jnp.arange(logits.shape[-1])
    of_label = jax.vmap(lambda label: loss_fn(logits, jnp.full(logits.shape[:-1], label)), out_axes=-1)(labels)
    targets = at_least_float32(targets)
    return jnp.sum(jnp.where(targets > 0, targets * jnp.where(targets > 0, of_label, 0.0), 0.0), axis=-1)
