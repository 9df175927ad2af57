"""Evidential losses: the network says how much evidence it has for each class.

Evidence ``e >= 0`` founds a Dirichlet distribution of class probabilities, with parameters ``e + 1``. Training fits the
distribution to the labels and pulls the evidence for wrong classes to zero, so that an example that is like none of the
training data gets little evidence for anything. What to make of the evidence is in :mod:`jaxreg.uncertainty`.

All of it is computed so that float32 is enough for evidence from 0 to ``exp(30)``.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def exponential_evidence(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    r"""Evidence as the exponential of the scores.

    .. math:: e_k = \exp(\min(z_k, 30))

    Args:
        logits: scores ``z``. Those of a cosine classifier with scale 30 never exceed the bound.

    Returns:
        ``e``, at least float32.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022, arXiv 2111.09030.
    """
    return jnp.exp(jnp.minimum(at_least_float32(logits), 30.0))


@checked
def dirichlet_kl(concentration: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    r"""KL divergence of a Dirichlet distribution from the uniform one.

    .. math::
        \operatorname{KL}(\operatorname{Dir}(\alpha) \| \operatorname{Dir}(1)) = \ln \Gamma(S) - \ln \Gamma(K) +
        \sum_k \bigl((\alpha_k - 1)(\psi(\alpha_k) - \psi(S)) - \ln \Gamma(\alpha_k)\bigr), \qquad S = \sum_k \alpha_k

    Args:
        concentration: ``alpha``, each at least 1 and finite.

    Returns:
        The divergence in nats, at least float32; 0 where all parameters are 1.

    References:
        Sensoy et al., *Evidential Deep Learning to Quantify Classification Uncertainty*, NeurIPS 2018,
        arXiv 1806.01768.
    """
    evidence = at_least_float32(concentration) - 1
    classes = evidence.shape[-1]
    total = jnp.sum(evidence, axis=-1)
    # The sum regrouped, as differences from no evidence: terms of the size of alpha ln(alpha) would cancel.
    parts = jnp.sum(_rise_of_entropy_part(1, evidence), axis=-1)
    return parts - _rise_of_entropy_part(classes, total) + (classes - 1) * _rise_of_digamma(classes, total)


@checked
def dirichlet_cross_entropy(
    concentration: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    r"""Cross-entropy expected when class probabilities are drawn from a Dirichlet distribution.

    .. math:: \mathbb E_{p \sim \operatorname{Dir}(\alpha)}[-\ln p_y] = \psi(S) - \psi(\alpha_y), \qquad
        S = \sum_k \alpha_k

    Args:
        concentration: ``alpha``, each positive.
        labels: class indices ``y``.

    Returns:
        The loss of each example in nats, at least float32.

    References:
        Sensoy et al., *Evidential Deep Learning to Quantify Classification Uncertainty*, NeurIPS 2018,
        arXiv 1806.01768, equation 4.
    """
    alpha = at_least_float32(concentration)
    return digamma(jnp.sum(alpha, axis=-1)) - digamma(at_labels(alpha, labels))


@checked
def flexible_evidential(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], *, kl_weight: ScalarLike = 1.0
) -> Float[Array, "*batch"]:
    r"""Teaches evidence for the label and takes away that for other classes.

    .. math::
        \ell = \psi(S) - \psi(\alpha_y) + \lambda \operatorname{KL}(\operatorname{Dir}(\tilde\alpha) \|
        \operatorname{Dir}(1)), \qquad \alpha = \operatorname{softplus}(z) + 1

    with :math:`\tilde\alpha` equal to :math:`\alpha` but for a 1 at the label. Which classes are then confused, and
    whether any is known, tells :func:`jaxreg.uncertainty.singleton_opinion`.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import flexible_evidential
    >>> losses = flexible_evidential(jnp.array([[5.0, -5.0, -5.0]]), jnp.array([0]))
    >>> round(float(losses[0]), 4)
    0.311

    Args:
        logits: scores ``z``; the evidence is their softplus.
        labels: class indices ``y``.
        kl_weight: ``lambda >= 0``; let it rise from 0 to 1 in the first ten epochs, before which it keeps the evidence
            from growing at all.

    Returns:
        The loss of each example, at least float32.

    Raises:
        ValueError: ``kl_weight`` is negative.

    References:
        Fan et al., *Flexible Visual Recognition by Evidential Modeling of Confusion and Ignorance*, ICCV 2023,
        arXiv 2309.07403. The fit to the labels is that of Sensoy et al., arXiv 1806.01768 (our choice).
    """
    check_range("kl_weight", kl_weight, "[0, inf)")
    alpha = jax.nn.softplus(at_least_float32(logits)) + 1
    labels = jnp.asarray(labels)
    return dirichlet_cross_entropy(alpha, labels) + kl_weight * dirichlet_kl(_without_label(alpha, labels))


@checked
def tlc_loss(
    expert_logits: Float[Array, "experts items classes"],
    labels: Int[Array, "items"],
    counts: Int[Array, "classes"],
    weights: Float[Array, "experts+1 items"],
    *,
    epoch: ScalarLike,
    kl_period: ScalarLike,
    max_margin: ScalarLike = 0.5,
    scale: ScalarLike = 30.0,
    diversity: ScalarLike = 0.01,
    engage: ScalarLike = 0.54,
    reweighted: bool | Bool[Array, ""] = False,
    beta: ScalarLike = 0.9999,
    head_share: ScalarLike = 0.05,
) -> tuple[Float[Array, "experts items"], Bool[Array, "experts items"]]:
    r"""TLC: each expert learns, with a margin for rare classes, from the examples that still need it.

    .. math::
        \ell^m = -c_y \ln \operatorname{softmax}(f^m - s\, m_y\, \mathbf 1_y)_y + \frac{t}{T_k}
        \operatorname{KL}(\operatorname{Dir}(\tilde\alpha^m) \| \operatorname{Dir}(1)) - d\, \bar\tau^2
        \operatorname{KL}\bigl(\operatorname{softmax}(\bar f / \tau) \,\|\, \operatorname{softmax}(f^m / \tau)\bigr)

    with margins :math:`m_k = M (n_k / \min_j n_j)^{-1/4}`, parameters :math:`\tilde\alpha^m` of
    :func:`exponential_evidence` plus 1, but 1 at the label, and the mean :math:`\bar f` of the experts' scores. Train
    each expert with the mean of its losses over the examples of its mask.

    Args:
        expert_logits: ``f^m``, cosines times ``scale``.
        labels: class indices ``y``.
        counts: ``n``, training examples of each class, at least 1.
        weights: those of :func:`jaxreg.uncertainty.engagement_weights` for the same scores.
        epoch: ``t >= 0``.
        kl_period: ``T_k > 0``, epochs until the second term has weight 1 (authors' code: the epoch from which classes
            are reweighted plus 500, divided by 0.05).
        max_margin: ``M >= 0``, margin of the rarest class (paper: 0.5).
        scale: ``s > 0`` (paper: 30).
        diversity: ``d >= 0`` (authors' code: 0.01).
        engage: in [0, 1): an example engages an expert if its weight is above this share of the largest of the batch
            (authors' code: 0.54).
        reweighted: whether classes have the weights ``c`` of the effective number of examples and temperatures
            ``tau``; otherwise all are 1. The authors' code begins with it late in training.
        beta: in [0, 1), of the effective number (authors' code: 0.9999).
        head_share: in [0, 1]: temperatures are ``1 - head_share`` plus ``head_share`` times the class's count over
            the mean count, divided by the largest (authors' code: 0.05).

    Returns:
        The loss of each example for each expert, at least float32, and the mask of the examples that engage it. No
        gradient flows through the mean scores and the weights.

    Raises:
        ValueError: a number is outside its range.

    References:
        Li et al., *Trustworthy Long-Tailed Classification*, CVPR 2022, arXiv 2111.09030; margins after Cao et al.,
        *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, NeurIPS 2019, arXiv 1906.07413.
    """
    check_range("epoch", epoch, "[0, inf)")
    check_range("kl_period", kl_period, "(0, inf)")
    check_range("max_margin", max_margin, "[0, inf)")
    check_range("scale", scale, "(0, inf)")
    check_range("diversity", diversity, "[0, inf)")
    check_range("engage", engage, "[0, 1)")
    check_range("beta", beta, "[0, 1)")
    check_range("head_share", head_share, "[0, 1]")
    logits, labels = at_least_float32(expert_logits), jnp.asarray(labels)
    n = jnp.maximum(at_least_float32(counts), 1.0)
    margins = max_margin * (n / jnp.min(n)) ** -0.25
    rarity = 1 / -jnp.expm1(n * jnp.log(at_least_float32(jnp.asarray(beta))))
    class_weights = jnp.where(reweighted, rarity / jnp.mean(rarity), 1.0)
    temperatures = 1 - head_share + head_share * n / jnp.mean(n)
    temperatures = jnp.where(reweighted, temperatures / jnp.max(temperatures), 1.0)

    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    log_p = jax.nn.log_softmax(logits - scale * jnp.where(is_label, margins, 0.0))
    fit = -class_weights[labels] * jnp.sum(jnp.where(is_label, log_p, 0.0), axis=-1)
    evidence_of_others = dirichlet_kl(_without_label(exponential_evidence(logits) + 1, labels))
    # Divided first: a temperature of its own for each class is not a shift of the scores.
    log_mean = jax.nn.log_softmax(jax.lax.stop_gradient(jnp.mean(logits, axis=0)) / temperatures)
    log_expert = jax.nn.log_softmax(logits / temperatures)
    distance = jnp.sum(jnp.exp(log_mean) * (log_mean - log_expert), axis=-1)
    losses = fit + epoch / kl_period * evidence_of_others
    losses -= diversity * jnp.square(jnp.mean(temperatures)) * distance
    needed = weights[:-1]
    return losses, needed > engage * jnp.max(needed, axis=1, keepdims=True)


def _without_label(alpha, labels):
    return jnp.where(jax.nn.one_hot(labels, alpha.shape[-1], dtype=bool), 1.0, alpha)


_LARGE = 7  # from here on few terms of the asymptotic series are enough


def _rise_of_digamma(start: int, x):
    """``psi(start + x) - psi(start)``, to a relative precision also for small ``x``."""
    steps = range(start, _LARGE)  # psi(a) = psi(a + 1) - 1 / a
    recurred = sum((x / (n * (n + x)) for n in steps), jnp.zeros_like(x))
    high = max(start, _LARGE)
    return recurred + jnp.log1p(x / high) + _digamma_series(1 / (high + x)) - _digamma_series(1 / high)


def _rise_of_entropy_part(start: int, x):
    r"""The rise from ``start`` to ``start + x`` of ``h(a) = (a - 1) psi(a) - ln Gamma(a) - a``.

    Beyond ``a`` of a few ``h`` is about ``-ln(a) / 2``. Elementary functions only: those of the library are five times
    slower, above all their derivatives, and their difference has no correct digit for large ``a``.
    """
    steps = range(start, _LARGE)  # the recurrences of psi and Gamma
    if not steps:
        return _rise_of_series(start, x)
    small, product = jnp.minimum(x, 8.0), jnp.zeros_like(x)
    for n in steps:
        product += (1 + product) * small / n
    recurred = jnp.log1p(product) - sum((1 + n - start) * small / (n * (n + small)) for n in steps)
    recurred += _rise_of_series(_LARGE, small) - len(steps) * _rise_of_digamma(_LARGE, small)
    harmonic = sum(1 / n for n in range(1, start)) - 0.5772156649015329
    at_start = (start - 1) * harmonic - math.lgamma(start) - start
    large = jnp.maximum(x, 8.0) + start
    far = _entropy_series(1 / large) - (jnp.log(large) + 1 + math.log(2 * math.pi)) / 2 - at_start
    return jnp.where(x < 8, recurred, far)


def _rise_of_series(start, x):
    return _entropy_series(1 / (start + x)) - _entropy_series(1 / start) - jnp.log1p(x / start) / 2


def _digamma_series(i):
    """``psi(a) - ln(a)`` by powers of ``1 / a``."""
    return -i * (1 / 2 + i * (1 / 12 - i * i * (1 / 120 - i * i / 252)))


def _entropy_series(i):
    """``h(a) + (ln(a) + 1 + ln(2 pi)) / 2`` by powers of ``1 / a``."""
    return i * (1 / 3 + i * (1 / 12 + i * (1 / 90 - i * (1 / 120 + i * (1 / 210 - i / 252)))))
