"""The adapter against attention written out in NumPy."""

import jax
import numpy as np
import pytest

from jaxreg.layers import ConditionAdapter

rng = np.random.default_rng(0)
FRAMES = rng.normal(size=(3, 5, 6)).astype(np.float32)
CONDITION = rng.normal(size=(3, 4, 7)).astype(np.float32)


def test_at_first_it_changes_nothing_but_can_learn():
    adapter = ConditionAdapter(heads=2)
    params = adapter.init(jax.random.key(0), FRAMES, CONDITION)
    np.testing.assert_array_equal(adapter.apply(params, FRAMES, CONDITION), FRAMES)
    gradient = jax.grad(lambda params: (adapter.apply(params, FRAMES, CONDITION) ** 3).sum())(params)["params"]
    assert np.any(gradient["out"]["kernel"] != 0)


def test_it_is_cross_attention():
    adapter = ConditionAdapter(heads=2)
    params = adapter.init(jax.random.key(0), FRAMES, CONDITION)["params"]
    params = params | {"out": {"kernel": rng.normal(size=(6, 6)).astype(np.float32)}}
    weights = {name: np.asarray(layer["kernel"], np.float64) for name, layer in params.items()}
    q, k, v = FRAMES @ weights["query"], CONDITION @ weights["key"], CONDITION @ weights["value"]
    expected = FRAMES.astype(np.float64)
    for head in (slice(0, 3), slice(3, 6)):
        scores = np.exp(q[..., head] @ np.swapaxes(k[..., head], -1, -2) / np.sqrt(3))
        attended = scores / scores.sum(-1, keepdims=True) @ v[..., head]
        expected = expected + attended @ weights["out"][head]
    np.testing.assert_allclose(adapter.apply({"params": params}, FRAMES, CONDITION), expected, rtol=1e-4, atol=1e-5)


def test_bad_heads_are_named():
    with pytest.raises(ValueError, match="heads must divide the 6 features, got 4"):
        ConditionAdapter(heads=4).init(jax.random.key(0), FRAMES, CONDITION)
