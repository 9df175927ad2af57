"""How much worse a model does on the truth than on what it was trained on."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def generalization_gap(
    loss_fn: Callable[[Any, Any], Any], params: PyTree, train: PyTree, test: PyTree
) -> Float[Array, ""]:
    r"""Mean loss on test data less mean loss on training data.

    .. math:: \frac1n \sum_{i \in \text{test}} \ell(\theta, z_i) - \frac1m \sum_{i \in \text{train}} \ell(\theta, z_i)

    Args:
        loss_fn: ``l``, from parameters and data to the loss of each example.
        params: ``theta``.
        train: whatever the model was trained on: with generated data the union of real and generated examples.
        test: examples of the true distribution.

    Returns:
        The gap, in the loss's unit, at least float32.

    References:
        Zheng et al., *Toward Understanding Generative Data Augmentation*, NeurIPS 2023, arXiv 2305.17476.
    """
    return jnp.mean(at_least_float32(loss_fn(params, test))) - jnp.mean(at_least_float32(loss_fn(params, train)))


@checked
def expected_gaussian_gap(
    num_features: ScalarLike, num_real: ScalarLike, num_generated: ScalarLike = 0
) -> Float[Array, ""]:
    r"""The expected generalization gap of a Gaussian mixture's mean, with and without generated data.

    .. math:: \frac{d}{2m} + \frac{d}{m_T} + \frac{d\,(m_G - m)}{2 m_T^2}, \qquad m_T = m + m_G

    Two classes at ``mu`` and ``-mu`` with variance ``sigma^2`` in each coordinate; ``theta`` is the mean of ``y x``
    over real and generated examples, the loss ``||x - y theta||^2 / (2 sigma^2)``, and the generator
    :func:`jaxreg.data.fit_class_gaussian` with symmetric classes. Without generated data the gap is ``d / m``; with
    many it is half of that, and no less. (Our derivation of the paper's case: exact, not a bound.)

    >>> from jaxreg.metrics import expected_gaussian_gap
    >>> float(expected_gaussian_gap(50, 10)), round(float(expected_gaussian_gap(50, 10, 10**6)), 3)
    (5.0, 2.5)

    Args:
        num_features: ``d``, at least 1.
        num_real: ``m``, at least 2.
        num_generated: ``m_G``, at least 0.

    Returns:
        The expected gap.

    Raises:
        ValueError: a number is below its least.

    References:
        Zheng et al., *Toward Understanding Generative Data Augmentation*, NeurIPS 2023, arXiv 2305.17476.
    """
    check_range("num_features", num_features, "[1, inf)")
    check_range("num_real", num_real, "[2, inf)")
    check_range("num_generated", num_generated, "[0, inf)")
    d, m, generated = (at_least_float32(jnp.asarray(x)) for x in (num_features, num_real, num_generated))
    total = m + generated
    return d / (2 * m) + d / total + d * (generated - m) / (2 * total**2)
