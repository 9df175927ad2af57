"""FalseFalseTrue, counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import false_false_true

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
