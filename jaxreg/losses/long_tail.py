"""Experts for classes that are frequent, rare, or both.

Adding the logarithm of the class frequencies to the scores in training, and not afterwards, makes a classifier that
treats all classes alike (balanced softmax). More of it makes an expert for rare classes, less of it one for frequent
classes. MDCS trains three such experts side by side, each of them also to say of a strongly augmented input what it
says of a weakly augmented one, and predicts with the mean of their scores as they are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range

Exponents = Sequence[ScalarLike] | Float[Array, "experts"]


@checked
def diversity_loss(
    expert_logits: Float[Array, "experts items classes"],
    labels: Int[Array, "items"],
    counts: Int[Array, "classes"],
    *,
    exponents: Exponents = (-0.5, 1.0, 2.5),
) -> Float[Array, "experts items"]:
    r"""Cross-entropy of scores adjusted by class frequencies, to a different degree for each expert.

    .. math:: \ell_{ei} = -\log \operatorname{softmax}(v_{ei})_{y_i}, \qquad v_{ei} = f_{ei} + a_e \log n

    Args:
        expert_logits: scores ``f`` of each expert.
        labels: class indices ``y``.
        counts: ``n``, training examples of each class; 0 counts as 1.
        exponents: ``a``, one for each expert: 0 is cross-entropy, 1 balanced softmax, above 1 favours rare classes,
            below 0 makes frequent ones more frequent still (paper: -0.5, 1 and 2.5).

    Returns:
        The loss of each example for each expert, at least float32.

    Raises:
        ValueError: there is not one exponent for each expert.

    References:
        Zhao et al., *MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition*,
        ICCV 2023, arXiv 2308.09922; balanced softmax: Ren et al., NeurIPS 2020, arXiv 2007.10740.
    """
    log_p = jax.nn.log_softmax(_adjusted(expert_logits, counts, exponents))
    return -at_labels(log_p, jnp.asarray(labels)[None])


@checked
def consistency_self_distillation(
    weak: Float[Array, "experts items classes"],
    strong: Float[Array, "experts items classes"],
    labels: Int[Array, "items"],
    counts: Int[Array, "classes"],
    *,
    exponents: Exponents = (-0.5, 1.0, 2.5),
    temperature: ScalarLike = 1.0,
) -> Float[Array, "experts"]:
    r"""How far an expert's prediction for strongly augmented inputs is from that for weakly augmented ones.

    .. math::
        \frac1{|C_e|} \sum_{i \in C_e} \operatorname{KL}\bigl(\operatorname{softmax}(v^w_{ei} / T) \,\|\,
        \operatorname{softmax}(v^s_{ei} / T)\bigr), \qquad C_e = \{i : \arg\max_k v^w_{eik} = y_i\}

    with scores :math:`v` adjusted as in :func:`diversity_loss`. Only examples that the expert has right teach.

    Args:
        weak: scores of the weakly augmented inputs, the teacher. No gradient flows through them.
        strong: those of the strongly augmented ones.
        labels: class indices ``y``.
        counts: ``n``, training examples of each class; 0 counts as 1.
        exponents: ``a``, one for each expert.
        temperature: ``T > 0`` (paper: 1).

    Returns:
        The divergence of each expert, at least float32; 0 if it has no example right.

    Raises:
        ValueError: ``temperature`` is not positive, or there is not one exponent for each expert.

    References:
        Zhao et al., *MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition*,
        ICCV 2023, arXiv 2308.09922.
    """
    check_range("temperature", temperature, "(0, inf)")
    teacher_scores = jax.lax.stop_gradient(_adjusted(weak, counts, exponents))
    teacher = jax.nn.log_softmax(teacher_scores / temperature)
    student = jax.nn.log_softmax(_adjusted(strong, counts, exponents) / temperature)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    right = jnp.argmax(teacher_scores, axis=-1) == jnp.asarray(labels)
    return jnp.sum(jnp.where(right, divergence, 0.0), axis=1) / jnp.maximum(jnp.sum(right, axis=1), 1)


@checked
def mdcs(
    weak: Float[Array, "experts items classes"],
    strong: Float[Array, "experts items classes"],
    labels: Int[Array, "items"],
    counts: Int[Array, "classes"],
    *,
    epoch: ScalarLike,
    strength: ScalarLike = 0.6,
    ramp_epochs: ScalarLike = 20.0,
    exponents: Exponents = (-0.5, 1.0, 2.5),
    temperature: ScalarLike = 1.0,
) -> Float[Array, ""]:
    r"""MDCS: diverse experts that are consistent under augmentation.

    .. math:: \sum_e \Bigl(\overline{\ell_e} + \lambda \min(t / R, 1) \operatorname{CS}_e\Bigr)

    with the mean of :func:`diversity_loss` over both views and :func:`consistency_self_distillation`. Predict with
    ``logits.mean(axis=0)``, without adjustment.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.losses import mdcs
    >>> weak, strong = jax.random.normal(jax.random.key(0), [2, 3, 5, 4])  # 3 experts, 5 inputs, 4 classes
    >>> loss = mdcs(weak, strong, jnp.array([0, 1, 2, 3, 0]), jnp.array([100, 50, 10, 2]), epoch=7)
    >>> loss.shape
    ()

    Args:
        weak: scores of the weakly augmented inputs.
        strong: those of the strongly augmented ones.
        labels: class indices ``y``.
        counts: ``n``, training examples of each class; 0 counts as 1.
        epoch: ``t >= 0``, passes over the data, or part of them.
        strength: ``lambda >= 0`` (authors' code: 0.6).
        ramp_epochs: ``R > 0``, when the second term has its full weight (authors' code: 20 of 400).
        exponents: ``a``, one for each expert.
        temperature: ``T > 0`` (paper: 1).

    Returns:
        The loss of the batch, at least float32.

    Raises:
        ValueError: a number is outside its range, or there is not one exponent for each expert.

    References:
        Zhao et al., *MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition*,
        ICCV 2023, arXiv 2308.09922.
    """
    check_range("epoch", epoch, "[0, inf)")
    check_range("strength", strength, "[0, inf)")
    check_range("ramp_epochs", ramp_epochs, "(0, inf)")
    diversity = sum(diversity_loss(view, labels, counts, exponents=exponents) for view in (weak, strong)) / 2
    consistency = consistency_self_distillation(
        weak, strong, labels, counts, exponents=exponents, temperature=temperature
    )
    ramp = jnp.minimum(epoch / ramp_epochs, 1.0)
    return jnp.sum(jnp.mean(diversity, axis=1) + strength * ramp * consistency)


def _adjusted(expert_logits, counts, exponents):
    if len(exponents) != len(expert_logits):
        raise ValueError(
            f"exponents must have one number for each of the {len(expert_logits)} experts, got {exponents}"
        )
    # The logarithm of a power is a product: powers of counts outgrow float32.
    log_counts = jnp.log(jnp.maximum(at_least_float32(counts), 1.0))
    return at_least_float32(expert_logits) + jnp.asarray(exponents)[:, None, None] * log_counts
