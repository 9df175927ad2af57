import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.diffusion import denoising_loss


@pytest.mark.parametrize("sigma", [0.01, 0.5, 80.0])
def test_the_best_denoiser_of_normal_data_loses_one_a_feature_at_every_level(sigma):
    """Its expected error is s^2 d^2 / (s^2 + d^2) a feature."""
    std, features = 0.7, 6
    x = std * jax.random.normal(jax.random.key(0), [20_000, 2, 3])

    def best(noisy, level):
        return noisy * (std**2 / (std**2 + level**2))[:, None, None]

    losses = denoising_loss(best, jax.random.key(1), x, jnp.full([len(x)], sigma), sigma_data=std)
    assert losses.shape == (20_000,)
    np.testing.assert_allclose(losses.mean(), features, rtol=0.02)


def test_a_denoiser_that_knows_the_data_loses_nothing():
    x = jax.random.normal(jax.random.key(0), [4, 3])
    losses = denoising_loss(lambda noisy, level: x, jax.random.key(1), x, jnp.ones([4]))
    np.testing.assert_array_equal(losses, np.zeros(4))


def test_a_bad_argument_is_named():
    with pytest.raises(ValueError, match=r"sigma_data must be in .*, got 0"):
        denoising_loss(lambda noisy, level: noisy, jax.random.key(1), jnp.ones([4, 3]), jnp.ones([4]), sigma_data=0)
