import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.layers import StableEmbedding


def test_rows_are_looked_up_and_normalized():
    layer = StableEmbedding(10, 6)
    indices = jnp.array([[3, 0], [9, 3]])
    variables = layer.init(jax.random.key(0), indices)
    rows = np.asarray(variables["params"]["Embed_0"]["embedding"])[np.asarray(indices)]
    centred = rows - rows.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer.apply(variables, indices), wanted, rtol=1e-4, atol=1e-6)


def test_an_offset_of_a_row_is_taken_out():
    layer, indices = StableEmbedding(10, 6), jnp.arange(10)
    params = layer.init(jax.random.key(0), indices)["params"]
    table = 2000 + jax.random.normal(jax.random.key(1), [10, 6])
    ours = layer.apply({"params": params | {"Embed_0": {"embedding": table}}}, indices)
    centred = np.asarray(table, np.float64) - np.asarray(table, np.float64).mean(-1, keepdims=True)
    np.testing.assert_allclose(ours, centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5), atol=2e-3)


def test_the_table_starts_xavier_uniform():
    table = StableEmbedding(400, 200).init(jax.random.key(0), jnp.array(0))["params"]["Embed_0"]["embedding"]
    bound = np.sqrt(6 / (400 + 200))
    assert np.abs(table).max() <= bound
    np.testing.assert_allclose(np.std(table), bound / np.sqrt(3), rtol=0.01)


def test_the_normalization_has_a_scale_and_a_bias():
    params = StableEmbedding(10, 6).init(jax.random.key(0), jnp.array(0))["params"]["LayerNorm_0"]
    assert jax.tree.map(jnp.shape, params) == {"bias": (6,), "scale": (6,)}
