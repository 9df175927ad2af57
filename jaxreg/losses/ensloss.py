"""EnsLoss: a new random loss in every step.

A margin loss of a binary classifier matters to gradient descent only through its derivative at the margins of the
batch, and it is convex and calibrated if the derivatives are negative and rise with the margin. So the derivatives of a
whole family of losses can be drawn instead of chosen: random negative numbers, given to the margins in order. Training
with another draw in every step is like dropout, of losses instead of units, and overfits less.
"""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def ensloss(
    key: PRNGKeyArray,
    scores: Float[Array, "items"],
    labels: Int[Array, "items"],
    *,
    box_cox: ScalarLike = 0.0,
) -> Float[Array, "items"]:
    r"""A pseudo-loss whose gradient is that of a random convex, calibrated margin loss.

    .. math:: \ell_i = g_i s_i, \qquad s_i = (2 y_i - 1) f_i

    with :func:`calibrated_derivatives` ``g``, which are constants. Only the gradient means something: train with the
    mean, a new key in every step, and watch another loss.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.losses import ensloss
    >>> loss = lambda scores: ensloss(jax.random.key(0), scores, jnp.array([1, 0, 1])).mean()
    >>> gradient = jax.grad(loss)(jnp.array([0.2, 0.5, -1.0]))
    >>> [float(sign) for sign in jnp.sign(gradient)]  # scores of class 1 are to rise, those of class 0 to fall
    [-1.0, 1.0, -1.0]

    Args:
        key: of this step's loss.
        scores: ``f``, positive for class 1.
        labels: ``y``, 0 or 1.
        box_cox: of :func:`calibrated_derivatives`.

    Returns:
        The pseudo-loss of each example, at least float32.

    Raises:
        ValueError: ``box_cox`` is not finite.

    References:
        Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024,
        arXiv 2409.00908.
    """
    scores = at_least_float32(scores)
    margins = jnp.where(jnp.asarray(labels) > 0, scores, -scores)
    return calibrated_derivatives(key, margins, box_cox=box_cox) * margins


@checked
def calibrated_derivatives(
    key: PRNGKeyArray, margins: Float[Array, "items"], *, box_cox: ScalarLike = 0.0
) -> Float[Array, "items"]:
    r"""Derivatives, at the margins of a batch, of a random loss that is convex, decreasing and calibrated.

    .. math::
        r_j = \max\bigl(-(1 + \lambda z_j)_+^{1 / \lambda},\, -1\bigr), \quad z_j \sim N(0, 1), \qquad
        g_i = \frac{r_{(\operatorname{rank} s_i)}}{\max(s_i, 1)} - 10^{-6}

    The smallest margin gets the smallest derivative. Margins above 1 get less, as for losses that are bounded below
    their tangents there.

    Args:
        key: of the draw.
        margins: ``s``, positive where the classifier is right.
        box_cox: ``lambda`` of the inverse Box-Cox transformation, which decides the distribution of ``r``; 0 is
            ``-exp(z)`` (authors' code: 0, or drawn anew every few epochs by :func:`sample_box_cox`).

    Returns:
        ``g``, negative and at least -1.000001, at least float32. No gradient flows through.

    Raises:
        ValueError: ``box_cox`` is not finite.

    References:
        Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024,
        arXiv 2409.00908.
    """
    check_range("box_cox", box_cox, "(-inf, inf)")
    s = jax.lax.stop_gradient(at_least_float32(margins))
    z = jax.random.normal(key, s.shape, s.dtype)
    lam = jnp.asarray(box_cox, s.dtype)
    smallest_first = jnp.sort(-jnp.exp(jnp.minimum(_log_inverse_box_cox(z, lam), 0.0)))
    in_order = jnp.zeros_like(s).at[jnp.argsort(s)].set(smallest_first)
    return in_order / jnp.maximum(s, 1.0) - 1e-6


@checked
def sample_box_cox(key: PRNGKeyArray, *, low: ScalarLike = -1.0, high: ScalarLike = 1.0) -> Float[Array, ""]:
    """Draws the Box-Cox parameter of the next epochs.

    Args:
        key: of the draw.
        low: the smallest value (authors' code: -1).
        high: the largest (authors' code: 1).

    Returns:
        A number, uniform between ``low`` and ``high``.

    Raises:
        ValueError: ``low`` or ``high`` is not finite.

    References:
        Dai, *EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification*, 2024,
        arXiv 2409.00908.
    """
    check_range("low", low, "(-inf, inf)")
    check_range("high", high, "(-inf, inf)")
    return jax.random.uniform(key, (), minval=low, maxval=high)


def _log_inverse_box_cox(z, lam):
    """ln(1 + lambda z) / lambda, which is z at zero, and minus or plus infinity where there is no logarithm."""
    small = jnp.abs(lam) < 1e-4
    inside = lam * z > -1
    safe = jnp.log1p(jnp.where(inside, lam * z, 0.0)) / jnp.where(small, 1.0, lam)
    outside = jnp.where(lam > 0, -jnp.inf, jnp.inf)
    return jnp.where(small, z * (1 - lam * z / 2), jnp.where(inside, safe, outside))
