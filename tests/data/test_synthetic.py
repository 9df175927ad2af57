"""Synthetic data against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.data import gaussian_ring, multi_color, ring_denoiser, ring_means, two_moons


def test_means_of_the_ring():
    half = 0.7 / np.sqrt(2)
    expected = [[0.7, 0], [half, half], [0, 0.7], [-half, half], [-0.7, 0], [-half, -half], [0, -0.7], [half, -half]]
    np.testing.assert_allclose(ring_means(), expected, atol=1e-6)


def test_the_ring_is_a_mixture_of_equal_normal_distributions():
    points = gaussian_ring(jax.random.key(0), 40_000)
    gaps = np.asarray(points)[:, None] - np.asarray(ring_means())
    mode = np.linalg.norm(gaps, axis=-1).argmin(axis=1)
    np.testing.assert_allclose(np.bincount(mode) / 40_000, 1 / 8, atol=0.007)
    residuals = gaps[np.arange(40_000), mode]
    assert scipy.stats.kstest(residuals.ravel() / 0.05, "norm").pvalue > 1e-3
    np.testing.assert_allclose(points.std(axis=0), 0.4975, rtol=0.01)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_the_denoiser_is_the_gradient_of_the_noisy_log_density(sigma):
    """Tweedie's formula: E[x0 | x] = x + sigma^2 grad log p(x), by central differences in float64."""

    def log_density(x):
        spread = np.sqrt(0.05**2 + sigma**2)
        return np.log(scipy.stats.norm.pdf(x[..., None, :], np.asarray(ring_means()), spread).prod(-1).mean(-1))

    x = np.asarray(gaussian_ring(jax.random.key(0), 20), np.float64)
    step = 1e-5 * np.eye(2)
    score = np.stack([(log_density(x + e) - log_density(x - e)) / 2e-5 for e in step], axis=-1)
    ours = ring_denoiser(x.astype(np.float32), sigma)
    np.testing.assert_allclose(ours, x + sigma**2 * score, atol=2e-5)
    np.testing.assert_allclose(ours, jax.jit(ring_denoiser)(x.astype(np.float32), jnp.full(20, sigma)), atol=1e-6)


def test_the_denoiser_at_its_limits():
    x = jnp.array([[0.6, 0.1], [30.0, -50.0]])
    np.testing.assert_allclose(ring_denoiser(x, 0.0), x, rtol=1e-6)
    np.testing.assert_allclose(ring_denoiser(x, 1e4), jnp.zeros([2, 2]), atol=1e-3)


def test_the_moons_are_half_circles():
    points = np.asarray(two_moons(jax.random.key(0), 4000, noise=0.0)) / 0.7
    upper = np.abs(np.linalg.norm(points + np.array([0.5, 0.25]), axis=1) - 1) < 1e-5
    lower = np.abs(np.linalg.norm(points - np.array([0.5, 0.25]), axis=1) - 1) < 1e-5
    assert (upper | lower).all()
    np.testing.assert_allclose(upper.mean(), 0.5, atol=0.04)
    assert (points[upper, 1] >= -0.2501).all()
    assert (points[lower & ~upper, 1] <= 0.2501).all()
    np.testing.assert_allclose(two_moons(jax.random.key(0), 40_000).mean(axis=0), 0.0, atol=0.015)


LABELS = np.arange(4000) % 10


def test_without_noise_every_patch_tells_the_label():
    colors = multi_color(jax.random.key(0), LABELS.reshape(8, 500), num_patches=3)
    np.testing.assert_array_equal(colors, np.repeat(LABELS.reshape(8, 500, 1), 3, axis=-1))


@pytest.mark.parametrize("p", [0.7, 1.0])
def test_patches_are_right_by_chance_and_independent(p):
    right = np.asarray(multi_color(jax.random.key(0), LABELS, p=p)) == LABELS[:, None]
    chance = 1 - p + p / 10
    np.testing.assert_allclose(right.mean(), chance, atol=4.5 * np.sqrt(chance * (1 - chance) / right.size))
    counts = np.bincount(right.sum(1), minlength=33)[:33]
    expected = 4000 * scipy.stats.binom(32, chance).pmf(np.arange(33))
    likely = expected > 5
    assert (
        scipy.stats.chisquare(counts[likely], expected[likely] * counts[likely].sum() / expected[likely].sum())[1]
        > 1e-3
    )


def test_wrong_colours_are_uniform():
    colors = np.asarray(multi_color(jax.random.key(1), LABELS, p=1.0, num_patches=4))
    assert scipy.stats.chisquare(np.bincount(colors.ravel(), minlength=10))[1] > 1e-3
    assert colors.shape == (4000, 4)


def test_a_single_colour_is_repeated():
    colors = np.asarray(multi_color(jax.random.key(0), LABELS, p=0.7, single=True))
    assert colors.shape == (4000, 32)
    np.testing.assert_array_equal(colors, np.repeat(colors[:, :1], 32, axis=1))
    np.testing.assert_allclose(np.mean(colors[:, 0] == LABELS), 0.37, atol=0.035)


def test_refused():
    with pytest.raises(ValueError, match=r"^p must be in \[0, 1\], got 1.1$"):
        multi_color(jax.random.key(0), LABELS, p=1.1)
    with pytest.raises(ValueError, match=r"^std must be in \(0, inf\), got 0.0$"):
        ring_denoiser(jnp.ones([1, 2]), 1.0, std=0.0)
    with pytest.raises(ValueError, match=r"^modes must be in \[1, inf\), got 0$"):
        gaussian_ring(jax.random.key(0), 3, modes=0)
