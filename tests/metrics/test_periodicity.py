"""Participation ratios of waves in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import ipr, neuron_ipr

ANGLE = 2 * np.pi * np.arange(97) / 97


def wave(frequency, phase=0.3):
    return np.cos(frequency * ANGLE + phase).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_one_frequency_is_one(scale):
    weights = scale * np.stack([wave(1), wave(17), wave(48), np.ones(97, np.float32)])
    np.testing.assert_allclose(ipr(weights), 1.0, rtol=1e-4)


@pytest.mark.parametrize("r", [1.5, 2, 3])
def test_equal_frequencies_share(r):
    """m waves of the same size: m (1/m)^r."""
    for m in (2, 5):
        weights = sum(wave(3 * k + 1, phase=k) for k in range(m))
        np.testing.assert_allclose(ipr(weights, r=r), m ** (1.0 - r), rtol=1e-4)


def test_unequal_waves_by_hand():
    """Powers 4 and 1: (16 + 1) / 25."""
    np.testing.assert_allclose(ipr(2 * wave(3) + wave(20, 1.0)), 17 / 25, rtol=1e-4)


def test_random_weights_have_a_small_ratio():
    """48 complex normal and one real normal frequency: nearly 2 / 49."""
    weights = jax.random.normal(jax.random.key(0), [2000, 97])
    np.testing.assert_allclose(jnp.mean(ipr(weights)), 2 / 49, rtol=0.04)


def test_no_weights_no_ratio():
    assert float(ipr(jnp.zeros(7))) == 0.0
    np.testing.assert_array_equal(neuron_ipr(jnp.zeros([2, 5]), jnp.zeros([2, 5]), jnp.zeros([5, 2])), [0.0, 0.0])


def test_neurons_average_their_three_sides():
    flat = wave(1) + wave(2)
    left, right, output = np.stack([wave(3), flat]), np.stack([wave(5), wave(7)]), np.stack([flat, flat])
    np.testing.assert_allclose(neuron_ipr(left, right, output.T), [(1 + 1 + 0.5) / 3, (0.5 + 1 + 0.5) / 3], rtol=1e-4)


def test_bad_power_is_named():
    with pytest.raises(ValueError, match=r"r must be in \(1, inf\), got 1"):
        ipr(jnp.ones(3), r=1)
