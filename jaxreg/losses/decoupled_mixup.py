"""Decoupled mixup: a mixed input should show both of its classes surely, not each of them hesitantly.

With mixed labels the two classes of a mixture compete for the same probability: what one wins the other loses, and a
network is never sure of both. The decoupled terms take the competitor out of each softmax, so that either class is
judged against the classes that are not in the mixture. With sigmoids the same is had from larger targets.

How the inputs are mixed is up to the caller: :func:`jaxreg.data.mixup` is one way.
"""

import jax
import jax.numpy as jnp

from jaxreg.axes import at_labels
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range

_LEAST_SHARE = 1e-3
"""A class with a smaller share than this is not in the mixture, as in the authors' code."""


@checked
def decoupled_mixup_ce(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    partner_labels: Int[Array, "*batch"],
    weight: ScalarLike | Float[Array, "*batch"],
    *,
    eta: ScalarLike = 0.1,
    labelled: Bool[Array, "*batch"] | None = None,
    partner_labelled: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy with mixed labels, plus each class's cross-entropy without its competitor.

    .. math::
        \ell = -w \log p_a - (1 - w) \log p_b
        - \eta \Bigl(\log \frac{e^{z_a}}{\sum_{k \ne b} e^{z_k}} + \log \frac{e^{z_b}}{\sum_{k \ne a} e^{z_k}}\Bigr),
        \qquad p = \operatorname{softmax}(z)

    The decoupled terms do not depend on the weight. They are left out where both labels are the same, and where the
    weight is within 0.001 of 0 or 1.

    >>> import jax.numpy as jnp
    >>> from jaxreg.losses import decoupled_mixup_ce
    >>> logits = jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> round(float(decoupled_mixup_ce(logits, jnp.array(0), jnp.array(1), 0.7)), 4)
    0.7979

    Args:
        logits: scores ``z`` of the mixed inputs.
        labels: class ``a`` of each example itself, in ``[0, classes)``.
        partner_labels: class ``b`` of the example that it is mixed with.
        weight: ``w`` in [0, 1], the share of the example itself, one for all or one for each.
        eta: ``eta >= 0``, weight of the decoupled terms (paper: 0.1); 0 is mixup.
        labelled: where ``a`` is a true label: its decoupled term is left out elsewhere, where ``a`` was only predicted.
            None means everywhere.
        partner_labelled: the same for ``b``.

    Returns:
        The loss of each mixture, at least float32.

    Raises:
        ValueError: ``weight`` is outside [0, 1] or ``eta`` is negative.

    References:
        Liu et al., *Harnessing Hard Mixed Samples with Decoupled Regularizer*, NeurIPS 2023, arXiv 2203.10761.
    """
    check_range("weight", weight, "[0, 1]")
    check_range("eta", eta, "[0, inf)")
    z = at_least_float32(logits)
    own, partner = at_labels(z, labels), at_labels(z, partner_labels)
    same = labels == partner_labels
    classes = jnp.arange(z.shape[-1])
    others = _log_sum_without(z, (classes == labels[..., None]) | (classes == partner_labels[..., None]))
    # One pass over the classes serves all three softmaxes.
    everything = jnp.logaddexp(jnp.logaddexp(others, own), jnp.where(same, jnp.finfo(z.dtype).min, partner))
    cross_entropy = everything - weight * own - (1 - weight) * partner

    terms = jax.nn.softplus(others - jnp.stack([own, partner]))
    keep = [jnp.ones_like(same) if side is None else side for side in (labelled, partner_labelled)]
    mixed = ~same & (weight > _LEAST_SHARE) & (weight < 1 - _LEAST_SHARE)
    return cross_entropy + eta * jnp.sum(jnp.where(mixed & jnp.stack(keep), terms, 0.0), axis=0)


@checked
def decoupled_regularizer(
    logits: Float[Array, "*batch classes"], targets: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    r"""The decoupled terms of a mixture of any number of classes.

    .. math:: -\sum_{i \in M} \log \frac{e^{z_i}}{e^{z_i} + \sum_{k \notin M} e^{z_k}}

    where :math:`M` are the classes with a share above 0.001. It is 0 where there is only one.

    Args:
        logits: scores ``z`` of the mixed inputs.
        targets: the mixed one-hot labels.

    Returns:
        The sum over the mixed classes for each mixture, at least float32.

    References:
        Liu et al., *Harnessing Hard Mixed Samples with Decoupled Regularizer*, NeurIPS 2023, arXiv 2203.10761.
    """
    z = at_least_float32(logits)
    mixed = targets > _LEAST_SHARE
    several = jnp.sum(mixed, axis=-1, keepdims=True) > 1
    terms = jax.nn.softplus(_log_sum_without(z, mixed)[..., None] - z)
    return jnp.sum(jnp.where(mixed & several, terms, 0.0), axis=-1)


@checked
def decoupled_mixup_bce(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    partner_labels: Int[Array, "*batch"],
    weight: ScalarLike | Float[Array, "*batch"],
    *,
    threshold: ScalarLike = 0.8,
    power: ScalarLike = 1.0,
    labelled: Bool[Array, "*batch"] | None = None,
    partner_labelled: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Binary cross-entropy of every class, with targets of a mixture that may add up to 2.

    .. math::
        \ell = \sum_k \log(1 + e^{z_k}) - y_k z_k, \qquad y = r(w)\, e_a + r(1 - w)\, e_b

    with :math:`r` of :func:`rescale_lambda`. Where both labels are the same the target is at most 1.

    Args:
        logits: scores ``z`` of the mixed inputs.
        labels: class ``a`` of each example itself, in ``[0, classes)``.
        partner_labels: class ``b`` of the example that it is mixed with.
        weight: ``w`` in [0, 1], the share of the example itself, one for all or one for each.
        threshold: ``t`` in (0, 1], the share from which on a class counts as fully there (paper: 0.8).
        power: positive, shape of the rise below it (paper: 1).
        labelled: where ``a`` is a true label: elsewhere its target is its plain share. None means everywhere.
        partner_labelled: the same for ``b``.

    Returns:
        The loss of each mixture, summed over classes, at least float32.

    Raises:
        ValueError: ``weight``, ``threshold`` or ``power`` is outside its range.

    References:
        Liu et al., *Harnessing Hard Mixed Samples with Decoupled Regularizer*, NeurIPS 2023, arXiv 2203.10761.
    """
    check_range("weight", weight, "[0, 1]")
    z = at_least_float32(logits)
    weight = jnp.broadcast_to(at_least_float32(jnp.asarray(weight)), labels.shape)

    def target(share, true):
        rescaled = rescale_lambda(share, threshold=threshold, power=power)
        return rescaled if true is None else jnp.where(true, rescaled, share)

    own, partner = target(weight, labelled), target(1 - weight, partner_labelled)
    same = labels == partner_labels
    own, partner = jnp.where(same, jnp.minimum(own + partner, 1.0), own), jnp.where(same, 0.0, partner)
    z_own, z_partner = at_labels(z, labels), at_labels(z, partner_labels)
    return jnp.sum(jax.nn.softplus(z), axis=-1) - own * z_own - partner * z_partner


@checked
def rescale_lambda(
    weight: ScalarLike | Float[Array, "*batch"], *, threshold: ScalarLike = 0.8, power: ScalarLike = 1.0
) -> Float[Array, "*batch"]:
    r"""How surely a class with a given share of a mixture should be seen.

    .. math:: r(w) = \min\bigl((w / t)^q, 1\bigr)

    Args:
        weight: ``w`` in [0, 1], the share.
        threshold: ``t`` in (0, 1], the share from which on it is 1 (paper: 0.8).
        power: ``q > 0`` (paper: 1).

    Returns:
        The target of each share, at least float32.

    Raises:
        ValueError: ``weight``, ``threshold`` or ``power`` is outside its range.

    References:
        Liu et al., *Harnessing Hard Mixed Samples with Decoupled Regularizer*, NeurIPS 2023, arXiv 2203.10761.
    """
    check_range("weight", weight, "[0, 1]")
    check_range("threshold", threshold, "(0, 1]")
    check_range("power", power, "(0, inf)")
    return jnp.minimum(at_least_float32(jnp.asarray(weight)) / threshold, 1.0) ** power


def _log_sum_without(z, left_out):
    # The least finite number instead of -inf: with every class left out the gradient stays 0 rather than NaN.
    return jax.nn.logsumexp(jnp.where(left_out, jnp.finfo(z.dtype).min, z), axis=-1)
