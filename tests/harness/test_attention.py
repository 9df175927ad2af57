"""Rotary positions against complex numbers, causal attention against NumPy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import attention
from experiments.harness.attention import causal_attention, rotate

Q, K, V = jax.random.normal(jax.random.key(0), [3, 2, 5, 3, 4])


def test_rotation_multiplies_pairs_by_complex_phases():
    positions = np.array([0, 1, 7, 1000, 3])
    x = np.asarray(Q, np.float64)
    phases = np.exp(1j * positions[:, None, None] * 10_000.0 ** (-np.arange(2) / 2))
    expected = (x[..., :2] + 1j * x[..., 2:]) * phases
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    np.testing.assert_allclose(rotate(Q, positions), expected, rtol=1e-4, atol=1e-4)


def test_products_of_rotated_vectors_tell_relative_positions_only():
    positions = jnp.arange(5)

    def products(shift):
        return jnp.einsum("bqhd,bkhd->bhqk", rotate(Q, positions + shift), rotate(K, positions + shift))

    np.testing.assert_allclose(products(0), products(17), rtol=1e-4, atol=1e-5)
    one_moves = jnp.einsum("bqhd,bkhd->bhqk", rotate(Q, positions + 1), rotate(K, positions))
    assert jnp.abs(products(0) - one_moves).max() > 0.1


def test_attention_mixes_what_came_before():
    mixed, largest = jax.jit(lambda *args: (lambda m, f: (m, f()))(*causal_attention(*args, scale=0.7)))(Q, K, V)
    q, k, v = (np.asarray(x, np.float64) for x in (Q, K, V))
    seen = -np.inf
    for b, h, t in np.ndindex(2, 3, 5):
        logits = 0.7 * k[b, : t + 1, h] @ q[b, t, h]
        weights = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(mixed[b, t, h], weights @ v[b, : t + 1, h], rtol=1e-5, atol=1e-6)
        seen = max(seen, logits.max())
    np.testing.assert_allclose(largest, seen, rtol=1e-6)


def test_huge_logits_leave_values_and_gradients_finite():
    def loss(q):
        return causal_attention(1e4 * q, K, V, scale=1.0)[0].sum()

    value, gradient = jax.value_and_grad(loss)(Q)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_gradients_are_those_of_a_plain_softmax():
    def plain(q, k, v):
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones([5, 5], bool)), logits, -1e30))
        return jnp.sin(jnp.einsum("bhqk,bkhd->bqhd", weights, v)).sum()

    def ours(q, k, v):
        return jnp.sin(causal_attention(q, k, v, scale=1.0)[0]).sum()

    arguments = 0, 1, 2
    for a, b in zip(jax.grad(ours, arguments)(Q, K, V), jax.grad(plain, arguments)(Q, K, V), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [[], [2], [2, 1]])
def test_the_fused_kernel_is_handed_whole_batches_and_bounds_its_logits(monkeypatch, batch):
    """The kernel itself runs on a GPU only; here JAX's own attention stands in for it."""
    kernel = jax.nn.dot_product_attention

    def stand_in(q, k, v, *, scale, is_causal, implementation):
        assert (q.ndim, implementation) == (4, "cudnn")
        return kernel(q, k, v, scale=scale, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", stand_in)
    q, k, v = (x[0].reshape([*x.shape[1:]]) if not batch else x.reshape([*batch, 5, 3, 4]) for x in (Q, K, V))
    mixed, bound = causal_attention(q, k, v, scale=0.7, implementation="cudnn")
    expected, largest = causal_attention(q, k, v, scale=0.7)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
    longest = [np.linalg.norm(np.asarray(x), axis=-1).reshape(-1, 3).max(0) for x in (q, k)]
    np.testing.assert_allclose(bound(), 0.7 * (longest[0] * longest[1]).max(), rtol=1e-5)
    assert largest() <= bound()
