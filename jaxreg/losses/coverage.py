"""Training for the best of several attempts.

If an answer may be drawn N times and only one draw has to be right, what counts is the coverage ``1 - (1 - p)^N``, with
``p`` the model's probability of the right answer, not ``p`` itself. Cross-entropy goes on pushing ``p`` to one long
after that has stopped to help, and pays for it where the model is wrong. Direct coverage optimization (DCO) stops
pushing an example as soon as ``p`` is well above ``1 / N``.
"""

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def dco_loss(log_prob: Float[Array, "*batch"], *, n: ScalarLike) -> Float[Array, "*batch"]:
    r"""DCO: minus the log of the chance that one of several draws is right.

    .. math:: -\log\bigl(1 - (1 - p)^N\bigr)

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import dco_loss
    >>> [round(float(loss), 4) for loss in dco_loss(jnp.log(jnp.array([0.5, 0.001])), n=4)]
    [0.0645, 5.523]

    Args:
        log_prob: ``log p``, of the whole right answer: of the label, or the sum over its tokens
            (:func:`dco_sequence`). Above -1e-7 it counts as -1e-7.
        n: ``N >= 1``, draws (paper: 16 to 4096, that of the test); 1 is cross-entropy.

    Returns:
        The loss of each example, at least float32: ``log(1 / p) - log N`` for rare answers.

    Raises:
        ValueError: ``n`` is below 1.

    References:
        Chen et al., *Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical
        Reasoning*, arXiv 2502.07154.
    """
    check_range("n", n, "[1, inf)")
    return -_log_coverage(_below_one(log_prob), n)


@checked
def dco_sequence(
    token_logits: Float[Array, "*batch length classes"],
    tokens: Int[Array, "*batch length"],
    mask: Bool[Array, "*batch length"],
    *,
    n: ScalarLike,
) -> Float[Array, "*batch"]:
    r"""DCO of a whole answer, token by token.

    .. math:: -\log\bigl(1 - (1 - p)^N\bigr), \qquad \log p = \sum_t m_t \log \operatorname{softmax}(z_t)_{y_t}

    Args:
        token_logits: ``z``, scores of the next token at every position of the answer.
        tokens: ``y``, the right answer.
        mask: ``m``, which positions belong to the answer.
        n: ``N >= 1``, draws.

    Returns:
        The loss of each answer, at least float32.

    Raises:
        ValueError: ``n`` is below 1.

    References:
        Chen et al., arXiv 2502.07154.
    """
    log_p = at_labels(jax.nn.log_softmax(at_least_float32(token_logits)), tokens)
    return dco_loss(jnp.sum(log_p, axis=-1, where=jnp.asarray(mask)), n=n)


@checked
def dco_step(
    log_probs: Float[Array, "*batch length"], mask: Bool[Array, "*batch length"], *, n: ScalarLike
) -> Float[Array, "*batch"]:
    r"""Stepwise DCO, for proofs that are searched step by step: every step may be drawn several times.

    .. math:: -\sum_t m_t \log\bigl(1 - (1 - p_t)^{N_\text{eff}}\bigr)

    Args:
        log_probs: ``log p_t``, of each right step given those before.
        mask: ``m``, which steps there are.
        n: ``N_eff >= 1``, draws a step, to be tuned; it stands for the width of the search.

    Returns:
        The loss of each proof, at least float32.

    Raises:
        ValueError: ``n`` is below 1.

    References:
        Chen et al., arXiv 2502.07154.
    """
    return jnp.sum(dco_loss(log_probs, n=n), axis=-1, where=jnp.asarray(mask))


@checked
def confidence_factor(log_prob: Float[Array, "*batch"], *, n: ScalarLike) -> Float[Array, "*batch"]:
    r"""The overconfidence factor: what DCO leaves of cross-entropy's gradient.

    .. math:: F = \frac{N (1 - p)^{N - 1} p}{1 - (1 - p)^N}, \qquad \nabla \ell_\text{DCO} = F \; \nabla(-\log p)

    About 1 for ``p`` far below ``1 / N``, about 0 for ``p`` far above. Always 1 for one draw.

    Args:
        log_prob: ``log p``, of the right answer. Above -1e-7 it counts as -1e-7.
        n: ``N >= 1``, draws.

    Returns:
        The factor of each example, in [0, 1] but for rounding.

    Raises:
        ValueError: ``n`` is below 1.

    References:
        Chen et al., arXiv 2502.07154.
    """
    check_range("n", n, "[1, inf)")
    # Of a probability of zero, the limit.
    log_p = jnp.maximum(_below_one(log_prob), -1e30)
    return jnp.exp(jnp.log(n) + (n - 1) * _log_one_minus(log_p) + log_p - _log_coverage(log_p, n))


def _below_one(log_prob):
    return jnp.minimum(at_least_float32(log_prob), -1e-7)


def _log_one_minus(log_p):
    """``log(1 - exp(log_p))``, by the form that is exact, with its slope, for small ``p`` or the one for large."""
    small = log_p < -0.7
    direct = jnp.log1p(-jnp.exp(jnp.where(small, log_p, -1.0)))
    return jnp.where(small, direct, jnp.log(-jnp.expm1(jnp.where(small, -1.0, log_p))))


def _log_coverage(log_p, n):
    # Where N p is small, 1 - (1 - p)^N is N p (1 - (N - 1) p / 2), which p may underflow in but not log p.
    rare = log_p + jnp.log(n) < -7.0
    of_rare = jnp.log(n) + log_p - 0.5 * (n - 1) * jnp.exp(jnp.where(rare, log_p, -30.0))
    log_p = jnp.where(rare, -1.0, log_p)
    return jnp.where(rare, of_rare, _log_one_minus(n * _log_one_minus(log_p)))
