"""Losses that compare the features of examples with each other."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.linalg import unit_vectors
from jaxreg.typing import Array, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def hoc_loss(
    feat_new: Float[Array, "items features"],
    feat_old: Float[Array, "items features"],
    labels: Int[Array, "items"],
    *,
    mu: ScalarLike = 10.0,
    same_class: Literal["zero", "exclude"] = "zero",
) -> Float[Array, "items"]:
    r"""HOC: keeps a new model's features compatible with those that an old model gave the same examples.

    .. math::
        s_{ij} = \mu \langle o_i, n_j \rangle, \qquad
        \ell_i = -s_{ii} + \log \sum_j \exp\bigl(s_{ij}\,[y_i \ne y_j]\bigr)

    with normalized features, :math:`o` old and :math:`n` new. The paper trains with
    :math:`\lambda \operatorname{CE} + (1 - \lambda)\, \ell`, :math:`\lambda = 0.1`, on a classifier that is fixed
    (:class:`jaxreg.layers.FixedSimplexClassifier`).

    Args:
        feat_new: features ``n`` of the model in training.
        feat_old: features ``o`` of the model before, for the same examples. No gradient flows through them.
        labels: classes ``y``.
        mu: > 0, the inverse temperature (paper: 10).
        same_class: what becomes of the other examples of the class. ``"zero"``, as in the authors' code and above:
            each, the example itself included, adds ``exp(0) = 1`` to the sum. ``"exclude"``: they leave the sum, and
            the example itself stays with ``exp(s_ii)``, as in InfoNCE.

    Returns:
        The loss of each example, at least float32; at least ``-mu``.

    Raises:
        ValueError: ``mu`` is not positive.

    References:
        Biondi et al., *Stationary Representations: Optimally Approximating Compatibility and Implications for
        Improved Model Replacements*, CVPR 2024, arXiv 2405.02581, equation 4.
    """
    check_range("mu", mu, "(0, inf)")
    labels = jnp.asarray(labels)
    similarity = mu * unit_vectors(jax.lax.stop_gradient(feat_old)) @ unit_vectors(feat_new).T
    same = labels[:, None] == labels
    if same_class == "zero":
        others = jnp.where(same, 0.0, similarity)
    else:
        others = jnp.where(same & ~jnp.eye(len(labels), dtype=bool), -jnp.inf, similarity)
    return jax.nn.logsumexp(others, axis=1) - jnp.diagonal(similarity)
