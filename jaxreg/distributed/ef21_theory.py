"""The step sizes that the theory of EF21 allows, and what they depend on."""

from typing import Literal

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def ef21_weights(smoothness: Float[Array, "clients"]) -> Float[Array, "clients"]:
    r"""The weights of EF21-W: each client's share of the smoothness constants.

    .. math:: w_i = L_i / \textstyle\sum_j L_j

    Args:
        smoothness: ``L_i > 0``, Lipschitz constants of the clients' gradients: of a quadratic the largest eigenvalue,
            of a logistic regression on ``m`` rows ``X`` a quarter of that of ``X'X / m`` plus the penalty's.

    Returns:
        ``w``, with sum 1.

    References:
        Richtárik et al., *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants*,
        ICLR 2024, arXiv 2402.10774.
    """
    smoothness = at_least_float32(smoothness)
    return smoothness / jnp.sum(smoothness)


@checked
def ef21_stepsize(
    smoothness: ScalarLike,
    client_smoothness: Float[Array, "clients"],
    alpha: ScalarLike,
    *,
    mean: Literal["arithmetic", "quadratic"] = "arithmetic",
    rare_features: ScalarLike = 1.0,
) -> Float[Array, ""]:
    r"""The largest step size for which EF21 is known to converge.

    .. math::
        \gamma = \frac1{L + \sqrt c\, \bar L\, \xi(\alpha)}, \qquad
        \xi(\alpha) = \frac{\sqrt{1 - \alpha}}{1 - \sqrt{1 - \alpha}} = \frac{1 + \sqrt{1 - \alpha}}\alpha - 1

    where :math:`\bar L` is the quadratic mean of the clients' constants in the first analysis of EF21, and their
    arithmetic mean, which is never larger, in that of EF21-W and, with the same weights, of EF21 itself.

    Args:
        smoothness: ``L > 0`` of the mean of the clients' functions.
        client_smoothness: ``L_i`` of each.
        alpha: in (0, 1], the contraction of the compressor (:func:`~jaxreg.optim.contraction`); 1 gives ``1 / L``.
        mean: which mean of the ``L_i``.
        rare_features: ``c`` in (0, 1], see :func:`rare_features_constant`.

    Returns:
        ``gamma``.

    Raises:
        ValueError: a number is outside its range.

    References:
        Richtárik et al., *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants*,
        ICLR 2024, arXiv 2402.10774.
    """
    check_range("smoothness", smoothness, "(0, inf)")
    check_range("alpha", alpha, "(0, 1]")
    check_range("rare_features", rare_features, "(0, 1]")
    constants = at_least_float32(client_smoothness)
    power = {"arithmetic": 1, "quadratic": 2}[mean]
    average = jnp.mean(constants**power) ** (1 / power)
    root = jnp.sqrt(1 - jnp.asarray(alpha, constants.dtype))
    # The form without the difference 1 - root, which cancels for small alpha.
    return 1 / (smoothness + jnp.sqrt(rare_features) * average * ((1 + root) / alpha - 1))


@checked
def rare_features_constant(
    relevant: Bool[Array, "clients features"], weights: Float[Array, "clients"] | None = None
) -> Float[Array, ""]:
    r"""How common the commonest feature is: the largest weight of clients that share one.

    .. math:: c = \max_j \textstyle\sum_{i:\, j \text{ relevant to } i} w_i

    An entry of the gradient that only a few clients have is estimated by these alone, and their errors add up to less:
    :math:`\|\sum_i w_i v_i\|^2 \le c \sum_i w_i \|v_i\|^2` for errors :math:`v_i` of the clients. So the step may be
    longer. With equal weights it is the number of clients that share a feature, over all clients.

    Args:
        relevant: whether the client's function depends on the feature.
        weights: ``w``, as given to :func:`ef21_w`; None for equal ones.

    Returns:
        ``c``, 1 where some feature is relevant to all.

    References:
        Richtárik et al., *Error Feedback Shines when Features are Rare*, arXiv 2305.15264, with equal weights;
        with the weights of *Error Feedback Reloaded*, ICLR 2024, arXiv 2402.10774.
    """
    clients = relevant.shape[0]
    weights = jnp.full([clients], 1 / clients) if weights is None else at_least_float32(weights)
    return jnp.max(weights @ relevant)
