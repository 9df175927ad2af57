"""Smaller networks compute what the pruned ones do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.compression import alive_units, extract_subnetwork
from jaxreg.optim import Group, hesso

WIDTHS = (6, 8, 7, 3)
GROUPS = [
    Group((((2 * i, "kernel"), 1), ((2 * i, "bias"), 0), ((2 * i + 2, "kernel"), 0)), WIDTHS[i + 1]) for i in range(2)
]


def network():
    """Dense layers at the even positions of a list, their activations between them."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    layers = []
    for width, following in itertools.pairwise(WIDTHS):
        kernel, bias = jax.random.normal(next(keys), (width, following)), jax.random.normal(next(keys), (following,))
        layers += [{"kernel": kernel, "bias": bias}, {}]
    return layers


def outputs(layers, x):
    for i in (0, 2, 4):
        x = x @ layers[i]["kernel"] + layers[i]["bias"]
        x = jnp.maximum(x, 0) if i < 4 else x
    return x


X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def test_the_subnetwork_of_a_pruned_network_computes_the_same():
    params = network()
    optimizer = hesso(optax.adam(0.03), GROUPS, target_sparsity=0.6, pruning_steps=4)
    state = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(lambda p: jnp.mean(outputs(p, X) ** 2))(p), s, p))
    for _ in range(6):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    keep = alive_units(params, GROUPS)
    assert keep.sum() == 15 - 9
    small = extract_subnetwork(params, GROUPS, keep)
    assert jax.tree.structure(small) == jax.tree.structure(params)
    first, second = int(keep[:8].sum()), int(keep[8:].sum())
    shapes = [small[i]["kernel"].shape for i in (0, 2, 4)]
    assert shapes == [(6, first), (first, second), (second, 3)]
    np.testing.assert_allclose(outputs(small, X), outputs(params, X), rtol=1e-5, atol=1e-5)


def test_a_unit_is_alive_while_any_of_its_entries_is():
    params = jax.tree.map(jnp.zeros_like, network())
    params[0]["bias"] = params[0]["bias"].at[2].set(1.0)
    params[4]["kernel"] = params[4]["kernel"].at[1, 2].set(-1.0)
    assert np.flatnonzero(alive_units(params, GROUPS)).tolist() == [2, 8 + 1]


def test_all_units_kept_is_the_network_itself():
    params = network()
    same = extract_subnetwork(params, GROUPS, np.ones(15, bool))
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_units_that_do_not_fit_are_named():
    params, nowhere = network(), [Group(((("out",), 0),), 3)]
    with pytest.raises(ValueError, match=r"keep must have an entry for each of the 15 units, got 14"):
        extract_subnetwork(params, GROUPS, np.ones(14, bool))
    with pytest.raises(ValueError, match=r"there is no leaf \('out',\)"):
        extract_subnetwork(params, nowhere, np.ones(3, bool))
    with pytest.raises(ValueError, match=r"there is no leaf \('out',\)"):
        alive_units(params, nowhere)
    with pytest.raises(ValueError, match=r"has no 7 units along axis 1"):
        extract_subnetwork(params, [Group((((0, "kernel"), 1),), 7)], np.ones(7, bool))
