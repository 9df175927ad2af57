"""How well a score tells two kinds of examples apart, whatever the threshold."""

import jax.numpy as jnp

from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, checked


@checked
def auroc(
    scores: Float[Array, "examples"],
    positives: Bool[Array, "examples"],
    *,
    where: Bool[Array, "examples"] | None = None,
) -> Float[Array, ""]:
    r"""Area under the ROC curve: how often a positive example has a higher score than a negative one.

    .. math:: \frac1{n_+ n_-} \sum_{i \in +} \sum_{j \in -} \bigl([s_i > s_j] + \tfrac12 [s_i = s_j]\bigr)

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import auroc
    >>> float(auroc(jnp.array([0.9, 0.4, 0.4, 0.1]), jnp.array([True, True, False, False])))
    0.875

    Args:
        scores: ``s``, such as the uncertainty of each example; infinite ones are allowed.
        positives: which examples should have high scores, such as those that are predicted wrongly.
        where: which examples count; by default all.

    Returns:
        The area, in [0, 1], 1/2 for scores that tell nothing; NaN if a score that counts is NaN or one kind is missing.

    References:
        Hanley & McNeil, *The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve*,
        Radiology 1982.
    """
    scores, positives = at_least_float32(scores), jnp.asarray(positives)
    counted = jnp.ones_like(positives) if where is None else jnp.asarray(where)
    order = jnp.argsort(scores)
    ordered = scores[order]
    # Counted, not ranked: sums of ranks outgrow float32.
    is_negative = (counted & ~positives)[order]
    negatives_below = jnp.concatenate([jnp.zeros([1], int), jnp.cumsum(is_negative, dtype=int)])
    below = negatives_below[jnp.searchsorted(ordered, scores, side="left")]
    not_above = negatives_below[jnp.searchsorted(ordered, scores, side="right")]
    area = jnp.mean(0.5 * (below + not_above) / negatives_below[-1], where=positives & counted)
    return unless_nan(area, jnp.max(scores, initial=-jnp.inf, where=counted)).astype(scores.dtype)
