"""Naive Bayes against scikit-learn's with shared variances, and against discriminant analysis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.naive_bayes
from scipy.special import log_softmax

from jaxreg.structured import as_linear, fit_naive_bayes, naive_bayes_logits

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 40)
FEATURES = (RNG.normal(size=(40, 4)) * [1, 2, 0.5, 3] + RNG.normal(size=(3, 4))[LABELS] + 50).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda x, y: fit_naive_bayes(x, y, num_classes=3))(FEATURES, LABELS)


def test_moments_are_those_of_the_classes(params):
    x = FEATURES.astype(np.float64)
    mean = np.stack([x[k == LABELS].mean(0) for k in range(3)])
    np.testing.assert_allclose(params.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(params.var, np.square(x - mean[LABELS]).mean(0), rtol=1e-4)
    np.testing.assert_allclose(np.exp(params.log_prior), (np.bincount(LABELS) + 1) / 43, rtol=1e-6)


def test_probabilities_are_scikit_learns_with_shared_variances(params):
    model = sklearn.naive_bayes.GaussianNB().fit(FEATURES.astype(np.float64), LABELS)
    model.var_ = np.broadcast_to(np.asarray(params.var, np.float64), (3, 4))
    model.class_prior_ = (np.bincount(LABELS) + 1) / 43
    ours = jax.nn.log_softmax(naive_bayes_logits(params, FEATURES))
    np.testing.assert_allclose(ours, model.predict_log_proba(FEATURES.astype(np.float64)), rtol=1e-3, atol=1e-3)


def test_logits_are_those_of_discriminant_analysis_with_a_diagonal_covariance(params):
    """log pi + x S^-1 mu - mu S^-1 mu / 2, the same up to one number a row."""
    mean, inverse = np.asarray(params.mean, np.float64), np.diag(1 / np.asarray(params.var, np.float64))
    scores = FEATURES @ inverse @ mean.T - 0.5 * np.diag(mean @ inverse @ mean.T) + np.asarray(params.log_prior)
    ours = np.asarray(naive_bayes_logits(params, FEATURES))
    np.testing.assert_allclose(log_softmax(ours, -1), log_softmax(scores, -1), atol=1e-3)


def test_as_linear_differs_by_one_number_a_row():
    centred = fit_naive_bayes(FEATURES - 50, LABELS, num_classes=3)
    weights, biases = as_linear(centred)
    gap = (FEATURES - 50) @ np.asarray(weights) + biases - naive_bayes_logits(centred, FEATURES - 50)
    np.testing.assert_allclose(gap, np.broadcast_to(np.asarray(gap).mean(-1, keepdims=True), gap.shape), atol=1e-4)
    np.testing.assert_allclose(gap[:, 0], 0.5 * np.sum(np.square(FEATURES - 50) / centred.var, -1), rtol=1e-4)


def test_two_classes_at_plus_and_minus_mu():
    """Unit variance around the means: the weights differ by 2 mu, and the logits by 2 mu x."""
    mu = np.array([1.0, -0.5, 2.0], np.float32)
    x = np.concatenate([mu + 1, mu - 1, -mu + 1, -mu - 1]).reshape(4, 3)
    params = fit_naive_bayes(x, np.array([0, 0, 1, 1]), num_classes=2)
    weights, biases = as_linear(params)
    np.testing.assert_allclose(weights[:, 0] - weights[:, 1], 2 * mu, rtol=1e-5)
    np.testing.assert_allclose(biases[0] - biases[1], 0.0, atol=1e-5)


def test_weights_of_zero_leave_examples_out():
    kept = np.arange(40) < 25
    ours = fit_naive_bayes(FEATURES, LABELS, num_classes=3, weights=kept.astype(np.float32))
    expected = fit_naive_bayes(FEATURES[:25], LABELS[:25], num_classes=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, expected)


def test_missing_classes_and_constant_features_keep_logits_finite():
    x = np.array([[1.0, 5.0], [2.0, 5.0]], np.float32)
    params = fit_naive_bayes(x, np.array([0, 1]), num_classes=3, var_floor=0.1)
    np.testing.assert_allclose(params.mean[2], [1.5, 5.0])
    np.testing.assert_allclose(params.var, [0.1, 0.1], rtol=1e-6)
    assert np.isfinite(naive_bayes_logits(params, jnp.asarray(x))).all()


@pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("var_floor", 0.0)])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in .*, got {value}"):
        fit_naive_bayes(FEATURES, LABELS, **{"num_classes": 3, name: value})
