"""What becomes of wrong labels during training.

A model trained on partly wrong labels first predicts the true class even where the label is wrong (early learning) and
in the end repeats the wrong label (memorization). These measurements tell the two apart.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxreg.linalg import unit_vectors
from jaxreg.typing import Array, Float, Int, checked


class LabelOutcomes(NamedTuple):
    """Result of :func:`label_outcomes`: fractions, NaN where there are no examples to take them of.

    Attributes:
        correct: of the flipped examples, those predicted as their true class.
        memorized: of the flipped examples, those predicted as their wrong label.
        incorrect: of the flipped examples, those predicted as neither.
        clean_correct: of the other examples, those predicted as their label.
        flipped: of all examples, those whose label is wrong.
    """

    correct: Float[Array, ""]
    memorized: Float[Array, ""]
    incorrect: Float[Array, ""]
    clean_correct: Float[Array, ""]
    flipped: Float[Array, ""]


@checked
def label_outcomes(
    predictions: Int[Array, "*batch"], observed_labels: Int[Array, "*batch"], true_labels: Int[Array, "*batch"]
) -> LabelOutcomes:
    r"""Fractions of the examples with a wrong label that are predicted correctly, memorized, or neither.

    With predictions :math:`h`, observed labels :math:`y` and true ones :math:`y^*`, over the examples where
    :math:`y \ne y^*`:

    .. math:: \Pr(h = y^*), \qquad \Pr(h = y), \qquad \Pr(h \ne y^*, h \ne y)

    Args:
        predictions: predicted classes.
        observed_labels: labels trained on.
        true_labels: labels before the noise.

    Returns:
        The three fractions, the accuracy on the examples with a right label, and the fraction of wrong labels.

    References:
        Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020,
        arXiv 2007.00151, figure 1.
    """
    flipped = jnp.not_equal(observed_labels, true_labels)
    correct = jnp.equal(predictions, true_labels)
    memorized = jnp.equal(predictions, observed_labels)
    return LabelOutcomes(
        correct=jnp.mean(correct, where=flipped),
        memorized=jnp.mean(memorized, where=flipped),
        incorrect=jnp.mean(~(correct | memorized), where=flipped),
        clean_correct=jnp.mean(correct, where=~flipped),
        flipped=jnp.mean(flipped),
    )


@checked
def early_learning_alignment(gradient: Float[Array, "*shape"], direction: Float[Array, "*shape"]) -> Float[Array, ""]:
    r"""How well a descent step points to the true classifier: the cosine between the two.

    .. math:: \frac{\langle -g, v \rangle}{\|g\| \, \|v\|}

    Theorem 1 of the paper: for logistic regression on two Gaussians with mislabelled examples the negative gradient
    is at first well aligned with the true separator ``v``, although the fit at the end is not.

    Args:
        gradient: ``g``, of the training loss with respect to the parameters.
        direction: ``v``, parameters of the true classifier.

    Returns:
        The cosine in [-1, 1], 0 if either argument is zero.

    References:
        Liu et al., *Early-Learning Regularization Prevents Memorization of Noisy Labels*, NeurIPS 2020,
        arXiv 2007.00151.
    """
    return -jnp.sum(unit_vectors(jnp.ravel(gradient)) * unit_vectors(jnp.ravel(direction)))
