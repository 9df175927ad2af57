"""Distillation: a student learns from a teacher's outputs.

All losses here return one number per example, so they can be added to any other loss, with any weight. None of them
sends a gradient to the teacher.

Dual-head distillation keeps a loss on logits, which holds more than one on probabilities can see, from fighting
cross-entropy in the classifier: each gets a head of its own (:class:`jaxreg.layers.DualHead`)::

    heads = head.apply(params, features, train=True)
    losses = cross_entropy(heads.main, labels) + weight * binary_kl_norm(heads.auxiliary, teacher_logits)
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def binary_kl_norm(
    logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 2.0,
) -> Float[Array, "*batch"]:
    r"""BinaryKL-Norm: the student's logits against the teacher's, one binary problem a class.

    .. math::
        T^2 \sum_k \operatorname{KL}\bigl(\operatorname{Bernoulli}(\tfrac12) \,\|\,
        \operatorname{Bernoulli}(\sigma((s_k - t_k) / T))\bigr) = T^2 \sum_k \log \cosh \frac{s_k - t_k}{2 T}

    Where the logits differ little it is :math:`\sum_k (s_k - t_k)^2 / 8`; its slope in each logit is at most ``T / 2``.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import binary_kl_norm
    >>> round(float(binary_kl_norm(jnp.array([2.0, 0.0, -1.0]), jnp.array([1.0, 1.0, 0.0]))), 4)
    0.3712

    Args:
        logits: ``s``, of the student, from its auxiliary head.
        teacher_logits: ``t``.
        temperature: ``T > 0`` (authors' code: 2).

    Returns:
        The loss of each example, at least 0, at least float32. Authors' code: added to cross-entropy with weight 1
        for CIFAR-100 and 0.1 for ImageNet.

    Raises:
        ValueError: ``temperature`` is not positive.

    References:
        Yang et al., *Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head*,
        arXiv 2411.08937.
    """
    check_range("temperature", temperature, "(0, inf)")
    teacher = jax.lax.stop_gradient(at_least_float32(teacher_logits))
    half = (at_least_float32(logits) - teacher) / (2 * temperature)
    return jnp.square(temperature) * jnp.sum(_log_cosh(half), axis=-1)


@checked
def kd_kl(
    logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: ScalarLike = 4.0,
) -> Float[Array, "*batch"]:
    r"""Knowledge distillation: the student's softened probabilities against the teacher's.

    .. math::
        T^2 \operatorname{KL}\bigl(\operatorname{softmax}(t / T) \,\|\, \operatorname{softmax}(s / T)\bigr)

    Args:
        logits: ``s``, of the student.
        teacher_logits: ``t``.
        temperature: ``T > 0`` (literature: 4). The factor keeps the gradient's size about the same for every ``T``.

    Returns:
        The loss of each example, at least 0 but for rounding, at least float32.

    Raises:
        ValueError: ``temperature`` is not positive.

    References:
        Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531.
    """
    check_range("temperature", temperature, "(0, inf)")
    teacher = jax.lax.stop_gradient(at_least_float32(teacher_logits)) / temperature
    student = at_least_float32(logits) / temperature
    # Logarithms of probabilities would be arrays of their own; sums over classes are not.
    log_sum = jax.nn.logsumexp(teacher, axis=-1)
    gap = jnp.sum(jnp.exp(teacher - log_sum[..., None]) * (teacher - student), axis=-1)
    return jnp.square(temperature) * (gap - log_sum + jax.nn.logsumexp(student, axis=-1))


@checked
def adapt_soft_labels(
    teacher_probs: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    *,
    low: ScalarLike = 0.15,
    high: ScalarLike = 0.3,
    smoothing: ScalarLike = 0.1,
    reliability: Literal["label", "confidence"] = "label",
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch"]]:
    r"""FerKD's targets: a teacher is believed about a crop only as far as it sees there what the image shows.

    With the teacher's probabilities ``q`` of a crop, the label ``y`` of its image and the reliability :math:`r = q_y`:

    .. math::
        (t, w) = \begin{cases}
        (\tilde e_y, 0) & r < r_\text{low} \quad \text{(background: left out)} \\
        (\tilde e_y, 1) & r_\text{low} \le r < r_\text{high} \quad \text{(hard: the softened label)} \\
        (q, 1) & r \ge r_\text{high} \quad \text{(easy: the teacher)}
        \end{cases}

    where :math:`\tilde e_y` is :math:`1 - \epsilon` for the label and :math:`\epsilon / (K - 1)` for the other classes.
    The loss of a batch is that of the crops that are kept::

        targets, weight = adapt_soft_labels(teacher_probs, labels)
        losses = weight * soft_cross_entropy(logits, targets)
        loss = losses.sum() / jnp.maximum(weight.sum(), 1.0)

    Args:
        teacher_probs: ``q``, stored for the crop.
        labels: ``y``, of the images.
        low: at least 0, reliability below which a crop is left out; 0 keeps every crop.
        high: at least ``low``, reliability from which on the teacher is believed. 0 for both is distillation as
            usual; with ``high`` above 1 and ``low`` 0 it is label smoothing.
        smoothing: ``epsilon`` in [0, 1), of the label.
        reliability: what ``r`` is: the probability of the label, or the teacher's largest probability.

    Returns:
        The targets and the weight, 0 or 1, of each crop, at least float32. No gradient flows through either. The
        thresholds and ``smoothing`` are our choice: the authors have not published theirs in code.

    Raises:
        ValueError: ``low``, ``high`` or ``smoothing`` is outside its range, or there is only one class.

    References:
        Shen, *FerKD: Surgical Label Adaptation for Efficient Distillation*, ICCV 2023, arXiv 2312.17473.
    """
    check_range("low", low, "[0, inf)")
    check_range("high", high, f"[{low}, inf)" if isinstance(low, int | float) else "[0, inf)")
    check_range("smoothing", smoothing, "[0, 1)")
    classes = teacher_probs.shape[-1]
    check_range("number of classes", classes, "[2, inf)")
    q = jax.lax.stop_gradient(at_least_float32(teacher_probs))
    label = jax.nn.one_hot(labels, classes, dtype=q.dtype)
    r = jnp.max(q if reliability == "confidence" else jnp.where(label > 0, q, 0.0), axis=-1)
    softened = jnp.where(label > 0, 1.0 - smoothing, smoothing / (classes - 1))
    return jnp.where((r >= high)[..., None], q, softened), (r >= low).astype(q.dtype)


@jax.custom_jvp
def _log_cosh(x):
    size = jnp.abs(x)
    far = size + jnp.log1p(jnp.exp(-2.0 * size)) - math.log(2.0)
    # Near zero that is all rounding error.
    square = jnp.square(jnp.minimum(size, 0.25))
    near = square * (1 / 2 - square * (1 / 12 - square * (1 / 45 - square * (17 / 2520))))
    return jnp.where(size < 0.25, near, far)


@_log_cosh.defjvp
def _log_cosh_jvp(primals, tangents):
    return _log_cosh(*primals), jnp.tanh(*primals) * tangents[0]
