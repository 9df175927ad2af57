"""ADELE: correcting the labels of each class when the network begins to memorize their errors.

The overlap of predictions with the given labels rises fast while a network learns what is right about the labels of a
class and slowly while it memorizes what is wrong, from a different epoch on for every class. ADELE fits a curve to this
overlap, and when its slope has fallen far enough it replaces labels by confident predictions. A consistency of the
predictions for the image at several scales keeps them from following the errors until then.

Between epochs::

    due |= jax.vmap(lambda history: correction_due(history, epoch))(overlaps)  # one history for each class
    labels = correct_labels(labels, probabilities, due)

Everything has fixed shapes, so that it can also run within the compiled loop over epochs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


class LearningCurve(NamedTuple):
    r"""Result of :func:`fit_learning_curve`: the curve :math:`g(t) = a (1 - \exp(-t^b / c))`.

    Attributes:
        a: the plateau, in [0, 1].
        b: the exponent, in [0, 1].
        c: the time scale, positive.
    """

    a: Float[Array, ""]
    b: Float[Array, ""]
    c: Float[Array, ""]


@checked
def fit_learning_curve(
    steps: Float[Array, "steps"],
    overlaps: Float[Array, "steps"],
    *,
    where: Bool[Array, "steps"] | None = None,
    iterations: int = 100,
) -> LearningCurve:
    r"""Fits the rise of the training overlap of a class, the last epochs counting most.

    .. math::
        \min_{a, b \in [0, 1],\, c > 0} \sum_{k=0}^{n-1} \Bigl(\frac{g(t_k) - m_k}{\sigma_k}\Bigr)^2, \qquad
        g(t) = a (1 - e^{-t^b / c}), \qquad \sigma_k = 10^{-k / (n - 1)}

    By damped Gauss-Newton steps from (1, 1, 1) that stay within the bounds.

    Args:
        steps: ``t``, not negative, in ascending order.
        overlaps: ``m``, the intersection over union at these times.
        where: which of them count; by default all.
        iterations: steps that are tried, at least 1.

    Returns:
        The curve.

    Raises:
        ValueError: ``iterations`` is below 1.

    References:
        Liu et al., *Adaptive Early-Learning Correction for Segmentation from Noisy Annotations*, CVPR 2022,
        arXiv 2110.03740.
    """
    check_range("iterations", iterations, "[1, inf)")
    counted = jnp.ones(len(steps), bool) if where is None else jnp.asarray(where)
    rank = jnp.cumsum(counted) - 1
    weight = jnp.where(counted, 10.0 ** (rank / jnp.maximum(rank[-1], 1)), 0.0)
    # No time is exactly zero: the slope in b has its logarithm.
    log_t = jnp.log(jnp.maximum(at_least_float32(steps), 1e-6))
    m = jnp.where(counted, at_least_float32(overlaps), 0.0)
    low, high = jnp.array([0.0, 0.0, -20.0]), jnp.array([1.0, 1.0, 20.0])  # of a, b and ln(c)

    def residuals(x):
        return weight * (_rise(x[0], x[1], jnp.exp(x[2]), log_t) - m)

    def try_step(_, state):
        x, damping = state
        r, slopes = residuals(x), jax.jacfwd(residuals)(x)
        gradient = slopes.T @ r
        # What would leave its bound stays on it.
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        curvature = jnp.where(free[:, None] & free, slopes.T @ slopes, 0.0)
        scale = jnp.maximum(jnp.diagonal(curvature), 1e-10)
        curvature += jnp.diag(jnp.where(free, damping * scale, 1.0))
        new = jnp.clip(x - _solve(curvature, jnp.where(free, gradient, 0.0)), low, high)
        better = jnp.sum(jnp.square(residuals(new))) <= jnp.sum(jnp.square(r))
        return jnp.where(better, new, x), jnp.clip(jnp.where(better, damping / 3, damping * 4), 1e-9, 1e9)

    start = jnp.array([1.0, 1.0, 0.0]), jnp.asarray(1e-2)
    (a, b, log_c), _ = jax.lax.fori_loop(0, iterations, try_step, start)
    return LearningCurve(a, b, jnp.exp(log_c))


@checked
def learning_slowdown(curve: LearningCurve, steps: Float[Array, "*steps"]) -> Float[Array, "*steps"]:
    r"""How much slower a class is learned than at the time 1.

    .. math:: \frac{|g'(1) - g'(t)|}{|g'(1)|}, \qquad g'(t) = \tfrac{ab}{c} t^{b - 1} e^{-t^b / c}

    Args:
        curve: of :func:`fit_learning_curve`.
        steps: times ``t``, not negative.

    Returns:
        The relative change of the slope, which rises from 0 to 1 after the time 1.

    References:
        Liu et al., *Adaptive Early-Learning Correction for Segmentation from Noisy Annotations*, CVPR 2022,
        arXiv 2110.03740.
    """
    t = jnp.maximum(at_least_float32(steps), 1e-6)
    # The plateau a and all of g'(1) cancel.
    log_ratio = (curve.b - 1) * jnp.log(t) - (t**curve.b - 1) / curve.c
    return jnp.abs(-jnp.expm1(log_ratio))


@checked
def correction_due(
    overlaps: Float[Array, "epochs"], epoch: ScalarLike, *, ratio: ScalarLike = 0.9, least_rise: ScalarLike = 0.1
) -> Bool[Array, ""]:
    r"""Whether learning a class has slowed down so far that its labels are to be corrected.

    Epochs before the overlap first rises by ``least_rise`` are dropped. A curve is fitted to the rest, spread over as
    many epochs as they are. The correction starts after as many epochs, added to those that are dropped, as
    :func:`learning_slowdown` stays at most ``ratio``, of the epochs 1, 2, ....

    Args:
        overlaps: intersection over union of the class with the labels, one entry for each epoch of the whole training;
            entries from ``epoch`` on are not looked at.
        epoch: epochs that are done. With fewer than three that are not dropped nothing is due.
        ratio: in (0, 1); paper: 0.9.
        least_rise: by how much the overlap rises in the first epoch that counts (authors' code: 0.1).

    Returns:
        Whether labels are to be corrected now. Once they are, go on correcting: a later fit may say otherwise.

    Raises:
        ValueError: ``ratio`` is outside (0, 1) or ``least_rise`` negative.

    References:
        Liu et al., *Adaptive Early-Learning Correction for Segmentation from Noisy Annotations*, CVPR 2022,
        arXiv 2110.03740.
    """
    check_range("ratio", ratio, "(0, 1)")
    check_range("least_rise", least_rise, "[0, inf)")
    overlaps, epochs = jnp.asarray(overlaps), jnp.arange(len(overlaps))
    rises = (jnp.diff(overlaps, append=overlaps[-1:]) >= least_rise) & (epochs + 1 < epoch)
    # If it never rises so far, all but the last epoch are dropped.
    dropped = jnp.where(rises.any(), jnp.argmax(rises), jnp.maximum(epoch - 1, 0))
    kept = epoch - dropped
    steps = (epochs - dropped) * kept / jnp.maximum(kept - 1, 1)
    curve = fit_learning_curve(jnp.maximum(steps, 0.0), overlaps, where=(epochs >= dropped) & (epochs < epoch))
    slow = (learning_slowdown(curve, jnp.arange(1.0, len(overlaps))) > ratio).sum()
    start = dropped + len(overlaps) - slow
    return (epoch >= start) & (kept >= 3)


@checked
def correct_labels(
    labels: Int[Array, "*batch height width"],
    probabilities: Float[Array, "*batch classes height width"],
    due: Bool[Array, "classes"],
    *,
    threshold: ScalarLike = 0.8,
) -> Int[Array, "*batch height width"]:
    r"""Replaces labels of the classes that are due by confident predictions.

    A pixel gets the most probable class if its probability is above the threshold, the old and the new label are each
    the background or due, and the new label is the background or occurs somewhere in the image.

    Args:
        labels: classes, 0 for the background; what is no class, such as 255, stays.
        probabilities: of the classes at each pixel.
        due: which classes are to be corrected; that of the background is not looked at.
        threshold: in [0, 1); paper: 0.8.

    Returns:
        The labels, corrected.

    Raises:
        ValueError: ``threshold`` is outside [0, 1).

    References:
        Liu et al., *Adaptive Early-Learning Correction for Segmentation from Noisy Annotations*, CVPR 2022,
        arXiv 2110.03740.
    """
    check_range("threshold", threshold, "[0, 1)")
    labels, probabilities = jnp.asarray(labels), jnp.asarray(probabilities)
    classes = jnp.arange(probabilities.shape[-3])[:, None, None]
    may_change = (jnp.asarray(due) | (classes[:, 0, 0] == 0))[:, None, None]
    is_old = labels[..., None, :, :] == classes
    occurs = is_old.any(axis=(-2, -1), keepdims=True) | (classes == 0)
    new = jnp.argmax(probabilities, axis=-3)
    is_new = new[..., None, :, :] == classes
    allowed = (is_old & may_change).any(axis=-3) & (is_new & may_change & occurs).any(axis=-3)
    return jnp.where(allowed & (probabilities.max(axis=-3) > threshold), new, labels).astype(labels.dtype)


@checked
def multiscale_jsd(
    scale_logits: Float[Array, "scales *batch classes height width"],
    *,
    weights: Float[Array, "scales"] | None = None,
    gate: ScalarLike = 0.8,
) -> Float[Array, "*batch height width"]:
    r"""How far predictions for an image at several scales are from their mean.

    .. math:: \sum_s \operatorname{KL}(p_s \| q), \qquad q = \operatorname{clip}\Bigl(\sum_s w_s p_s,\, 10^{-3},\,
        1 - 10^{-3}\Bigr), \qquad w = \operatorname{softmax}(\omega)

    Args:
        scale_logits: scores for the image at each scale, resized to one size (paper: scales 0.7, 1 and 1.5).
        weights: ``omega``, to be learned with the network; by default all alike.
        gate: in [0, 1]: images none of whose pixels has a ``q`` of so much have no loss (authors' code: 0.8).

    Returns:
        The loss of each pixel, at least float32, to be added to cross-entropy.

    Raises:
        ValueError: ``gate`` is outside [0, 1].

    References:
        Liu et al., *Adaptive Early-Learning Correction for Segmentation from Noisy Annotations*, CVPR 2022,
        arXiv 2110.03740.
    """
    check_range("gate", gate, "[0, 1]")
    log_p = jax.nn.log_softmax(at_least_float32(scale_logits), axis=-3)
    scales = len(log_p)
    share = jnp.full(scales, 1 / scales) if weights is None else jax.nn.softmax(at_least_float32(weights))
    q = jnp.clip(jnp.tensordot(share, jnp.exp(log_p), axes=1), 1e-3, 1 - 1e-3)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - jnp.log(q)), axis=(0, -3))
    sure = q.max(axis=(-3, -2, -1), keepdims=True)[..., 0, :, :] >= gate
    return jnp.where(sure, divergence, 0.0)


def _rise(a, b, c, log_t):
    return -a * jnp.expm1(-jnp.exp(b * log_t) / c)


def _solve(matrix, vector):
    """Three equations by cross products: a solver of XLA's waits for its threads when many fits are vmapped."""
    x, y, z = matrix
    inverse_transposed = jnp.stack([jnp.cross(y, z), jnp.cross(z, x), jnp.cross(x, y)])
    return vector @ inverse_transposed / (x @ inverse_transposed[0])
