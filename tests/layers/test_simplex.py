"""The simplex by its Gram matrix; the classifier by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.layers import FixedSimplexClassifier, simplex_vertices


@pytest.mark.parametrize("d", [1, 2, 3, 9, 200])
def test_vertices_are_unit_equidistant_and_centred(d):
    vertices = np.asarray(simplex_vertices(d), np.float64)
    gram = np.full((d + 1, d + 1), -1 / d)
    np.fill_diagonal(gram, 1.0)
    np.testing.assert_allclose(vertices @ vertices.T, gram, atol=1e-6)
    np.testing.assert_allclose(vertices.sum(axis=0), np.zeros(d), atol=1e-5)


def test_a_dimension_below_one_is_refused():
    with pytest.raises(ValueError, match=r"d must be in \[1, inf\), got 0"):
        simplex_vertices(0)


class TestFixedSimplexClassifier:
    def test_logits_are_products_with_the_vertices_and_nothing_is_learnt(self):
        classifier = FixedSimplexClassifier(5)
        features = jax.random.normal(jax.random.key(0), [2, 3, 4])
        variables = classifier.init(jax.random.key(1), features)
        assert not jax.tree.leaves(variables)
        expected = np.einsum("...f,kf->...k", features, simplex_vertices(4))
        np.testing.assert_allclose(classifier.apply(variables, features), expected, rtol=1e-5, atol=1e-6)

    def test_a_vertex_is_its_own_class(self):
        logits = FixedSimplexClassifier(8).apply({}, simplex_vertices(7))
        np.testing.assert_allclose(logits, np.where(np.eye(8), 1.0, -1 / 7), atol=1e-6)

    def test_half_precision_stays(self):
        assert FixedSimplexClassifier(4).apply({}, jnp.ones([2, 3], jnp.bfloat16)).dtype == jnp.bfloat16

    def test_wrong_widths_are_named(self):
        with pytest.raises(ValueError, match="5 classes need features of 4 entries, got 5"):
            FixedSimplexClassifier(5).apply({}, jnp.ones([2, 5]))
        with pytest.raises(ValueError, match="num_classes must be in"):
            FixedSimplexClassifier(1).apply({}, jnp.ones([2, 0]))
