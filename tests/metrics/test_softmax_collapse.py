"""Collapse against arithmetic in the precision itself; alignment against what homogeneity implies."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxreg.metrics import collapse_fraction, nlm_alignment


@pytest.mark.parametrize(
    ("dtype", "below", "above"),
    [(np.float32, 16.5, 16.7), (np.float16, 7.5, 7.7), (ml_dtypes.bfloat16, 5.5, 5.6)],
)
def test_two_classes_collapse_where_the_sum_rounds_to_one(dtype, below, above):
    for gap in (below, above):
        collapsed = dtype(1) + dtype(np.exp(-gap)) == dtype(1)
        assert collapsed == (gap == above)
        logits, labels = jnp.array([[gap, 0.0], [0.0, gap]], jnp.float32), jnp.array([0, 1])
        assert float(collapse_fraction(logits, labels, dtype=dtype)) == collapsed
        assert float(collapse_fraction(logits, 1 - labels, dtype=dtype)) == 0.0


def test_precision_is_that_of_the_logits_unless_given():
    logits, labels = jnp.array([[10.0, 0.0]]), jnp.array([0])
    assert float(collapse_fraction(logits, labels)) == 0.0
    assert float(collapse_fraction(logits.astype(jnp.bfloat16), labels)) == 1.0


def test_collapsed_examples_are_those_without_a_gradient():
    """Gaps of at most 12 and at least 20 over five classes, away from where the order of the sum matters."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 50))
    logits = rng.uniform(-1, 1, (4, 50, 5)).astype(np.float32)
    gaps = rng.choice([0.0, 5.0, 12.0, 20.0, 200.0], (4, 50)).astype(np.float32)
    np.put_along_axis(logits, labels[..., None], gaps[..., None], axis=-1)
    terms = np.exp(logits - np.take_along_axis(logits, labels[..., None], axis=-1))
    without_gradient = 1 / terms.sum(-1, dtype=np.float32) - np.float32(1) == 0
    assert 0.2 < without_gradient.mean() < 0.6
    np.testing.assert_allclose(collapse_fraction(logits, labels), without_gradient.mean(), rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e38])
def test_huge_logits_collapse(size):
    assert float(collapse_fraction(jnp.array([[size, -size], [-size, size]]), jnp.array([0, 0]))) == 0.5


def test_logits_that_are_no_numbers_have_not_been_spared():
    assert np.isnan(collapse_fraction(jnp.array([[jnp.nan, 0.0], [1.0, 0.0]]), jnp.array([1, 0])))


class TestAlignment:
    def test_by_hand_over_a_tree(self):
        params = {"a": jnp.array([[3.0]]), "b": jnp.array([0.0, 4.0])}
        np.testing.assert_allclose(nlm_alignment(jax.tree.map(jnp.negative, params), params), 1.0, rtol=1e-6)
        gradients = {"a": jnp.array([[-1.0]]), "b": jnp.array([0.0, 0.0])}
        np.testing.assert_allclose(nlm_alignment(gradients, params), 0.6, rtol=1e-6)
        assert float(nlm_alignment(jax.tree.map(jnp.zeros_like, params), params)) == 0.0

    def test_every_layer_of_a_homogeneous_network_sees_the_same_radial_slope(self):
        """By Euler's theorem <w_l, g_l> = sum_k z_k dL/dz_k for each layer l of a ReLU network without biases."""
        keys = jax.random.split(jax.random.key(0), 4)
        x = jax.random.normal(keys[3], [10, 6])
        layers = [jax.random.normal(k, s) for k, s in zip(keys, [(6, 8), (8, 8), (8, 3)], strict=False)]

        def logits(layers):
            return jax.nn.relu(jax.nn.relu(x @ layers[0]) @ layers[1]) @ layers[2]

        def loss(z):
            return -jax.nn.log_softmax(z)[:, 0].sum()

        gradients = jax.grad(lambda layers: loss(logits(layers)))(layers)
        z = logits(layers)
        slope = jnp.sum(z * jax.grad(loss)(z))
        for gradient, layer in zip(gradients, layers, strict=True):
            norms = jnp.linalg.norm(gradient) * jnp.linalg.norm(layer)
            np.testing.assert_allclose(nlm_alignment(gradient, layer) * norms, -slope, rtol=1e-4)
