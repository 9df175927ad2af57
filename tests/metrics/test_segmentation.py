"""Intersection over union against scikit-learn's Jaccard score."""

import jax
import numpy as np
from sklearn.metrics import jaccard_score

from jaxreg.metrics import class_iou

IOU = jax.jit(class_iou, static_argnames="num_classes")


def test_equals_the_jaccard_score_over_all_images():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 4, (2, 3, 6, 5))
    expected = jaccard_score(labels.ravel(), predictions.ravel(), average=None)
    np.testing.assert_allclose(IOU(predictions, labels, num_classes=4), expected, rtol=1e-6)


def test_ignored_pixels_do_not_count_and_absent_classes_have_no_value():
    predictions, labels = np.array([[0, 1, 1, 0]]), np.array([[0, 1, 255, 255]])
    np.testing.assert_array_equal(IOU(predictions, labels, num_classes=3), [1.0, 1.0, np.nan])
