"""Objectives on mixed examples.

Mixup trains a network on averages of two inputs, with the same average of their targets. Together with smoothed labels
it keeps a network from being too sure of itself, which BANG needs: in an ensemble, of weights or of outputs, the surer
model outvotes the other also where it is wrong.

What is mixed, and how, is :mod:`jaxreg.data.mixing`; any targets and any loss go with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxreg.data import mix, mixup
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def mixup_loss(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    targets: Float[Array, "batch *target"],
    key: PRNGKeyArray,
    *,
    alpha: ScalarLike = 1.0,
    loss_fn: Callable[[Any, Any], Any] = optax.softmax_cross_entropy,
) -> Float[Array, "batch"]:
    r"""A loss of mixed inputs and targets.

    .. math::
        \ell_i = L\bigl(f_\theta(w x_i + (1 - w) x_{\pi(i)}),\; w t_i + (1 - w) t_{\pi(i)}\bigr), \qquad
        w \sim \operatorname{Beta}(\alpha, \alpha)

    with one weight and one permutation for the batch.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.losses import mixup_loss
    >>> images, labels = jnp.ones([4, 5]), jax.nn.one_hot(jnp.array([0, 1, 2, 0]), 3)
    >>> losses = mixup_loss(lambda w, x: x @ w, jnp.zeros([5, 3]), images, labels, jax.random.key(0))
    >>> [round(float(loss), 4) for loss in losses]
    [1.0986, 1.0986, 1.0986, 1.0986]

    Args:
        apply_fn: ``f``, from parameters and inputs to outputs such as logits.
        params: ``theta``.
        inputs: ``x``, examples first.
        targets: ``t``, one for each example: class probabilities, real numbers.
        key: of the weight and the permutation.
        alpha: positive (paper: 0.1 to 0.4 for ImageNet, 1 for CIFAR-10).
        loss_fn: ``L``, from outputs, at least float32, and targets to the loss of each example.

    Returns:
        The loss of each mixed example.

    Raises:
        ValueError: ``alpha`` is not positive and finite.

    References:
        Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, arXiv 1710.09412.
    """
    mixed = mixup(key, inputs, alpha=alpha)
    outputs = at_least_float32(apply_fn(params, mixed.inputs))
    return loss_fn(outputs, mix(targets, mixed.partner, mixed.weight))


@checked
def bang_finetune_loss(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    inputs: Float[Array, "batch *shape"],
    labels: Int[Array, "batch"],
    key: PRNGKeyArray,
    *,
    smoothing: ScalarLike = 0.1,
    mixup_alpha: ScalarLike | None = 0.2,
) -> Float[Array, "batch"]:
    r"""BANG's objective of fine-tuning: cross-entropy with smoothed labels on mixed inputs.

    .. math::
        \ell_i = -\sum_k \tilde t_{ik} \log \operatorname{softmax}(f_\theta(\tilde x_i))_k, \qquad
        t_{ik} = (1 - \epsilon) [k = y_i] + \epsilon / K

    with :math:`\tilde x, \tilde t` mixed as in :func:`mixup_loss`. What is fine-tuned with it is then averaged with the
    pretrained weights: :func:`jaxreg.weights.wise_ft`. BANG(Mixup) is ``smoothing=0``, BANG(LS) ``mixup_alpha=None``,
    cross-entropy both.

    Args:
        apply_fn: ``f``, from parameters and inputs to logits.
        params: ``theta``.
        inputs: ``x``, examples first.
        labels: class indices ``y``.
        key: of the mixing.
        smoothing: ``epsilon`` in [0, 1) (0.1 is our choice).
        mixup_alpha: ``alpha > 0`` of the mixing's Beta distribution (0.2 is our choice); None mixes nothing.

    Returns:
        The loss of each example, at least float32.

    Raises:
        ValueError: ``smoothing`` or ``mixup_alpha`` is outside its range.

    References:
        Lin et al., *Spurious Feature Diversification Improves Out-of-distribution Generalization*, ICLR 2024,
        arXiv 2309.17230.
    """
    check_range("smoothing", smoothing, "[0, 1)")
    classes = jax.eval_shape(apply_fn, params, inputs).shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
    if mixup_alpha is None:
        return optax.softmax_cross_entropy(at_least_float32(apply_fn(params, inputs)), targets)
    check_range("mixup_alpha", mixup_alpha, "(0, inf)")
    return mixup_loss(apply_fn, params, inputs, targets, key, alpha=mixup_alpha)
