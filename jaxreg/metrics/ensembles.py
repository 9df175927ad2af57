"""What an ensemble gets right that its members do not, and how much they differ."""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, checked


@checked
def false_false_true(
    predictions_a: Int[Array, "examples"],
    predictions_b: Int[Array, "examples"],
    predictions_ensemble: Int[Array, "examples"],
    labels: Int[Array, "examples"],
) -> Float[Array, ""]:
    r"""FalseFalseTrue: how often an ensemble of two models is right where both of them are wrong.

    .. math:: \frac1n \sum_i [\hat y^a_i \ne y_i]\,[\hat y^b_i \ne y_i]\,[\hat y^\text{ens}_i = y_i]

    It is the part of an ensemble's gain that no choice between its members explains.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import false_false_true
    >>> labels = jnp.array([0, 0, 0, 0])
    >>> one, other, ensemble = jnp.array([1, 1, 0, 0]), jnp.array([2, 1, 1, 0]), jnp.array([0, 1, 0, 0])
    >>> float(false_false_true(one, other, ensemble, labels))
    0.25

    Args:
        predictions_a: classes that the first model predicts.
        predictions_b: those of the second.
        predictions_ensemble: those of the ensemble.
        labels: the true classes.

    Returns:
        The ratio, in [0, 1], of all examples.

    References:
        Lin et al., *Spurious Feature Diversification Improves Out-of-distribution Generalization*, ICLR 2024,
        arXiv 2309.17230.
    """
    both_wrong = (predictions_a != labels) & (predictions_b != labels)
    return jnp.mean(both_wrong & (predictions_ensemble == labels), dtype=jnp.float32)


@checked
def prediction_variance(probabilities: Float[Array, "models *batch classes"]) -> Float[Array, "*batch"]:
    r"""How much the predictions of models trained alike differ: the variance in the decomposition of the squared error.

    .. math:: \frac1{M - 1} \sum_m \| p_m - \bar p \|^2

    Args:
        probabilities: ``p`` of each of ``M`` models, which differ in initialization, order or sample of the data.

    Returns:
        The variance of each example, without bias, at least float32.

    Raises:
        ValueError: there are fewer than two models.

    References:
        Used by Zhao et al., *MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed
        Recognition*, ICCV 2023, arXiv 2308.09922, to compare methods for rare classes.
    """
    models = len(probabilities)
    if models < 2:
        raise ValueError(f"probabilities must be those of at least 2 models, got {models}")
    return jnp.sum(jnp.var(at_least_float32(probabilities), axis=0, ddof=1), axis=-1)
