r"""Dynamical stability: which minima stochastic gradient descent can stay at.

At a minimum that fits every example, with the squared loss :math:`\tfrac12 (f(x) - y)^2`, the Hessian is
:math:`H = \tfrac1n \sum_i a_i a_i^\top` with the gradients :math:`a_i = \nabla_\theta f(x_i)`. Gradient descent stays
there if :math:`\lambda_{\max}(H) \le 2 / \eta`. SGD needs more, since its noise grows with the distance from the
minimum: with single examples the whole trace must stay below :math:`2 / \eta`. That is why large learning rates find
flat minima, and flat minima of some networks are those of small norm (:mod:`jaxreg.penalties`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.linalg import eigh, matmul
from jaxreg.metrics.curvature import lanczos_top_eigenvalue
from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def gauss_newton_features(
    apply_fn: Callable, params: PyTree[Float[Array, "..."]], x: Float[Array, "examples *shape"]
) -> Float[Array, "examples parameters"]:
    r"""The gradient of a scalar output with respect to the parameters, for each example.

    .. math:: a_i = \nabla_\theta f(x_i)

    Args:
        apply_fn: ``(params, x) -> [examples]`` or ``[examples, 1]``, each output from its own example.
        params: ``theta``, widened to float32 first.
        x: inputs.

    Returns:
        ``a``, with the parameters in the order of :func:`jax.flatten_util.ravel_pytree`.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    params = widened(params)

    def features(example):
        gradient = jax.grad(lambda p: apply_fn(p, example[None]).reshape(()))(params)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    return jax.vmap(features)(jnp.asarray(x))


@checked
def hessian_trace(a: Float[Array, "examples parameters"]) -> Float[Array, ""]:
    r"""Trace of the Gauss-Newton matrix.

    .. math:: \operatorname{tr} H = \tfrac1n \sum_i \|a_i\|^2

    Args:
        a: from :func:`gauss_newton_features`.

    Returns:
        The trace.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    return jnp.sum(jnp.square(at_least_float32(a))) / a.shape[0]


@checked
def hessian_frobenius(a: Float[Array, "examples parameters"]) -> Float[Array, ""]:
    r"""Frobenius norm of the Gauss-Newton matrix.

    .. math:: \|H\|_F = \tfrac1n \sqrt{\textstyle\sum_{ij} \langle a_i, a_j \rangle^2}

    Args:
        a: from :func:`gauss_newton_features`.

    Returns:
        The norm.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    return jnp.linalg.norm(_gram(a))


@checked
def sgd_stability_operator(
    a: Float[Array, "examples parameters"],
    *,
    learning_rate: ScalarLike,
    batch_size: ScalarLike = 1,
    iterations: int = 50,
) -> Float[Array, ""]:
    r"""Spectral radius of how SGD moves the second moment of the distance from an interpolating minimum.

    .. math:: S \mapsto (I - \eta H) S (I - \eta H)
        + \tfrac{\eta^2}{B} \bigl(\tfrac1n \textstyle\sum_i a_i a_i^\top S a_i a_i^\top - H S H\bigr)

    The minimum is linearly stable in mean square if and only if the radius is at most 1. Batches are drawn with
    replacement. Only the span of the gradients is worked on: across it nothing moves, so that the radius is at least 1
    where there are more parameters than examples.

    Args:
        a: from :func:`gauss_newton_features`.
        learning_rate: ``eta >= 0``.
        batch_size: ``B >= 1``; infinity is gradient descent.
        iterations: of Lanczos (:func:`lanczos_top_eigenvalue`), on symmetric matrices of size
            ``min(examples, parameters)``.

    Returns:
        The radius.

    Raises:
        ValueError: ``learning_rate`` is negative, ``batch_size`` or ``iterations`` below 1.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    check_range("learning_rate", learning_rate, "[0, inf)")
    check_range("batch_size", batch_size, "[1, inf]")
    eigenvalues, features = _in_eigenbasis(a)

    # The operator is symmetric and maps positive semidefinite matrices to such, so that its spectral radius is its
    # largest eigenvalue, with an eigenmatrix that is not orthogonal to the identity.
    def operator(s):
        drift = (eigenvalues[:, None] + eigenvalues) * s
        return s - learning_rate * drift + learning_rate**2 * _squared(features, eigenvalues, batch_size, s)

    return lanczos_top_eigenvalue(operator, jnp.eye(len(eigenvalues), dtype=features.dtype), iterations=iterations)


@checked
def critical_lr(
    a: Float[Array, "examples parameters"], *, batch_size: ScalarLike = 1, iterations: int = 50
) -> Float[Array, ""]:
    r"""The largest learning rate at which SGD is linearly stable in mean square.

    The operator of :func:`sgd_stability_operator` is :math:`S \mapsto S - \eta L(S) + \eta^2 M(S)` with
    :math:`L(S) = H S + S H`. Both parts are positive semidefinite, so it is stable up to
    :math:`1 / \lambda_{\max}(L^{-1/2} M L^{-1/2})`, and no search is needed.

    Args:
        a: from :func:`gauss_newton_features`.
        batch_size: ``B >= 1``, drawn with replacement; infinity is gradient descent, for which the result is
            ``2 / lambda_max(H)``.
        iterations: of Lanczos, see :func:`sgd_stability_operator`.

    Returns:
        The learning rate. Times the trace of ``H`` it is at most ``2 * batch_size``. Infinite if all gradients are 0.

    Raises:
        ValueError: ``batch_size`` or ``iterations`` is below 1.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490; Mulayoff and Michaeli, *Exact Mean Square Linear Stability Analysis for SGD*, COLT 2024,
        arXiv 2306.07850.
    """
    check_range("batch_size", batch_size, "[1, inf]")
    eigenvalues, features = _in_eigenbasis(a)
    sums = eigenvalues[:, None] + eigenvalues
    inverse_root = jnp.where(sums > 0, 1.0 / jnp.sqrt(jnp.where(sums > 0, sums, 1.0)), 0.0)

    def operator(s):
        return inverse_root * _squared(features, eigenvalues, batch_size, inverse_root * s)

    start = jnp.eye(len(eigenvalues), dtype=features.dtype)
    return 1.0 / lanczos_top_eigenvalue(operator, start, iterations=iterations)


@checked
def trace_bound(a: Float[Array, "examples parameters"], *, batch_size: ScalarLike = 1) -> Float[Array, ""]:
    r"""A learning rate above which SGD is not stable, from norms of the gradients alone.

    .. math:: \eta \le \frac{2 \operatorname{tr} H}{\tfrac1B \cdot \tfrac1n \sum_i \|a_i\|^4
        + (1 - \tfrac1B) \|H\|_F^2} \le \frac{2 B}{\operatorname{tr} H}

    It follows from a second moment that starts as the identity. For single examples it says
    :math:`\operatorname{tr} H \le 2 / \eta`; for gradient descent (:math:`B = \infty`) only
    :math:`\|H\|_F^2 / \operatorname{tr} H \le 2 / \eta`.

    Args:
        a: from :func:`gauss_newton_features`.
        batch_size: ``B >= 1``, drawn with replacement; infinity is gradient descent.

    Returns:
        The first of the two bounds, not below :func:`critical_lr`. Infinite if all gradients are 0.

    Raises:
        ValueError: ``batch_size`` is below 1.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    check_range("batch_size", batch_size, "[1, inf]")
    norms = jnp.sum(jnp.square(at_least_float32(a)), axis=1)
    noise = jnp.mean(jnp.square(norms)) / batch_size
    denominator = noise + (1.0 - 1.0 / batch_size) * hessian_frobenius(a) ** 2
    zero = denominator == 0
    return jnp.where(zero, jnp.inf, 2.0 * jnp.mean(norms) / jnp.where(zero, 1.0, denominator))


@checked
def noise_alignment(a: Float[Array, "examples parameters"], residuals: Float[Array, "examples"]) -> Float[Array, ""]:
    r"""How much the gradient noise of SGD lies along the sharp directions.

    .. math:: \mu = \frac{\operatorname{tr}(\Sigma H)}{2 L \|H\|_F^2}, \qquad
        \Sigma = \tfrac1n \sum_i r_i^2 a_i a_i^\top - g g^\top, \quad
        g = \tfrac1n \sum_i r_i a_i, \quad L = \tfrac1{2n} \sum_i r_i^2

    One step from there has a linearized loss of at least :math:`\eta^2 \mu \|H\|_F^2 / B` times ``L``.

    Args:
        a: from :func:`gauss_newton_features`.
        residuals: ``r_i = f(x_i) - y_i``.

    Returns:
        The alignment, 0 where nothing is left to learn.

    References:
        Wu et al., *The Alignment Property of SGD Noise and How It Helps Select Flat Minima: A Stability Analysis*,
        NeurIPS 2022, arXiv 2207.02628.
    """
    a, residuals = at_least_float32(a), at_least_float32(residuals)
    products = matmul(a, a.T) / len(a)
    # tr(a_i a_i^T H) and g^T H g in terms of inner products.
    along = jnp.sum(jnp.square(products), axis=1) * len(a)
    pull = matmul(products, residuals)
    aligned = jnp.mean(jnp.square(residuals) * along) - jnp.mean(jnp.square(pull))
    scale = jnp.mean(jnp.square(residuals)) * jnp.sum(jnp.square(products))
    return jnp.where(scale == 0, 0.0, aligned / jnp.where(scale == 0, 1.0, scale))


@checked
def frobenius_bound(
    *, learning_rate: ScalarLike, batch_size: ScalarLike = 1, alignment: ScalarLike = 1.0
) -> Float[Array, ""]:
    r"""The largest Frobenius norm of the Hessian at which the loss of SGD does not grow.

    .. math:: \|H\|_F \le \tfrac1\eta \sqrt{B / \mu}

    A norm of all eigenvalues is bounded, not of the largest alone as by gradient descent.

    Args:
        learning_rate: ``eta > 0``.
        batch_size: ``B >= 1``.
        alignment: ``mu > 0``, a lower bound of :func:`noise_alignment` near the minimum; about 1 in practice.

    Returns:
        The bound.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Wu and Su, *The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent*, ICML 2023,
        arXiv 2305.17490.
    """
    check_range("learning_rate", learning_rate, "(0, inf)")
    check_range("batch_size", batch_size, "[1, inf)")
    check_range("alignment", alignment, "(0, inf)")
    return jnp.sqrt(at_least_float32(jnp.asarray(batch_size)) / alignment) / learning_rate


def _gram(a):
    """H, or the matrix of inner products with the same eigenvalues but zeros, whichever is smaller."""
    a = at_least_float32(a)
    return (matmul(a, a.T) if a.shape[0] < a.shape[1] else matmul(a.T, a)) / a.shape[0]


def _in_eigenbasis(a):
    """Eigenvalues of H (all that can be other than zero), and the gradients in the basis of its eigenvectors."""
    eigenvalues, vectors = eigh(_gram(a))
    eigenvalues = jnp.maximum(eigenvalues, 0.0)
    if a.shape[0] < a.shape[1]:
        return eigenvalues, vectors * jnp.sqrt(a.shape[0] * eigenvalues)
    return eigenvalues, matmul(at_least_float32(a), vectors)


def _squared(features, eigenvalues, batch_size, s):
    """The term of the operator with the square of the learning rate."""
    sizes = jnp.einsum("ni,ij,nj->n", features, s, features, precision="highest")
    noise = matmul(features.T * sizes, features) / len(features)
    return noise / batch_size + (1.0 - 1.0 / batch_size) * eigenvalues[:, None] * s * eigenvalues
