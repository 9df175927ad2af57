"""Compatibility of models by hand and against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import average_accuracy, average_compatibility, compatibility_matrix, compatible_pairs

MATRIX = jnp.array([[0.5, 0.0, 0.0], [0.6, 0.7, 0.0], [0.5, 0.8, 0.9]])


def test_average_compatibility_by_hand():
    """Of three pairs, (2, 1) and (3, 2) are better; (3, 1) is a tie, which does not count."""
    np.testing.assert_allclose(average_compatibility(MATRIX), 2 / 3, rtol=1e-6)


def test_average_accuracy_is_that_of_the_lower_triangle():
    np.testing.assert_allclose(average_accuracy(MATRIX), (0.5 + 0.6 + 0.7 + 0.5 + 0.8 + 0.9) / 6, rtol=1e-6)


def test_matrix_equals_a_loop():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(3, 11, 4)), rng.normal(size=(3, 17, 4))
    query_labels, gallery_labels = rng.integers(0, 3, 11), rng.integers(0, 3, 17)
    expected = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            cosines = queries[i] @ gallery[j].T
            cosines /= np.linalg.norm(queries[i], axis=1)[:, None] * np.linalg.norm(gallery[j], axis=1)
            expected[i, j] = np.mean(gallery_labels[cosines.argmax(1)] == query_labels)
    ours = compatibility_matrix(queries.astype(np.float32), query_labels, gallery.astype(np.float32), gallery_labels)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


class TestCompatiblePairs:
    def test_a_model_is_compatible_with_itself(self):
        features = np.random.default_rng(0).integers(-2, 3, (6, 4)).astype(np.float32)
        assert float(compatible_pairs(features, features, np.array([0, 0, 1, 1, 2, 2]))) == 1.0

    def test_the_opposite_model_is_not(self):
        """Two classes on one axis: the old model has it right, the opposite one everything wrong."""
        old = jnp.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
        labels = jnp.array([0, 0, 1, 1])
        assert float(compatible_pairs(-old, old, labels)) == 0.0
        assert float(compatible_pairs(old, -old, 1 - labels)) == 0.0

    @pytest.mark.parametrize("seed", range(3))
    def test_equals_a_loop(self, seed):
        rng = np.random.default_rng(seed)
        new, old = rng.normal(size=(2, 7, 3))
        labels = rng.integers(0, 2, 7)
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        old /= np.linalg.norm(old, axis=1, keepdims=True)
        met = [
            (new[i] @ old[j] >= old[i] @ old[j]) == (labels[i] == labels[j])
            for i in range(7)
            for j in range(7)
            if i != j
        ]
        ours = compatible_pairs(new.astype(np.float32), old.astype(np.float32), labels)
        np.testing.assert_allclose(ours, np.mean(met), rtol=1e-6)
