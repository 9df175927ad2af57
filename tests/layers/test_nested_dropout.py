"""Nested dropout against its distribution by hand and counts of many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.layers import NestedDropout, best_width, nested_dropout, nested_pmf, truncate

ONES = np.ones((2, 8), np.float32)
draw = jax.jit(jax.vmap(lambda key: nested_dropout(key, ONES, std=4.0)))


def test_distribution_by_hand():
    expected = [0.309427, 0.256524, 0.187677, 0.121173, 0.069043, 0.034717, 0.015405, 0.006033]
    np.testing.assert_allclose(nested_pmf(8, std=4.0), expected, atol=1e-6)


def test_a_wide_distribution_is_uniform_and_a_narrow_one_sits_at_its_mean():
    np.testing.assert_allclose(nested_pmf(8, std=1e5), 1 / 8, rtol=1e-5)
    np.testing.assert_allclose(nested_pmf(8, std=1e-3, mean=3.0), np.eye(8)[2], atol=1e-6)


def test_one_number_of_first_features_is_kept_for_the_whole_batch():
    samples = np.asarray(draw(jax.random.split(jax.random.key(0), 5000)))
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    assert set(np.unique(samples)) == {0.0, 1.0}
    assert (np.diff(samples[:, 0], axis=-1) <= 0).all()
    pmf = np.exp(-((np.arange(1, 9) / 4) ** 2))
    kept = np.cumsum(pmf[::-1])[::-1] / pmf.sum()
    np.testing.assert_allclose(samples[:, 0].mean(0), kept, atol=4.5 * np.sqrt(0.25 / 5000))


def test_truncation_keeps_the_first_features_unscaled():
    features = np.arange(1.0, 9.0, dtype=np.float32)[None]
    np.testing.assert_array_equal(truncate(features, 3), [[1, 2, 3, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(jax.jit(truncate)(features, 8), features)
    assert truncate(jnp.asarray(features, jnp.bfloat16), 3).dtype == jnp.bfloat16


@pytest.mark.parametrize(("accuracies", "width"), [([0.5, 0.9, 0.9], 2), ([0.5, 0.9, 0.91], 3), ([0.7, 0.2, 0.1], 1)])
def test_best_width_is_the_smallest_of_the_best(accuracies, width):
    assert int(best_width(np.array(accuracies))) == width


def test_the_layer_draws_from_the_dropout_stream_and_rests_when_deterministic():
    layer = NestedDropout(std=4.0)
    np.testing.assert_array_equal(layer.apply({}, ONES, deterministic=True), ONES)
    drawn = jax.vmap(lambda key: layer.apply({}, ONES, deterministic=False, rngs={"dropout": key}))
    kept = drawn(jax.random.split(jax.random.key(0), 20)).sum((1, 2))
    assert len(np.unique(kept)) > 1


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("width", lambda: nested_pmf(0, std=1.0)),
        ("std", lambda: nested_pmf(4, std=0.0)),
        ("std", lambda: NestedDropout(std=0.0).apply({}, ONES, deterministic=True)),
    ],
)
def test_bad_hyperparameters_are_named(name, call):
    with pytest.raises(ValueError, match=rf"{name} must be in .*, got 0"):
        call()
