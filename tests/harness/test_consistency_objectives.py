import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.consistency_objectives import denoise, diffusion_loss, heun_sample, noise_levels

STD = 0.7


def nothing(params, x, noise):
    return jnp.zeros_like(x)


def linear(params, x, noise):
    return params * x + noise[:, None]


def test_a_denoiser_is_the_scaled_network_and_a_part_of_its_input():
    x, sigma = np.random.default_rng(0).normal(size=(4, 3)), np.array([0.01, 0.5, 3.0, 80.0])
    s = sigma[:, None]
    total = s**2 + STD**2
    inside = 2.0 * x / np.sqrt(total) + 0.25 * np.log(s)
    expected = STD**2 / total * x + s * STD / np.sqrt(total) * inside
    found = denoise(linear, 2.0, x.astype(np.float32), jnp.asarray(sigma), sigma_data=STD)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_of_normal_data_the_best_denoiser_loses_one_for_each_dimension_at_every_level():
    """It is the part of its input alone, whose squared error is the posterior variance, one over the weight."""
    x = STD * jax.random.normal(jax.random.key(0), [20_000, 5])
    loss = jax.jit(lambda p_mean: diffusion_loss(nothing, None, jax.random.key(1), x, p_mean=p_mean, sigma_data=STD))
    for p_mean in (-3.0, 1.0):
        losses = loss(p_mean)
        assert losses.shape == (20_000,)
        assert float(losses.mean()) == pytest.approx(5, rel=0.02)


def test_heuns_method_follows_the_closed_form_of_normal_data():
    """Along the flow a point keeps its ratio to the standard deviation of the noisy data."""
    key, shape = jax.random.key(0), (6, 2)

    def denoiser(x, sigma):
        return denoise(nothing, None, x, sigma, sigma_data=STD)

    noise = np.asarray(jax.random.normal(key, shape))
    end = 80.0 * noise * np.sqrt((STD**2 + 0.002**2) / (STD**2 + 80.0**2))
    np.testing.assert_allclose(heun_sample(denoiser, key, shape, 100), end, rtol=2e-3)
    np.testing.assert_allclose(
        heun_sample(denoiser, key, shape, 0), 80.0 * noise * STD**2 / (STD**2 + 80.0**2), rtol=1e-5
    )


def test_levels_to_sample_at_decrease_from_the_highest_in_equal_steps_of_their_roots():
    for steps in (1, 2, 5):
        levels = np.asarray(noise_levels(steps))
        roots = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps + 1)
        np.testing.assert_allclose(levels, roots[:-1] ** 7, rtol=1e-4)
