"""Which of the adapters learnt so far is meant: by how alike instructions are.

Tasks come one after the other, and their data are gone afterwards. Tasks whose instructions read alike share an
adapter, others get one of their own::

    similarities = jnp.stack([tfidf_similarity(current, stored).mean() for stored in groups])
    index, is_new = select_adapter(similarities, threshold=0.9)

A test input goes to the group it resembles most, ``similarities.argmax()``, whatever the threshold.
"""

import math

import jax.numpy as jnp

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Bool, Float, Int, ScalarLike, checked
from jaxreg.validation import check_range

RARE = 1 + math.log(3 / 2)
"""Smoothed inverse document frequency of a word that one of two texts has: 1 + log((1 + 2) / (1 + 1))."""


@checked
def tfidf_similarity(
    a: Float[Array, "n vocabulary"] | Int[Array, "n vocabulary"],
    b: Float[Array, "m vocabulary"] | Int[Array, "m vocabulary"],
) -> Float[Array, "n m"]:
    r"""TF-IDF cosine similarity of every pair of texts, each pair a corpus of its own.

    .. math::
        \cos_{ij} = \frac{\sum_w u_w v_w}{\|u\| \|v\|}, \qquad u_w = a_{iw} \iota_w, \quad v_w = b_{jw} \iota_w

    where a word that both texts have weighs :math:`\iota_w = 1` and another one :math:`\iota_w = 1 + \log\tfrac32`, as
    the smoothed inverse document frequencies of scikit-learn are for two documents.

    >>> import jax.numpy as jnp
    >>> from jaxreg.continual import tfidf_similarity
    >>> what_is_it, what_was_it, where = jnp.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    >>> similarities = tfidf_similarity(what_is_it[None], jnp.stack([what_is_it, what_was_it, where]))
    >>> [round(float(similarity), 3) for similarity in similarities[0]]
    [1.0, 0.503, 0.0]

    Args:
        a: how often each word of a vocabulary is in each of some texts, without stop words.
        b: the same of others.

    Returns:
        Similarities in [0, 1], 0 for a text without words. The authors take the mean over a group of texts.

    References:
        Qiao et al., *Large Continual Instruction Assistant*, arXiv 2410.10868.
    """
    a, b = at_least_float32(a), at_least_float32(b)

    def squares(own, other):
        """Squared lengths of ``own``'s texts (rows) in the corpora with ``other``'s (columns)."""
        square, shared = jnp.square(own), (other > 0).astype(own.dtype)
        both = matmul(square, shared.T)
        return both + RARE**2 * matmul(square, 1 - shared.T)

    lengths = jnp.sqrt(squares(a, b) * squares(b, a).T)
    # A word that only one of the texts has adds nothing to their product.
    product = matmul(a, b.T)
    return jnp.where(lengths > 0, product / jnp.where(lengths > 0, lengths, 1.0), 0.0)


@checked
def select_adapter(
    similarities: Float[Array, "groups"], *, threshold: ScalarLike = 0.9
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    r"""Reuses the adapter of the most similar group, or asks for a new one.

    .. math:: g = \arg\max_g s_g \text{ if } \max_g s_g \ge t, \text{ else a new one}

    Args:
        similarities: ``s``, of the current task to each group; none for the first task.
        threshold: ``t`` in [0, 1], itself similar enough (authors' code: 0.9 where instructions have one template,
            0.3 where they are diverse).

    Returns:
        The index of the adapter, for a new one the number of groups, and whether it is new.

    Raises:
        ValueError: ``threshold`` is outside [0, 1].

    References:
        Qiao et al., *Large Continual Instruction Assistant*, arXiv 2410.10868.
    """
    check_range("threshold", threshold, "[0, 1]")
    if not len(similarities):
        return jnp.array(0), jnp.array(True)
    is_new = jnp.max(similarities) < threshold
    return jnp.where(is_new, len(similarities), jnp.argmax(similarities)), is_new
