"""FalseFalseTrue, counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import false_false_true, prediction_variance

LABELS = jnp.array([0, 1, 2, 0, 1, 2, 0, 1])
A = jnp.array([1, 0, 2, 1, 1, 0, 2, 0])  # wrong but at 2 and 4
B = jnp.array([2, 0, 0, 0, 1, 1, 1, 2])  # wrong but at 3 and 4
ENSEMBLE = jnp.array([0, 0, 2, 0, 1, 2, 1, 1])  # right but at 1 and 6


def test_examples_that_only_the_ensemble_gets_right_are_counted():
    # Both are wrong at 0, 1, 5, 6, 7, of which the ensemble is right at 0, 5, 7.
    np.testing.assert_allclose(false_false_true(A, B, ENSEMBLE, LABELS), 3 / 8)


@pytest.mark.parametrize("predictions", [(A, B, A), (A, B, B), (LABELS, B, LABELS)])
def test_an_ensemble_that_follows_a_member_gains_nothing(predictions):
    assert false_false_true(*predictions, LABELS) == 0


def test_prediction_variance_of_two_models_is_half_their_squared_distance():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 5)).astype(np.float32)
    expected = ((probabilities[0] - probabilities[1]) ** 2).sum(-1) / 2
    np.testing.assert_allclose(prediction_variance(probabilities), expected, rtol=1e-5)


def test_prediction_variance_is_unbiased():
    """Of the mean over many pairs of the same models: that of all of them."""
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), (6, 4)).astype(np.float32)
    pairs = [probabilities[[a, b]] for a in range(6) for b in range(a)]
    of_pairs = np.mean([prediction_variance(pair) for pair in pairs], axis=0)
    np.testing.assert_allclose(prediction_variance(probabilities), of_pairs, rtol=1e-5)


def test_one_model_has_no_variance():
    with pytest.raises(ValueError, match="at least 2 models, got 1"):
        prediction_variance(np.ones((1, 2, 3), np.float32))
