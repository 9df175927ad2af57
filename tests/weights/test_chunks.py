"""Networks as rows, and back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.weights import chunk_layers, chunk_scale, detokenize, tokenize_params


def network(widths, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        f"Dense_{n}": {"kernel": rng.normal(size=shape).astype(dtype), "bias": rng.normal(size=shape[1]).astype(dtype)}
        for n, shape in enumerate(itertools.pairwise(widths))
    }


@pytest.mark.parametrize(("widths", "chunk"), [((9, 4, 2), 1), ((9, 4, 2), 16), ((9, 4, 4, 2), 16)])
def test_networks_of_any_depth_come_back_exactly(widths, chunk):
    params = network(widths)
    rows, mask = tokenize_params(params, chunk=chunk)
    jax.tree.map(np.testing.assert_array_equal, detokenize(rows, params), params)
    assert mask.sum() == sum((a + 1) * b for a, b in itertools.pairwise(widths))
    np.testing.assert_array_equal(rows[~mask], 0.0)
    shapes = jax.eval_shape(lambda: params)
    jax.tree.map(np.testing.assert_array_equal, detokenize(rows, shapes), params)


def test_rows_follow_the_layers_in_their_natural_order():
    params = network((3,) * 13)
    rows, _ = tokenize_params(params, chunk=8)  # 12 parameters a layer: two rows
    expected = [np.concatenate([layer["bias"], layer["kernel"].ravel()]) for layer in params.values()]
    np.testing.assert_array_equal(np.asarray(rows).reshape(12, 16)[:, :12], expected)
    np.testing.assert_array_equal(detokenize(rows, params)["Dense_10"]["kernel"], params["Dense_10"]["kernel"])
    np.testing.assert_array_equal(chunk_layers(params, chunk=8), np.repeat(np.arange(12), 2))


def test_padding_and_what_is_not_floating_do_not_matter():
    params = network((4, 3, 2), dtype=jnp.bfloat16) | {"steps": np.array(7)}
    rows, mask = tokenize_params(params, chunk=10)
    back = detokenize(jnp.where(mask, rows, 99.0), params)
    assert jax.tree.map(jnp.result_type, back) == jax.tree.map(jnp.result_type, params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.float32(a), np.float32(b)), back, params)
    assert detokenize(rows, jax.eval_shape(lambda: params))["steps"] == 0


def test_every_layer_has_its_own_scale():
    networks = [network((9, 4, 2), seed) for seed in range(5)]
    for params in networks:
        params["Dense_1"] = jax.tree.map(lambda leaf: 7 * leaf + 3, params["Dense_1"])
    chunks, mask = (np.stack(part) for part in zip(*(tokenize_params(p, chunk=8) for p in networks), strict=True))
    layers = chunk_layers(networks[0], chunk=8)
    scale = chunk_scale(chunks, mask[0], layers)
    for layer, name in enumerate(["Dense_0", "Dense_1"]):
        values = np.concatenate([np.concatenate([p[name]["bias"], p[name]["kernel"].ravel()]) for p in networks])
        np.testing.assert_allclose(scale.mean[layers == layer], values.mean(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scale.std[layers == layer], values.std(), rtol=1e-4)
    np.testing.assert_allclose(scale.restore(scale.standardize(chunks)), chunks, atol=1e-5)


def test_constant_layers_have_scale_one():
    scale = chunk_scale(np.full([2, 3, 4], 5.0, np.float32), np.ones([3, 4], bool), np.zeros(3, int))
    np.testing.assert_array_equal(scale.std, 1.0)
    np.testing.assert_array_equal(scale.mean, 5.0)


def test_scales_are_never_summed_in_less_than_float32():
    program = (
        jax.jit(chunk_scale).lower(np.ones([2, 3, 4], np.float32), np.ones([3, 4], bool), np.zeros(3, int)).as_text()
    )
    assert program.count("dot_general") == program.count("precision = [HIGHEST, HIGHEST]")


def test_rows_of_another_architecture_are_refused():
    rows, _ = tokenize_params(network((9, 4, 2)), chunk=8)
    with pytest.raises(ValueError, match="chunks must have 10 rows for this template, got 7"):
        detokenize(rows, network((9, 4, 4, 2)))
    with pytest.raises(ValueError, match=r"chunk must be in \[1, inf\), got 0"):
        tokenize_params(network((9, 4, 2)), chunk=0)
