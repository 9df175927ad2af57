"""Routing against scikit-learn's TF-IDF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from jaxreg.continual import select_adapter, tfidf_similarity

TEXTS = [
    "Answer with the option's letter from the given choices directly",
    "Answer the question using a single word or phrase",
    "What is the object in the image? Answer with a word, a single word",
    "Please provide the bounding box coordinate of the region",
    "Answer the question using a single phrase",
]


def test_similarities_are_scikit_learns_of_each_pair_alone():
    counts = CountVectorizer(stop_words="english").fit_transform(TEXTS).toarray()
    ours = tfidf_similarity(counts[:3], counts)
    expected = np.empty((3, 5))
    for i, j in np.ndindex(3, 5):
        pair = TfidfVectorizer(stop_words="english").fit_transform([TEXTS[i], TEXTS[j]])
        expected[i, j] = cosine_similarity(pair[0], pair[1])[0, 0]
    assert np.unique(expected.round(3)).size > 4
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_text_without_words_resembles_nothing():
    np.testing.assert_array_equal(tfidf_similarity(np.zeros((1, 3)), np.eye(3)), 0.0)


@pytest.mark.parametrize(
    ("similarities", "index", "is_new"),
    [
        ([0.2, 0.95, 0.91], 1, False),
        ([0.2, 0.9], 1, False),
        ([0.2, 0.8999], 2, True),
        ([], 0, True),
    ],
)
def test_similar_enough_is_at_the_threshold(similarities, index, is_new):
    for function in (select_adapter, jax.jit(select_adapter)):
        chosen, new = function(jnp.array(similarities, jnp.float32), threshold=jnp.float32(0.9))
        assert (int(chosen), bool(new)) == (index, is_new)


def test_a_bad_threshold_is_named():
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 1.5"):
        select_adapter(np.ones(2), threshold=1.5)
