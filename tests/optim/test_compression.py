"""Compressors against NumPy, closed forms of their errors, and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxreg.optim import Compressor, contraction, rand_k, stochastic_rounding, topk

KEY = jax.random.key(0)
VECTOR = np.random.default_rng(0).normal(size=40).astype(np.float32)

vectors = hnp.arrays(np.float32, 12, elements=st.floats(-100, 100, width=32))


def there_and_back(compressor, vector, key=KEY):
    return compressor.decompress(key, compressor.compress(key, vector), vector.size)


def over_keys(compressor, vector, count):
    keys = jax.random.split(KEY, count)
    return np.asarray(jax.jit(jax.vmap(lambda key: there_and_back(compressor, vector, key)))(keys), np.float64)


def nbytes(compressor, d):
    message = jax.eval_shape(compressor.compress, KEY, jax.ShapeDtypeStruct((d,), jnp.float32))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(message))


class TestTopK:
    @settings(max_examples=50, deadline=None)
    @given(vectors)
    def test_it_keeps_the_largest_in_size_and_of_equal_ones_the_first(self, vector):
        keep = np.argsort(-np.abs(vector), kind="stable")[:5]
        expected = np.zeros_like(vector)
        expected[keep] = vector[keep]
        np.testing.assert_array_equal(there_and_back(topk(5), jnp.asarray(vector)), expected)

    @settings(max_examples=50, deadline=None)
    @given(vectors)
    def test_it_is_a_contraction(self, vector):
        vector = vector.astype(np.float64)
        error = np.asarray(there_and_back(topk(5), jnp.asarray(vector, jnp.float32)), np.float64) - vector
        assert error @ error <= (1 - contraction(topk(5), 12)) * (vector @ vector) * (1 + 1e-12)

    def test_equal_sizes_attain_the_contraction(self):
        vector = np.where(np.arange(12) % 3, 2.0, -2.0)
        error = there_and_back(topk(5), jnp.asarray(vector)) - vector
        np.testing.assert_allclose(error @ error, (1 - 5 / 12) * (vector @ vector))

    def test_all_entries_are_nothing_lost(self):
        for k in (40, 100):
            np.testing.assert_array_equal(there_and_back(topk(k), jnp.asarray(VECTOR)), VECTOR)
            assert contraction(topk(k), 40) == 1

    @pytest.mark.parametrize(("d", "bytes_per_index"), [(256, 1), (257, 2), (65_536, 2), (65_537, 4)])
    def test_indices_are_no_wider_than_needed(self, d, bytes_per_index):
        assert nbytes(topk(3), d) == 3 * (4 + bytes_per_index)
        last = jnp.zeros(d).at[d - 1].set(1.0)
        np.testing.assert_array_equal(there_and_back(topk(3), last), last)


class TestRandK:
    def test_it_keeps_k_entries_as_they_are(self):
        kept = there_and_back(rand_k(7), jnp.asarray(VECTOR))
        assert np.sum(kept != 0) == 7
        np.testing.assert_array_equal(kept, np.where(kept != 0, VECTOR, 0))

    def test_only_the_values_are_sent(self):
        assert nbytes(rand_k(7), 40) == 7 * 4

    def test_every_entry_is_equally_likely(self):
        kept = over_keys(rand_k(3), jnp.ones(10), 4000)
        np.testing.assert_allclose(kept.mean(0), 0.3, atol=5 * np.sqrt(0.3 * 0.7 / 4000))

    def test_mean_squared_error(self):
        errors = np.sum((over_keys(rand_k(10), jnp.asarray(VECTOR), 4000) - VECTOR) ** 2, axis=1)
        expected = (1 - contraction(rand_k(10), 40)) * np.sum(VECTOR.astype(np.float64) ** 2)
        np.testing.assert_allclose(errors.mean(), expected, atol=5 * errors.std() / np.sqrt(4000))


class TestStochasticRounding:
    def test_it_is_unbiased(self):
        rounded = over_keys(stochastic_rounding(block_size=8), jnp.asarray(VECTOR), 4000)
        step = np.repeat(np.abs(VECTOR).reshape(-1, 8).max(1) / 127, 8)
        np.testing.assert_array_less(np.abs(rounded.mean(0) - VECTOR), 5 * step / 2 / np.sqrt(4000) + 1e-7)

    @pytest.mark.parametrize("block_size", [1, 8, 16, 1000])
    def test_it_errs_by_less_than_a_step_and_in_the_mean_as_stated(self, block_size):
        compressor = stochastic_rounding(block_size=block_size)
        errors = over_keys(compressor, jnp.asarray(VECTOR), 200) - VECTOR
        blocks = [VECTOR[start : start + block_size] for start in range(0, 40, block_size)]
        step = np.concatenate([np.full(len(block), np.abs(block).max() / 127) for block in blocks])
        assert (np.abs(errors) <= step * (1 + 1e-5)).all()
        bound = (1 - contraction(compressor, 40)) * np.sum(VECTOR**2)
        assert np.sum(errors**2, axis=1).mean() <= bound

    def test_the_largest_error_is_half_way_between_two_levels(self):
        """All but the first entry of a block at half a step: squared error 1/4 each, the bound's d / 4 but for one."""
        vector = np.full(256, 0.5, np.float32)
        vector[0] = 127.0
        errors = over_keys(stochastic_rounding(), jnp.asarray(vector), 20) - vector
        np.testing.assert_allclose(np.sum(errors**2, axis=1), 255 / 4, rtol=1e-6)
        np.testing.assert_allclose(1 - contraction(stochastic_rounding(), 256), 256 / 4 / 127**2, rtol=1e-6)

    def test_levels_are_exact(self):
        levels = np.arange(-127, 128).astype(np.float32) / 4
        np.testing.assert_array_equal(there_and_back(stochastic_rounding(), jnp.asarray(levels)), levels)
        np.testing.assert_array_equal(there_and_back(stochastic_rounding(), jnp.zeros(300)), np.zeros(300))

    @pytest.mark.parametrize(("d", "scales"), [(0, 0), (1, 1), (256, 1), (257, 2)])
    def test_a_byte_for_each_entry_and_a_scale_for_each_block(self, d, scales):
        assert nbytes(stochastic_rounding(), d) == d + 4 * scales


@pytest.mark.parametrize("compressor", [topk(3), rand_k(3), stochastic_rounding(block_size=3)])
class TestEvery:
    def test_jit_and_vmap(self, compressor):
        rows, keys = jnp.asarray(VECTOR).reshape(4, 10), jax.random.split(KEY, 4)
        together = jax.jit(jax.vmap(lambda row, key: there_and_back(compressor, row, key)))(rows, keys)
        alone = [there_and_back(compressor, row, key) for row, key in zip(rows, keys, strict=True)]
        np.testing.assert_allclose(together, alone, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
    def test_precision_is_kept(self, compressor, dtype):
        assert there_and_back(compressor, jnp.asarray(VECTOR, dtype)).dtype == dtype

    def test_empty_vectors(self, compressor):
        assert there_and_back(compressor, jnp.zeros(0)).shape == (0,)


class TestWhatIsRefused:
    @pytest.mark.parametrize("make", [topk, rand_k])
    def test_no_entries(self, make):
        with pytest.raises(ValueError, match=r"k must be in \[1, inf\), got 0"):
            make(0)

    @pytest.mark.parametrize("block_size", [0, 64_516])
    def test_blocks_without_a_contraction(self, block_size):
        with pytest.raises(ValueError, match=r"block_size must be in \[1, 64515\]"):
            stochastic_rounding(block_size=block_size)

    def test_what_is_no_contraction(self):
        scaled = Compressor(lambda key, v: 4 * v, lambda key, m, d: m, lambda d: -8.0)
        with pytest.raises(ValueError, match=r"delta must be in \(0, 1\], got -8"):
            contraction(scaled, 5)
        with pytest.raises(ValueError, match=r"d must be in \[1, inf\), got 0"):
            contraction(topk(1), 0)
