"""Grids of noise levels against numbers from the papers, NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.schedules import adaptive_c, doubling_steps, karras_index, karras_sigma, lognormal_index_probs


def grid(n, low=0.002, high=80.0, rho=7.0):
    return np.linspace(low ** (1 / rho), high ** (1 / rho), n) ** rho


class TestDoublingSteps:
    @pytest.mark.parametrize(
        ("step", "points"),
        [(0, 11), (49_999, 11), (50_000, 21), (100_000, 41), (349_999, 641), (350_000, 1281), (10**9, 1281)],
    )
    def test_the_paper_doubles_every_fifty_thousand_steps(self, step, points):
        assert doubling_steps(step, total_steps=400_000) == points

    def test_the_last_doubling_stops_at_the_limit(self):
        """floor(1000 / (log2 4 + 1)) = 333 steps to a doubling; 3 * 8 > 14."""
        steps = jnp.array([0, 332, 333, 666, 999])
        n = jax.jit(jax.vmap(lambda step: doubling_steps(step, total_steps=1000, s0=3, s1=14)))(steps)
        np.testing.assert_array_equal(n, [4, 4, 7, 13, 15])

    def test_a_constant_number_of_steps(self):
        assert doubling_steps(70, total_steps=100, s0=7, s1=7) == 8

    def test_refused(self):
        with pytest.raises(ValueError, match=r"^s1 must be in \[10, inf\), got 9$"):
            doubling_steps(0, total_steps=10, s1=9)


class TestGrid:
    @pytest.mark.parametrize("n", [2, 11, 1281])
    def test_levels(self, n):
        levels = jax.jit(lambda n_traced: karras_sigma(jnp.arange(n), n_traced))(n)
        np.testing.assert_allclose(levels, grid(n), rtol=3e-6)

    def test_other_ends(self):
        levels = karras_sigma(np.arange(5), 5, sigma_min=0.1, sigma_max=3.0, rho=1.0)
        np.testing.assert_allclose(levels, [0.1, 0.825, 1.55, 2.275, 3.0], rtol=1e-6)
        np.testing.assert_allclose(karras_sigma(0, 5), 0.002, rtol=1e-6)

    def test_interval_of_a_level(self):
        points = grid(41)
        inside = np.sqrt(points[1:] * points[:-1])
        np.testing.assert_array_equal(jax.jit(karras_index)(inside.astype(np.float32), 41), np.arange(40))
        np.testing.assert_array_equal(karras_index(np.float32([1e-4, 0.002, 80.0, 1e3]), 41), [0, 0, 39, 39])

    @pytest.mark.parametrize("n", [2, 11, 1281])
    @pytest.mark.parametrize("rho", [1.0, 7.0])
    def test_points_of_the_grid_begin_their_interval(self, n, rho):
        points = karras_sigma(jnp.arange(n), n, rho=rho)
        below = jnp.nextafter(points[1:], 0.0)
        np.testing.assert_array_equal(karras_index(points[:-1], n, rho=rho), np.arange(n - 1))
        np.testing.assert_array_equal(karras_index(below, n, rho=rho), np.arange(n - 1))

    @pytest.mark.parametrize("name", ["sigma_min", "sigma_max", "rho"])
    def test_refused(self, name):
        with pytest.raises(ValueError, match=rf"^{name} must be in \(0, inf\), got 0.0$"):
            karras_sigma(0, 3, **{name: 0.0})


class TestLognormalIndexProbs:
    def test_numbers_of_the_paper(self):
        expected = [0.06263, 0.18174, 0.24550, 0.21349, 0.14245, 0.08060, 0.04108, 0.01958, 0.00894, 0.00398]
        np.testing.assert_allclose(lognormal_index_probs(11), expected, atol=6e-6)

    def test_mass_of_the_lognormal_in_each_interval(self):
        cumulated = scipy.stats.norm.cdf(np.log(grid(31, 0.01, 5.0)), 0.3, 0.7)
        expected = np.diff(cumulated) / (cumulated[-1] - cumulated[0])
        ours = lognormal_index_probs(31, p_mean=0.3, p_std=0.7, sigma_min=0.01, sigma_max=5.0)
        np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-6)


class TestAdaptiveC:
    @pytest.mark.parametrize(("n", "c"), [(11, 0.032159), (21, 0.014194), (81, 0.002765), (641, 0.000238)])
    def test_numbers_of_the_paper(self, n, c):
        np.testing.assert_allclose(adaptive_c(n), c, rtol=2e-3)
        np.testing.assert_allclose(jax.jit(adaptive_c)(n), np.exp(-1.18 * np.log(n - 1) - 0.72), rtol=1e-5)
