import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.convnet import Cnn, Convolution


def test_convolution_is_flaxs():
    x = jax.random.normal(jax.random.key(0), [2, 6, 4, 3])
    layer = Convolution(5)
    params = layer.init(jax.random.key(1), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    np.testing.assert_allclose(layer.apply(params, x), nn.Conv(5, (3, 3)).apply(params, x), rtol=1e-4, atol=1e-5)


def test_cnn_halves_the_image_after_every_second_convolution():
    model = Cnn(3, (2, 4, 5))
    x = jnp.ones([7, 2, 8, 8, 1])
    params = model.init(jax.random.key(0), x)
    assert set(params["params"]) == {"Convolution_0", "Convolution_1", "Convolution_2", "Dense_0"}
    assert params["params"]["Dense_0"]["kernel"].shape == (4 * 4 * 5, 3)
    assert model.apply(params, x).shape == (7, 2, 3)
