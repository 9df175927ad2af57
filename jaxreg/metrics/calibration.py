"""Whether a classifier knows how sure it may be.

Calibration asks whether confidence is a frequency: of the predictions made with confidence 0.8, four in five should be
right. Ordinal ranking asks only whether wrong predictions are less confident than right ones, so that abstaining on the
least confident examples leaves fewer errors. A model can be good at one and bad at the other.
"""

import jax
import jax.numpy as jnp

from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, checked
from jaxreg.validation import check_range


@checked
def expected_calibration_error(
    probabilities: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, num_bins: int = 15
) -> Float[Array, ""]:
    r"""ECE: how far confidence is from accuracy, on average over bins of confidence.

    .. math:: \sum_{m=1}^{M} \frac{|B_m|}{n} \, \bigl| \operatorname{acc}(B_m) - \operatorname{conf}(B_m) \bigr|

    where :math:`B_m` are the examples whose largest probability lies in :math:`((m - 1) / M,\; m / M]`.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import expected_calibration_error
    >>> sure = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    >>> round(float(expected_calibration_error(sure, jnp.array([0, 1, 1, 1]))), 3)
    0.15

    Args:
        probabilities: of the classes, such as a softmax; the prediction is the most probable class.
        labels: true classes.
        num_bins: ``M >= 1``, bins of equal width (literature: 15). The estimate grows with the number of bins, by up to
            about ``sqrt(M / n)`` for a calibrated model.

    Returns:
        The error in [0, 1], 0 for a calibrated model.

    Raises:
        ValueError: ``num_bins`` is below 1.

    References:
        Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, arXiv 1706.04599.
    """
    check_range("num_bins", num_bins, "[1, inf)")
    confidence = at_least_float32(jnp.max(probabilities, axis=-1))
    correct = jnp.argmax(probabilities, axis=-1) == labels
    bins = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(jnp.int32)
    gaps = jax.ops.segment_sum((correct - confidence).ravel(), bins.ravel(), num_segments=num_bins)
    return jnp.sum(jnp.abs(gaps)) / confidence.size


@checked
def aurc(confidence: Float[Array, "*batch"], correct: Bool[Array, "*batch"]) -> Float[Array, ""]:
    r"""Area under the risk-coverage curve: the error rate of the most confident examples, over all coverages.

    .. math:: \frac1n \sum_{k=1}^{n} \frac1k \sum_{j \le k} [\text{prediction } \sigma(j) \text{ is wrong}]

    with the examples sorted by confidence, most confident first. Equal confidences count as if in every order alike, so
    that constant confidence gives the error rate.

    >>> import jax.numpy as jnp
    >>> from jaxreg.metrics import aurc
    >>> round(float(aurc(jnp.array([0.9, 0.8, 0.7]), jnp.array([True, False, True]))), 4)
    0.2778

    Args:
        confidence: of each prediction; only its order counts.
        correct: whether each prediction is right.

    Returns:
        The area in [0, 1]; less is better. NaN if a confidence is. :func:`excess_aurc` takes off what the error rate
        alone costs.

    References:
        Geifman et al., *Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers*, ICLR 2019, arXiv 1805.08206.
    """
    order = jnp.argsort(-confidence.ravel())
    descending = -at_least_float32(confidence).ravel()[order]
    errors = jnp.append(0.0, jnp.cumsum(~jnp.asarray(correct).ravel()[order], dtype=jnp.float32))
    start = jnp.searchsorted(descending, descending, side="left")
    stop = jnp.searchsorted(descending, descending, side="right")
    # In a random order within a run of equal confidences, errors accrue linearly on average.
    count = jnp.arange(1, len(descending) + 1)
    accrued = errors[start] + (count - start) * (errors[stop] - errors[start]) / (stop - start)
    return unless_nan(jnp.mean(accrued / count), jnp.max(descending, initial=-jnp.inf))


@checked
def excess_aurc(confidence: Float[Array, "*batch"], correct: Bool[Array, "*batch"]) -> Float[Array, ""]:
    r"""E-AURC: the area under the risk-coverage curve beyond that of the best order with as many errors.

    .. math:: \operatorname{AURC} - \frac1n \sum_{j=1}^{m} \frac{j}{n - m + j}

    for ``m`` errors, all of them less confident than every right prediction in the best order.

    Args:
        confidence: of each prediction; only its order counts.
        correct: whether each prediction is right.

    Returns:
        The excess, 0 where no error is as confident as a right prediction.

    References:
        Geifman et al., *Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers*, ICLR 2019, arXiv 1805.08206.
    """
    wrong = ~jnp.asarray(correct)
    count = jnp.arange(1, wrong.size + 1)
    best = jnp.mean(at_least_float32(jnp.maximum(count - wrong.size + jnp.sum(wrong), 0)) / count)
    return aurc(confidence, correct) - best
