"""Naive Bayes on features: a linear classifier without training.

Gaussian naive Bayes takes every class as a Gaussian whose features are independent. With one variance for each feature,
shared by the classes, it is linear, like logistic regression, but estimated feature by feature: it gets as good as it
ever will from far fewer examples, and what that is may be worse. On frozen features of a pretrained network it is a
probe that a handful of labels suffices for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


class NaiveBayesParams(NamedTuple):
    """Result of :func:`fit_naive_bayes`.

    Attributes:
        mean: of each feature in each class.
        var: of each feature around its class's mean, shared by the classes.
        log_prior: logarithms of the class probabilities.
    """

    mean: Float[Array, "classes features"]
    var: Float[Array, " features"]
    log_prior: Float[Array, " classes"]


@checked
def fit_naive_bayes(
    features: Float[Array, "examples features"],
    labels: Int[Array, " examples"],
    *,
    num_classes: int,
    var_floor: ScalarLike = 1e-6,
    weights: Float[Array, " examples"] | None = None,
) -> NaiveBayesParams:
    r"""Gaussian naive Bayes with variances shared by the classes.

    .. math::
        \mu_{kj} = \frac1{n_k} \sum_{i: y_i = k} x_{ij}, \qquad
        \sigma_j^2 = \frac1m \sum_i (x_{ij} - \mu_{y_i j})^2, \qquad
        \pi_k = \frac{n_k + 1}{m + K}

    >>> import jax.numpy as jnp
    >>> from jaxreg.structured import fit_naive_bayes, naive_bayes_logits
    >>> x, y = jnp.array([[0.0], [2.0], [6.0], [8.0]]), jnp.array([0, 0, 1, 1])
    >>> params = fit_naive_bayes(x, y, num_classes=2)
    >>> naive_bayes_logits(params, jnp.array([[1.0], [5.0]])).argmax(-1).tolist()
    [0, 1]

    Args:
        features: ``x``, frozen features or raw inputs.
        labels: ``y``, class indices.
        num_classes: ``K >= 1``. A class without examples gets the mean of all, and the prior of no example.
        var_floor: positive, added to every variance, so that constant features do not decide. Compare it with the
            variances of the features (scikit-learn's ``var_smoothing`` is 1e-9 of the largest).
        weights: of each example, at least 0, ``n_k`` and ``m`` are then their sums; None weighs all 1. Zeros leave
            examples out without another shape.

    Returns:
        Means, variances and priors, at least float32.

    Raises:
        ValueError: ``num_classes`` is below 1 or ``var_floor`` not positive.

    References:
        Zheng et al., *Revisiting Discriminative vs. Generative Classifiers: Theory and Implications*, ICML 2023,
        arXiv 2302.02334.
    """
    check_range("num_classes", num_classes, "[1, inf)")
    check_range("var_floor", var_floor, "(0, inf)")
    x = at_least_float32(features)
    weights = jnp.ones(len(x), x.dtype) if weights is None else at_least_float32(weights)
    members = jax.nn.one_hot(labels, num_classes, dtype=x.dtype) * weights[:, None]
    counts, total = jnp.sum(members, axis=0), jnp.sum(weights)
    # Around the overall mean, so that sums of features far from zero keep their precision.
    centre = weights @ x / jnp.maximum(total, 1e-30)
    offsets = members.T @ (x - centre) / jnp.where(counts > 0, counts, 1.0)[:, None]
    mean = centre + offsets
    spread = jnp.square(x - mean[labels])
    var = weights @ spread / jnp.maximum(total, 1e-30) + var_floor
    return NaiveBayesParams(mean, var, jnp.log(counts + 1) - jnp.log(total + num_classes))


@checked
def naive_bayes_logits(
    params: NaiveBayesParams, features: Float[Array, "*batch features"]
) -> Float[Array, "*batch classes"]:
    r"""Log-probabilities of classes and features together, up to a constant that all classes and examples share.

    .. math:: \log \pi_k - \sum_j \frac{(x_j - \mu_{kj})^2}{2 \sigma_j^2}

    Args:
        params: from :func:`fit_naive_bayes`.
        features: ``x``.

    Returns:
        The logits, at least float32; their softmax are the class probabilities.

    References:
        Zheng et al., arXiv 2302.02334.
    """
    centre = jnp.mean(params.mean, axis=0)
    weights, biases = as_linear(params._replace(mean=params.mean - centre))
    x = at_least_float32(features) - centre
    return x @ weights + biases - 0.5 * jnp.sum(jnp.square(x) / params.var, axis=-1, keepdims=True)


@checked
def as_linear(
    params: NaiveBayesParams,
) -> tuple[Float[Array, "features classes"], Float[Array, " classes"]]:
    r"""The same classifier as a linear layer: logits that differ from :func:`naive_bayes_logits` by one number a row.

    .. math:: W_{jk} = \frac{\mu_{kj}}{\sigma_j^2}, \qquad b_k = \log \pi_k - \sum_j \frac{\mu_{kj}^2}{2 \sigma_j^2}

    Args:
        params: from :func:`fit_naive_bayes`.

    Returns:
        Kernel ``W`` and bias ``b``, such as those of a :class:`flax.linen.Dense` to fine-tune.

    References:
        Zheng et al., arXiv 2302.02334.
    """
    weights = params.mean / params.var
    return weights.T, params.log_prior - 0.5 * jnp.sum(weights * params.mean, axis=-1)
