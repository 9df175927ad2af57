import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.layers import NonScalingLayerNorm


def test_it_is_layer_normalization_without_a_gain():
    x = 100 + 3 * jax.random.normal(jax.random.key(0), [2, 5, 8])
    layer = NonScalingLayerNorm(epsilon=1e-3)
    variables = layer.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"LayerNorm_0": {"bias": (8,)}}}
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-4)
    shifted = layer.apply(jax.tree.map(lambda b: b + 2, variables), x)
    np.testing.assert_allclose(shifted, expected + 2, atol=1e-4)
