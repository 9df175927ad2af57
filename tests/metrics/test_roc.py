"""AUROC against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxreg.metrics import auroc

AREA = jax.jit(auroc)


@pytest.mark.parametrize("levels", [3, 20, 10**6], ids="{} different scores".format)
def test_equals_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    positives = rng.random(200) < 0.3
    scores = (rng.integers(0, levels, 200) + levels // 2 * positives).astype(np.float32)
    np.testing.assert_allclose(AREA(scores, positives), roc_auc_score(positives, scores), rtol=1e-6)


def test_orders_scores_without_bound():
    scores, positives = jnp.array([jnp.inf, 1.0, -jnp.inf, jnp.inf]), jnp.array([True, False, False, False])
    assert float(AREA(scores, positives)) == pytest.approx(5 / 6)


def test_many_examples_lose_no_digits():
    """Positives are the upper half of n different scores, but for one that is below all others."""
    n = 100_000
    positives = np.arange(n) >= n // 2
    scores = np.arange(n, dtype=np.float32)
    scores[-1] = -1.0
    np.testing.assert_allclose(auroc(scores, positives), 1 - 2 / n, rtol=2e-7)


def test_examples_that_do_not_count_may_have_any_score():
    rng = np.random.default_rng(0)
    scores, positives, counted = rng.normal(size=200).astype(np.float32), rng.random(200) < 0.3, rng.random(200) < 0.5
    expected = roc_auc_score(positives[counted], scores[counted])
    scores[~counted] = np.nan
    np.testing.assert_allclose(auroc(scores, positives, where=counted), expected, rtol=1e-6)


def test_negated_scores_mirror_and_maps_agree():
    scores = jax.random.normal(jax.random.key(0), [3, 50]).round(1)
    positives = jax.random.bernoulli(jax.random.key(1), 0.4, [3, 50])
    areas, mirrored = jax.vmap(auroc)(scores, positives), jax.vmap(auroc)(-scores, positives)
    np.testing.assert_allclose(areas + mirrored, 1.0, rtol=1e-6)
    expected = [roc_auc_score(p, s) for p, s in zip(positives, scores, strict=True)]
    np.testing.assert_allclose(areas, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("scores", "positives"),
    [([1.0, np.nan, 0.0], [True, False, False]), ([1.0, 2.0], [True, True]), ([1.0, 2.0], [False, False])],
    ids=["NaN score", "no negatives", "no positives"],
)
def test_undefined_areas_are_nan(scores, positives):
    assert np.isnan(auroc(jnp.array(scores), jnp.array(positives)))
