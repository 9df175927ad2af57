"""Distances between samples against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist

from jaxreg.metrics import energy_distance, frechet_distance, mean_distance


class TestEnergyDistance:
    def reference(self, x, y):
        def pairs(z):
            return cdist(z, z).sum() / (len(z) * (len(z) - 1))

        return 2 * cdist(x, y).mean() - pairs(x) - pairs(y)

    @pytest.mark.parametrize("shift", [0.0, 1.0, 100.0])
    def test_it_equals_the_sum_over_pairs(self, shift):
        rng = np.random.default_rng(0)
        x, y = rng.normal(shift, 1, [40, 3]), rng.normal(shift + 1, 1, [50, 3])
        x32, y32, expected = x.astype(np.float32), y.astype(np.float32), self.reference(x, y)
        np.testing.assert_allclose(jax.jit(energy_distance)(x32, y32), expected, rtol=1e-4)
        np.testing.assert_allclose(energy_distance(x32, y32, block_size=16), expected, rtol=1e-4)
        known = cdist(y, y).sum() / (50 * 49)
        np.testing.assert_allclose(energy_distance(x32, y32, within_y=known), expected, rtol=1e-4)

    def test_two_point_masses_of_noise(self):
        """For N(0, 1) and N(m, 1) it is 2 E|N(m, 2)| - 2 E|N(0, 2)|."""
        m = 0.8
        folded = 2 / np.sqrt(np.pi) * np.exp(-(m**2) / 4) + m * scipy.special.erf(m / 2)
        x, y = jax.random.normal(jax.random.key(0), [2, 4000, 1])
        np.testing.assert_allclose(energy_distance(x, y + m), 2 * (folded - 2 / np.sqrt(np.pi)), rtol=0.06)

    def test_it_is_unbiased(self):
        """Samples of one distribution: the mean over many tries is zero, far below the mean of its square."""
        x, y = jax.random.normal(jax.random.key(0), [2, 2000, 8, 2])
        tries = np.asarray(jax.jit(jax.vmap(energy_distance))(x, y))
        assert abs(tries.mean()) < 4 * tries.std() / np.sqrt(len(tries))

    def test_gradients_are_finite_where_points_coincide(self):
        x = jnp.zeros([3, 2])
        assert np.isfinite(jax.grad(energy_distance)(x, x)).all()

    def test_it_needs_pairs(self):
        with pytest.raises(ValueError, match="y must have at least 2 samples, got 1"):
            energy_distance(jnp.zeros([2, 2]), jnp.zeros([1, 2]))


def test_mean_distance():
    x, y = np.float32([[0, 0], [3, 4]]), np.float32([[0, 0], [0, 8], [6, 0]])
    np.testing.assert_allclose(mean_distance(x, y), (0 + 8 + 6 + 5 + 5 + 5) / 6, rtol=1e-6)
    np.testing.assert_allclose(mean_distance(y), (8 + 6 + 10) / 3, rtol=1e-6)


class TestFrechetDistance:
    def test_it_equals_the_formula_with_a_matrix_square_root(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=[200, 4]) @ rng.normal(size=[4, 4])
        y = rng.normal(0.5, 1, [150, 4]) @ rng.normal(size=[4, 4])
        sx, sy = np.cov(x.T), np.cov(y.T)
        expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * scipy.linalg.sqrtm(sx @ sy).real)
        ours = jax.jit(frechet_distance)(x.astype(np.float32), y.astype(np.float32))
        np.testing.assert_allclose(ours, expected, rtol=1e-4)

    def test_a_shift_costs_its_square(self):
        x = jax.random.normal(jax.random.key(0), [50, 3])
        np.testing.assert_allclose(frechet_distance(x, x), 0.0, atol=1e-5)
        np.testing.assert_allclose(frechet_distance(x, x + jnp.array([1.0, 2.0, 2.0])), 9.0, rtol=1e-5)

    def test_a_feature_that_is_constant_has_no_part_in_the_gradient(self):
        x, y = (jax.random.normal(jax.random.key(seed), [20, 2]) for seed in range(2))
        padded = [jnp.pad(sample, ((0, 0), (0, 1))) for sample in (x, y)]
        gradient = jax.jit(jax.grad(frechet_distance))
        np.testing.assert_allclose(gradient(*padded), jnp.pad(gradient(x, y), ((0, 0), (0, 1))), rtol=1e-4, atol=1e-6)

    def test_features(self):
        x = jax.random.normal(jax.random.key(0), [50, 2, 2])
        flat = x.reshape(50, 4)
        scaled = frechet_distance(x, x + 1, feature_fn=lambda images: 2 * images.reshape(50, 4))
        np.testing.assert_allclose(scaled, frechet_distance(2 * flat, 2 * flat + 2), rtol=1e-5)
        np.testing.assert_allclose(frechet_distance(x, x + 1), 4.0, rtol=1e-4)
