"""Two models as one: the average of their weights, or of their outputs.

Both add up what the models know. Where they hang on different spurious features, a wrong class needs more of these to
win, and the ensemble is right where both models are wrong (:func:`jaxreg.metrics.false_false_true`). The model with
the larger logits decides for both, so neither should be too sure: :func:`jaxreg.losses.bang_finetune_loss`.
"""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes


@checked
def wise_ft(pretrained: PyTree, finetuned: PyTree, *, alpha: ScalarLike = 0.5) -> PyTree:
    r"""WiSE-FT: the average of the weights before and after fine-tuning.

    .. math:: \theta = (1 - \alpha)\, \theta_\text{pre} + \alpha\, \theta_\text{ft}

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import wise_ft
    >>> wise_ft({"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([2.0, 8.0])}, alpha=0.25)["w"].tolist()
    [0.5, 5.0]

    Args:
        pretrained: ``theta_pre``.
        finetuned: ``theta_ft``, which started from it: weights of other origin cannot be averaged.
        alpha: in [0, 1], the share of the fine-tuned (paper: 0.5).

    Returns:
        A tree like ``finetuned``, in its dtypes; leaves that are not floating are its own.

    Raises:
        ValueError: ``alpha`` is outside [0, 1], or the trees differ in structure or shapes.

    References:
        Wortsman et al., *Robust Fine-tuning of Zero-shot Models*, CVPR 2022, arXiv 2109.01903.
    """
    check_range("alpha", alpha, "[0, 1]")
    check_same_shapes("finetuned", finetuned, pretrained)

    def average(start, end):
        if not is_floating(end):
            return jnp.asarray(end)
        return ((1 - alpha) * at_least_float32(start) + alpha * at_least_float32(end)).astype(jnp.result_type(end))

    return jax.tree.map(average, pretrained, finetuned)


@checked
def output_ensemble(
    logits_a: Float[Array, "*batch classes"], logits_b: Float[Array, "*batch classes"], *, alpha: ScalarLike = 0.5
) -> Float[Array, "*batch classes"]:
    r"""The average of two models' logits, whatever their weights.

    .. math:: z = (1 - \alpha)\, z_a + \alpha\, z_b

    Args:
        logits_a: ``z_a``.
        logits_b: ``z_b``.
        alpha: in [0, 1], the share of the second model (paper: 0.5).

    Returns:
        The logits of the ensemble, at least float32. Linear models give those of :func:`wise_ft`.

    Raises:
        ValueError: ``alpha`` is outside [0, 1].

    References:
        Lin et al., *Spurious Feature Diversification Improves Out-of-distribution Generalization*, ICLR 2024,
        arXiv 2309.17230.
    """
    check_range("alpha", alpha, "[0, 1]")
    return (1 - alpha) * at_least_float32(logits_a) + alpha * at_least_float32(logits_b)
