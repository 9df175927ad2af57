"""The written-down network solves the whole table; pruning against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import modular_table
from jaxreg.metrics import neuron_ipr
from jaxreg.weights import ModularMlp, analytic_modular_mlp, modular_mlp, modular_mlp_init, prune_neurons


def accuracy(params, p):
    table = modular_table(jax.random.key(0), p, train_fraction=1.0)
    return float(jnp.mean(modular_mlp(params, table.train_x).argmax(-1) == table.train_y))


@pytest.mark.parametrize(("p", "hidden", "least"), [(23, 500, 1.0), (53, 500, 1.0), (97, 500, 1.0), (23, 100, 0.97)])
def test_the_analytic_network_adds(p, hidden, least):
    params = analytic_modular_mlp(jax.random.key(0), p, hidden)
    assert accuracy(params, p) >= least
    np.testing.assert_allclose(neuron_ipr(*params), 1.0, rtol=1e-3)


def test_the_phase_of_the_output_is_the_sum():
    """With a - b in its place, nothing is in phase."""
    params = analytic_modular_mlp(jax.random.key(0), 23, 500)
    half = jnp.arange(23)
    wrong = params._replace(output=params.output[(-half) % 23])
    assert accuracy(wrong, 23) < 0.2


def test_the_network_by_hand():
    params = ModularMlp(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -5.0]]), jnp.array([[1.0], [-2.0]]))
    x = jnp.array([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    np.testing.assert_allclose(modular_mlp(params, x), [[16.0, -32.0], [9.0, -18.0]])


def test_initial_weights_have_the_stated_size():
    params = modular_mlp_init(jax.random.key(0), 97, 500)
    assert [w.shape for w in params] == [(500, 97), (500, 97), (97, 500)]
    for weights in params:
        np.testing.assert_allclose(jnp.std(weights), 0.5 / 1000 ** (1 / 3), rtol=0.02)


@pytest.mark.parametrize("lowest", [True, False])
def test_pruning_removes_the_extremes(lowest):
    params = modular_mlp_init(jax.random.key(0), 5, 6)
    scores = np.array([0.3, 0.1, 0.9, 0.5, 0.2, 0.4], np.float32)
    gone = [1, 4, 0] if lowest else [2, 3, 5]
    pruned = jax.jit(lambda k: prune_neurons(params, scores, k, lowest=lowest))(3)
    for name in ("left", "right"):
        expected = np.array(getattr(params, name))
        expected[gone] = 0
        np.testing.assert_array_equal(getattr(pruned, name), expected)
    expected = np.array(params.output)
    expected[:, gone] = 0
    np.testing.assert_array_equal(pruned.output, expected)


def test_pruning_none_and_all():
    params = modular_mlp_init(jax.random.key(0), 5, 6)
    scores = jnp.zeros(6)
    for ours, before in zip(prune_neurons(params, scores, 0), params, strict=True):
        np.testing.assert_array_equal(ours, before)
    assert not any(w.any() for w in prune_neurons(params, scores, 6))
    with pytest.raises(ValueError, match=r"k must be in \[0, inf\), got -1"):
        prune_neurons(params, scores, -1)
