"""Retrieval across models: whether a new model's queries find their like among features that old models stored."""

import jax
import jax.numpy as jnp

from jaxreg.linalg import matmul, unit_vectors
from jaxreg.nans import unless_nan
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, checked


@checked
def compatibility_matrix(
    queries: Float[Array, "models queries features"],
    query_labels: Int[Array, "queries"],
    gallery: Float[Array, "models gallery features"],
    gallery_labels: Int[Array, "gallery"],
) -> Float[Array, "models models"]:
    r"""Accuracy of nearest-neighbour retrieval with each model's queries in each model's gallery.

    .. math:: M_{ij} = \Pr \bigl( y_q = y_{g^*} \bigr), \qquad g^* = \arg\max_g \cos(h_i(x_q), h_j(x_g))

    Args:
        queries: features of the queries by the models ``h_1, ..., h_T``, oldest first.
        query_labels: classes of the queries.
        gallery: features of other examples, to be found, by the same models.
        gallery_labels: classes of these.

    Returns:
        ``M``, with the model of the queries in the rows and that of the gallery in the columns; NaN where a feature is.

    References:
        Biondi et al., *Stationary Representations: Optimally Approximating Compatibility and Implications for
        Improved Model Replacements*, CVPR 2024, arXiv 2405.02581.
    """
    gallery = unit_vectors(gallery)
    query_labels, gallery_labels = jnp.asarray(query_labels), jnp.asarray(gallery_labels)

    def accuracy(query, stored):
        # The query's own length does not change which is nearest.
        similarity = matmul(query, stored.T)
        found = gallery_labels[jnp.argmax(similarity, axis=-1)] == query_labels
        return jnp.mean(unless_nan(found, jnp.max(similarity, axis=-1)))

    return jax.vmap(lambda query: jax.vmap(lambda stored: accuracy(query, stored))(gallery))(at_least_float32(queries))


@checked
def average_compatibility(matrix: Float[Array, "models models"]) -> Float[Array, ""]:
    r"""Share of pairs in which a newer model's queries find more in an older gallery than the older model's own.

    .. math:: \frac{2}{T (T - 1)} \sum_{i > j} [M_{ij} > M_{jj}]

    Args:
        matrix: ``M`` of at least two models, from :func:`compatibility_matrix`. Ties do not count as compatible.

    Returns:
        AC, in [0, 1]; NaN if one of the accuracies it compares is.

    References:
        Biondi et al., *Stationary Representations: Optimally Approximating Compatibility and Implications for
        Improved Model Replacements*, CVPR 2024, arXiv 2405.02581.
    """
    newer, own = _newer(matrix.shape[0]), jnp.diagonal(matrix)
    finds_more = unless_nan(matrix > own, matrix, own)
    return jnp.sum(finds_more, where=newer) / jnp.maximum(jnp.sum(newer), 1)


@checked
def average_accuracy(matrix: Float[Array, "models models"]) -> Float[Array, ""]:
    r"""Mean retrieval accuracy of all models with their own gallery and every older one.

    .. math:: \frac{2}{T (T + 1)} \sum_{i \ge j} M_{ij}

    Args:
        matrix: ``M``, from :func:`compatibility_matrix`.

    Returns:
        AA, in the unit of ``matrix``.

    References:
        Biondi et al., *Stationary Representations: Optimally Approximating Compatibility and Implications for
        Improved Model Replacements*, CVPR 2024, arXiv 2405.02581.
    """
    return jnp.mean(at_least_float32(matrix), where=~_newer(matrix.shape[0]).T)


@checked
def compatible_pairs(
    feat_new: Float[Array, "items features"], feat_old: Float[Array, "items features"], labels: Int[Array, "items"]
) -> Float[Array, ""]:
    r"""Share of the pairs of different examples for which a new model meets the definition of compatibility.

    .. math::
        d(n_i, o_j) \le d(o_i, o_j) \text{ if } y_i = y_j, \qquad d(n_i, o_j) \ge d(o_i, o_j) \text{ otherwise}

    with the distance :math:`1 - \cos`. Compatible by definition is what meets it for all pairs.

    Args:
        feat_new: features ``n`` of the new model.
        feat_old: features ``o`` of the old model, for the same examples.
        labels: classes ``y``.

    Returns:
        The share, in [0, 1]; NaN for a single example, or if a feature is.

    References:
        Biondi et al., *Stationary Representations: Optimally Approximating Compatibility and Implications for
        Improved Model Replacements*, CVPR 2024, arXiv 2405.02581, definition 1; after Shen et al., *Towards
        Backward-Compatible Representation Learning*, CVPR 2020.
    """
    new, old, labels = unit_vectors(feat_new), unit_vectors(feat_old), jnp.asarray(labels)
    closer, before = matmul(new, old.T), matmul(old, old.T)
    met = jnp.where(labels[:, None] == labels, closer >= before, closer <= before)
    return jnp.mean(unless_nan(met, closer, before), where=~jnp.eye(len(labels), dtype=bool))


def _newer(models):
    return jnp.tri(models, k=-1, dtype=bool)
