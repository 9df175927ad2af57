import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.layers import NoiseEmbedding


def test_it_is_the_cosine_and_sine_of_fixed_random_multiples():
    layer = NoiseEmbedding(features=6, scale=0.5)
    noise = jnp.array([[0.0, 1.0, -2.0]])
    variables = layer.init(jax.random.key(0), noise)
    assert set(variables) == {"buffers"}
    angles = np.pi * np.asarray(noise)[..., None] * np.asarray(variables["buffers"]["frequencies"])
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(layer.apply(variables, noise), expected, atol=1e-6)


def test_frequencies_are_standard_normal():
    layer = NoiseEmbedding(features=20_000)
    frequencies = layer.init(jax.random.key(0), jnp.zeros(()))["buffers"]["frequencies"]
    np.testing.assert_allclose([frequencies.mean(), frequencies.std()], [0.0, 1.0], atol=0.03)


@pytest.mark.parametrize("features", [0, 7])
def test_features_come_in_pairs(features):
    with pytest.raises(ValueError, match=f"features must be even and at least 2, got {features}"):
        NoiseEmbedding(features=features).init(jax.random.key(0), jnp.zeros(3))
