"""RF8 against the small floats of ml_dtypes, and against all numbers of the format written out."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxreg.compression import rf8_quantize


@pytest.mark.parametrize(
    ("dtype", "exp_bits", "man_bits", "bias"),
    [(ml_dtypes.float8_e4m3, 4, 3, 7), (ml_dtypes.float8_e3m4, 3, 4, 3), (ml_dtypes.float8_e5m2, 5, 2, 15)],
)
def test_below_its_largest_number_it_is_the_ieee_format(dtype, exp_bits, man_bits, bias):
    largest = float(ml_dtypes.finfo(dtype).max)
    rng = np.random.default_rng(0)
    numbers = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    ties = (numbers[1:] + numbers[:-1]) / 2
    x = np.concatenate([numbers, ties, rng.normal(size=2000), largest * rng.uniform(-1, 1, 2000)]).astype(np.float32)
    ours = rf8_quantize(x, exp_bits=exp_bits, man_bits=man_bits, bias=bias)
    np.testing.assert_array_equal(ours, x.astype(dtype).astype(np.float32))


def test_all_codes_are_numbers():
    """Every number of the format is kept, and whatever else becomes the nearest of them."""
    e, m = np.meshgrid(np.arange(16), np.arange(8), indexing="ij")
    numbers = np.where(e == 0, 2.0**-6 * m / 8, 2.0 ** (e - 7.0) * (1 + m / 8)).ravel()
    assert len(np.unique(numbers)) == 128
    np.testing.assert_array_equal(rf8_quantize(jnp.asarray(numbers, jnp.float32), bias=7), numbers)
    x = np.random.default_rng(0).uniform(-500, 500, 5000).astype(np.float32)
    ours = np.asarray(rf8_quantize(x, bias=7))
    nearest = np.abs(np.abs(x)[:, None] - numbers).min(axis=1)
    np.testing.assert_array_equal(np.abs(x - ours), nearest.astype(np.float32))


def test_it_saturates():
    x = jnp.array([1e30, -jnp.inf, 481.0])
    np.testing.assert_array_equal(rf8_quantize(x, bias=7), [480.0, -480.0, 480.0])
    assert np.isnan(rf8_quantize(jnp.array([jnp.nan]), bias=7))


@pytest.mark.parametrize("largest", [3e-12, 0.7, 1.0, 1.99, 5e11])
def test_the_bias_fits_the_largest_value(largest):
    """A relative error of 1/16 at most, down to 2**-14 of the largest value."""
    x = largest * np.concatenate([[1.0, -1.0], np.random.default_rng(0).uniform(2.0**-13, 1, 1000)])
    ours = np.asarray(jax.jit(rf8_quantize)(x.astype(np.float32)), np.float64)
    assert np.max(np.abs(ours / x - 1)) <= 1 / 16 + 1e-6
    if largest == 1.0:
        assert (ours[:2] == [1.0, -1.0]).all()


def test_zeros_and_dtypes_are_kept():
    np.testing.assert_array_equal(rf8_quantize(jnp.zeros([2, 2])), np.zeros([2, 2]))
    assert rf8_quantize(jnp.zeros([0])).shape == (0,)
    half = rf8_quantize(jnp.array([1.06, -0.3], jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_bad_widths_are_named():
    with pytest.raises(ValueError, match=r"exp_bits must be in \[1, 7\], got 0"):
        rf8_quantize(jnp.ones(1), exp_bits=0)
    with pytest.raises(ValueError, match=r"man_bits must be in \[0, 10\], got -1"):
        rf8_quantize(jnp.ones(1), man_bits=-1)
