"""Attention with normalized queries and keys against NumPy, flax's own attention and the bound on its logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxreg.layers import QKNormAttention

X = jax.random.normal(jax.random.key(0), [3, 5, 8])
CAUSAL = jnp.tril(jnp.ones([5, 5], bool))


def init(layer, seed=1):
    return jax.jit(layer.init)(jax.random.key(seed), X)


def with_logits(layer, variables, x=X, mask=None):
    y, seen = jax.jit(lambda *arguments: layer.apply(*arguments, mutable=["intermediates"]))(variables, x, mask)
    (logits,) = seen["intermediates"]["attention_logits"]
    return np.asarray(y), np.asarray(logits)


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["all", "causal"])
def test_it_is_attention_between_normalized_queries_and_keys(mask):
    layer = QKNormAttention(heads=2)
    variables = init(layer)
    gains = {name: {"scale": np.array([0.5, 1.0, 2.0, -1.0], np.float32)} for name in ("query_norm", "key_norm")}
    variables = {"params": variables["params"] | gains}
    w = {name: np.asarray(tree["kernel"], np.float64) for name, tree in variables["params"].items() if "kernel" in tree}
    ours, logits = with_logits(layer, variables, mask=mask)

    def norm(z):
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6) * [0.5, 1.0, 2.0, -1.0]

    for b, x in enumerate(np.asarray(X, np.float64)):
        mixed = np.zeros((5, 8))
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            q, k, v = norm(x @ w["query"][:, part]), norm(x @ w["key"][:, part]), x @ w["value"][:, part]
            expected = q @ k.T / 2
            seen = np.ones((5, 5), bool) if mask is None else np.tril(np.ones((5, 5), bool))
            np.testing.assert_allclose(logits[b, h][seen], expected[seen], rtol=1e-4, atol=1e-5)
            p = np.where(seen, np.exp(expected), 0)
            mixed[:, part] = p / p.sum(-1, keepdims=True) @ v
        np.testing.assert_allclose(ours[b], mixed @ w["out"], rtol=1e-4, atol=1e-5)


def test_without_normalization_it_is_flax_attention():
    layer, theirs = QKNormAttention(heads=2, qk_norm=False), nn.MultiHeadDotProductAttention(2, use_bias=False)
    variables = init(layer)
    kernels = {name: tree["kernel"] for name, tree in variables["params"].items()}
    assert set(kernels) == {"query", "key", "value", "out"}
    shapes = {"query": (8, 2, 4), "key": (8, 2, 4), "value": (8, 2, 4), "out": (2, 4, 8)}
    translated = {name: {"kernel": kernel.reshape(shapes[name])} for name, kernel in kernels.items()}
    expected = theirs.apply({"params": translated}, X, mask=CAUSAL[None, None])
    np.testing.assert_allclose(layer.apply(variables, X, CAUSAL), expected, rtol=1e-4, atol=1e-6)


def test_logits_are_at_most_the_root_of_the_head_size_whatever_the_weights():
    """By Cauchy and Schwarz; and equal to it for a query that is its own key."""
    layer = QKNormAttention(heads=2, epsilon=0.0)
    variables = jax.tree.map(lambda p: 1e3 * p if p.ndim == 2 else p, init(layer))
    variables["params"]["key"] = variables["params"]["query"]
    _, logits = with_logits(layer, variables)
    assert np.abs(logits).max() <= 2 * (1 + 1e-6)
    np.testing.assert_allclose(np.diagonal(logits, axis1=-2, axis2=-1), 2.0, rtol=1e-5)
    _, free = with_logits(QKNormAttention(heads=2, qk_norm=False), variables)
    assert np.abs(free).max() > 1e4


def test_an_offset_of_the_inputs_leaves_the_bound():
    x = 2000 + X
    layer = QKNormAttention(heads=1)
    variables = {"params": {name: {"kernel": jnp.eye(8)} for name in ("query", "key", "value", "out")}}
    variables["params"] |= {name: {"scale": jnp.ones(8)} for name in ("query_norm", "key_norm")}
    _, logits = with_logits(layer, variables, x)
    centred = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(-1, keepdims=True)
    unit = centred / centred.std(-1, keepdims=True)
    np.testing.assert_allclose(logits[:, 0], unit @ np.swapaxes(unit, -1, -2) / np.sqrt(8), atol=2e-3)
    assert np.abs(logits).max() <= np.sqrt(8) * (1 + 1e-6)


def test_nothing_is_seen_behind_the_mask():
    layer = QKNormAttention(heads=2)
    variables = init(layer)
    apply = jax.jit(layer.apply)
    gradient = jax.jit(jax.grad(lambda x: layer.apply(variables, x, CAUSAL)[:, 2].sum()))(X)
    np.testing.assert_array_equal(gradient[:, 3:], np.zeros([3, 2, 8]))
    per_example = jnp.stack([CAUSAL, jnp.ones_like(CAUSAL), jnp.eye(5, dtype=bool)])
    together = apply(variables, X, per_example)
    alone = [apply(variables, x, mask) for x, mask in zip(X, per_example, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_logits_of_half_precision_are_float32():
    layer = QKNormAttention(heads=2)
    variables = jax.tree.map(lambda p: p.astype(jnp.bfloat16), init(layer))
    y, logits = with_logits(layer, variables, X.astype(jnp.bfloat16))
    assert (y.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)


def test_bad_arguments_are_named():
    for heads in (0, 3):
        with pytest.raises(ValueError, match=f"heads must divide the 8 features, got {heads}"):
            init(QKNormAttention(heads=heads))
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, inf\), got -1"):
        init(QKNormAttention(heads=2, epsilon=-1))
    with pytest.raises(TypeCheckError, match="mask"):
        QKNormAttention(heads=2).init(jax.random.key(0), X, CAUSAL[:4])
