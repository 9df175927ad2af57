"""Certified training that needs little warmup.

Bounds of a freshly initialized network explode with depth, and training on them first pushes units to be dead. Four
things keep training by bounds stable while the radius grows quickly: an initialization under which radii neither grow
nor shrink, batch normalization after every affine layer, and two penalties that fade as the radius reaches its goal:
one against radii that grow from the input to a layer, one against more inactive than active units or the reverse.

The bounds for batch normalization are those of its evaluation mode; in training with the statistics of the clean
batch, so that gradients flow through these too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreg.robustness.attacks import Limit
from jaxreg.robustness.ibp import robust_margins
from jaxreg.robustness.interval_bounds import network_bounds
from jaxreg.robustness.interval_rules import Bounds
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def ibp_init(key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    r"""Weights under which the radius of bounds is the same before and after an affine layer and its ReLU.

    .. math:: W \sim \mathcal{N}\Bigl(0, \frac{2 \pi}{n^2}\Bigr)

    for ``n`` inputs of a unit: then :math:`\mathbb{E}\lvert W \rvert = 2 / n`, and a ReLU halves what is centred at 0.
    It is an initializer as flax takes them, for all kernels but the last. A kernel that is fed by a residual sum of two
    branches is to be halved.

    Args:
        key: of the draw.
        shape: of the kernel, outputs last; ``n`` is the product of the others.
        dtype: of the kernel.

    Returns:
        The kernel.

    Raises:
        ValueError: ``shape`` has less than two axes.

    References:
        Shi et al., *Fast Certified Robust Training with Short Warmup*, NeurIPS 2021, arXiv 2103.17268.
    """
    if len(shape) < 2:
        raise ValueError(f"shape must have at least 2 axes, got {tuple(shape)}")
    inputs = 1
    for size in shape[:-1]:
        inputs *= size
    return (jnp.sqrt(2 * jnp.pi) / inputs * jax.random.normal(key, tuple(shape))).astype(dtype)


@checked
def tightness_penalty(
    inputs: Bounds, preactivations: Sequence[Bounds], *, tolerance: ScalarLike = 0.5
) -> Float[Array, ""]:
    r"""Penalty on bounds that grow wider from the input to the layers.

    .. math:: \frac{1}{m} \sum_{i=1}^m \frac{1}{\tau} \max\Bigl(0, \tau - \frac{\bar r_0}{\bar r_i}\Bigr)

    Args:
        inputs: bounds of the inputs, with mean radius :math:`\bar r_0`.
        preactivations: bounds of what goes into each of the ``m`` ReLUs, with mean radius :math:`\bar r_i`.
        tolerance: ``tau`` in (0, 1]: radii may grow by ``1 / tau`` (paper: 0.5).

    Returns:
        The penalty, from 0 to 1.

    Raises:
        ValueError: ``tolerance`` is outside (0, 1], or there are no preactivations.

    References:
        Shi et al., *Fast Certified Robust Training with Short Warmup*, NeurIPS 2021, arXiv 2103.17268.
    """
    _check(tolerance, preactivations)
    first = _mean_radius(inputs)
    ratios = jnp.stack([first / jnp.maximum(_mean_radius(bounds), 1e-12) for bounds in preactivations])
    return jnp.mean(jax.nn.relu(tolerance - ratios)) / tolerance


@checked
def relu_balance_penalty(preactivations: Sequence[Bounds], *, tolerance: ScalarLike = 0.5) -> Float[Array, ""]:
    r"""Penalty on layers whose units are mostly active, or mostly inactive, for all inputs within bounds.

    .. math:: \frac{1}{m} \sum_{i=1}^m \frac{1}{\tau} \bigl(\max(0, \tau - \alpha_i) + \max(0, \tau - \beta_i)\bigr),
        \qquad \alpha = \min\Bigl(q, \frac1q\Bigr), \quad
        q = \frac{\sum c\, [\underline{x} > 0]}{-\sum c\, [\overline{x} < 0]}

    with centres ``c``; :math:`\beta` is the same with :math:`(c - \bar c)^2` in place of both ``c`` and ``-c``. A layer
    with neither active nor inactive units has no penalty.

    Args:
        preactivations: bounds of what goes into each of the ``m`` ReLUs.
        tolerance: ``tau`` in (0, 1] (paper: 0.5).

    Returns:
        The penalty, from 0 to 2.

    Raises:
        ValueError: ``tolerance`` is outside (0, 1], or there are no preactivations.

    References:
        Shi et al., *Fast Certified Robust Training with Short Warmup*, NeurIPS 2021, arXiv 2103.17268.
    """
    _check(tolerance, preactivations)

    def unbalance(bounds):
        centre = (bounds.lower + bounds.upper) / 2
        deviation = jnp.square(centre - jnp.mean(centre))
        active, inactive = bounds.lower > 0, bounds.upper < 0
        ratios = [
            (jnp.sum(jnp.where(active, of_active, 0.0)), jnp.sum(jnp.where(inactive, of_inactive, 0.0)))
            for of_active, of_inactive in ((centre, -centre), (deviation, deviation))
        ]
        known = jnp.stack([jnp.maximum(*pair) > 0 for pair in ratios]).all()
        smaller = [jnp.minimum(*pair) / jnp.where(known, jnp.maximum(*pair), 1.0) for pair in ratios]
        return jnp.where(known, sum(jax.nn.relu(tolerance - ratio) for ratio in smaller), 0.0)

    return jnp.mean(jnp.stack([unbalance(bounds) for bounds in preactivations])) / tolerance


@checked
def fast_ibp_loss(
    features_fn: Callable[[Any, Any], Any],
    params: PyTree,
    kernel: Float[Array, "features classes"],
    bias: Float[Array, "classes"],
    inputs: Float[Array, "batch *shape"],
    labels: Int[Array, "batch"],
    *,
    epsilon: ScalarLike,
    max_epsilon: ScalarLike,
    strength: ScalarLike = 0.5,
    tolerance: ScalarLike = 0.5,
    bounds: tuple[Limit, Limit] | None = None,
    loss_fn: Callable[[Any, Any], Any] = optax.softmax_cross_entropy_with_integer_labels,
) -> Float[Array, "batch"]:
    r"""A loss of the worst margins within a box, plus both penalties while the box still grows.

    .. math:: \ell_i = L(-\underline{m}, y)
        + \lambda \max\Bigl(0, 1 - \frac{\epsilon_t}{\epsilon}\Bigr) (L_{\text{tightness}} + L_{\text{relu}})

    with margins of :func:`robust_margins`. ``strength=0`` is training by interval bounds as such.

    Args:
        features_fn: from parameters and inputs to what the last layer gets; its ReLUs are those of ``jax.nn``.
        params: of ``features_fn``.
        kernel: of the last layer.
        bias: of the last layer.
        inputs: ``x``, examples first.
        labels: class indices ``y``.
        epsilon: ``epsilon_t >= 0``, the radius of this step. It grows from 0 smoothly, in the paper over half of
            training after one epoch at 0.
        max_epsilon: ``epsilon > 0``, the radius in the end (paper: 8/255 for CIFAR-10).
        strength: ``lambda >= 0`` (paper: 0.5).
        tolerance: ``tau`` in (0, 1] of both penalties (paper: 0.5).
        bounds: least and largest value of an input: the box is cut there.
        loss_fn: ``L``, from logits and labels to the loss of each example (paper: cross-entropy). The loss bounds that
            of every attack if ``L`` depends on differences of logits only and falls with none of the label's leads, as
            :func:`jaxreg.losses.comp_sum` and :func:`jaxreg.losses.ldr_kl` without normalization do.

    Returns:
        The loss of each example, at least float32; the penalties are those of the batch. It bounds the loss of every
        attack from above, and is the loss itself for a radius of 0, but for the penalties.

    Raises:
        ValueError: a hyperparameter is outside its range, or ``features_fn`` has no ReLU.
        NotImplementedError: :func:`interval_bounds` has no rule for something in ``features_fn``.

    References:
        Shi et al., *Fast Certified Robust Training with Short Warmup*, NeurIPS 2021, arXiv 2103.17268.
    """
    check_range("epsilon", epsilon, "[0, inf)")
    check_range("max_epsilon", max_epsilon, "(0, inf)")
    check_range("strength", strength, "[0, inf)")
    box = Bounds(inputs - epsilon, inputs + epsilon)
    if bounds is not None:
        box = Bounds(*(jnp.clip(end, *bounds) for end in box))
    lower, upper, preactivations = network_bounds(lambda x: features_fn(params, x), *box)
    margins = robust_margins(kernel, bias, lower, upper, labels)
    penalty = tightness_penalty(box, preactivations, tolerance=tolerance)
    penalty += relu_balance_penalty(preactivations, tolerance=tolerance)
    return loss_fn(-margins, labels) + strength * jnp.maximum(1 - epsilon / max_epsilon, 0.0) * penalty


def _check(tolerance, preactivations):
    check_range("tolerance", tolerance, "(0, 1]")
    if not preactivations:
        raise ValueError("preactivations must not be empty: the network has no activation of jax.nn")


def _mean_radius(bounds):
    return jnp.mean(bounds.upper - bounds.lower) / 2
