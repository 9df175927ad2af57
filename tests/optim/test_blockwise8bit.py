import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.optim import dequantize_blockwise, dynamic_map, linear_map, quantize_blockwise

CODES = {
    "dynamic signed": dynamic_map(signed=True),
    "dynamic unsigned": dynamic_map(signed=False),
    "linear signed": linear_map(signed=True),
    "linear unsigned": linear_map(signed=False),
}
every_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def round_trip(x, code, block_size):
    codes, absmax = quantize_blockwise(x, code, block_size=block_size)
    return np.asarray(dequantize_blockwise(codes, absmax, code, shape=x.shape))


# The codes


def test_signed_dynamic_map_by_hand():
    code = dynamic_map()
    assert code.dtype == np.float32
    np.testing.assert_allclose([code[0], code[-1], code[-2]], [-0.99296875, 1.0, 0.99296875], rtol=1e-6)
    np.testing.assert_allclose(code[code > 0][:4], [5.5e-7, 3.25e-6, 7.75e-6, 2.125e-5], rtol=1e-6)
    assert len(np.unique(code)) == 256
    assert 0.0 in code
    np.testing.assert_array_equal(code[:127], -code[128:255][::-1])


def test_unsigned_dynamic_map_by_hand():
    code = dynamic_map(signed=False)
    np.testing.assert_allclose(code[:4], [0.0, 3.25e-7, 7.75e-7, 2.125e-6], rtol=1e-6)
    np.testing.assert_allclose(code[-2:], [1 - 0.45 / 128, 1.0], rtol=1e-6)
    assert len(np.unique(code)) == 256


def test_linear_map_is_evenly_spaced():
    np.testing.assert_allclose(linear_map(), np.arange(-127, 128) / 127, rtol=1e-6)
    np.testing.assert_allclose(linear_map(signed=False), np.arange(256) / 255, rtol=1e-6)


# The nearest code


def hard_inputs(code):
    """Numbers of all magnitudes, and those next to the middle between two codes, block maxima of 1 included."""
    random = np.random.default_rng(0)
    middles = ((code[1:].astype(np.float64) + code[:-1]) / 2).astype(np.float32)
    many = random.uniform(np.sign(code[0]), 1, 50_000) * 10 ** random.uniform(-8, 0, 50_000)
    extremes = [0.0, 1.0, 1e-30] + ([-1.0, -1e-30] if code[0] < 0 else [])
    near = [np.nextafter(middles, np.float32(to)) for to in (-2, 2)]
    return np.concatenate([[1.0], many, middles, *near, code, extremes]).astype(np.float32)


@every_code
@pytest.mark.parametrize("traced", [False, True])
def test_the_nearest_code_is_exact(code, traced):
    x = hard_inputs(code)
    # An enumeration in float64; `argmin` takes the lower of two that are equally near.
    wanted = np.concatenate([np.argmin(np.abs(code.astype(np.float64) - part[:, None]), axis=1) for part in x[:, None]])

    def quantize(x, code):
        return quantize_blockwise(x, code, block_size=x.size)

    codes, absmax = jax.jit(quantize)(x, code) if traced else jax.jit(lambda x: quantize(x, code))(x)
    assert absmax == 1
    np.testing.assert_array_equal(codes[0], wanted)


@every_code
@pytest.mark.parametrize("scale", [1e-20, 1.0, 3e4])
def test_codes_survive_a_round_trip(code, scale):
    x = jnp.asarray(code * scale)
    np.testing.assert_array_equal(round_trip(x, code, 256), x)


def test_the_largest_entry_is_exact_if_positive_and_a_little_short_if_negative():
    x = jnp.array([3.0, -1.0, 0.5, -7.0])
    np.testing.assert_allclose(round_trip(x, dynamic_map(), 2)[::3], [3.0, -7.0 * 0.99296875], rtol=1e-6)


def test_an_outlier_costs_its_own_block_only():
    x = jax.random.normal(jax.random.key(0), [16384]).at[0].set(300.0)
    means = [np.mean(np.abs(round_trip(x, dynamic_map(), size) - x)) for size in (16384, 2048, 256)]
    # Found with another implementation, on another draw.
    np.testing.assert_allclose(means, [0.034, 0.0127, 0.0089], rtol=0.03)


# Blocks


def test_blocks_are_cut_from_the_flattened_array_and_filled_with_zeros():
    codes, absmax = quantize_blockwise(-jnp.ones([3, 5]), linear_map(), block_size=4)
    assert (codes.shape, codes.dtype, absmax.shape) == ((4, 4), jnp.uint8, (4,))
    np.testing.assert_array_equal(codes.ravel(), [0] * 15 + [127])


def test_padding_does_not_count():
    codes, absmax = quantize_blockwise(jnp.array([1.0, 2.0, -3.0]), linear_map(), block_size=2)
    np.testing.assert_array_equal(absmax, [2.0, 3.0])
    np.testing.assert_array_equal(codes, [[190, 254], [0, 127]])


@every_code
def test_zeros_stay_zeros(code):
    np.testing.assert_array_equal(round_trip(jnp.zeros([10]), code, 4), np.zeros(10))


def test_without_a_shape_the_blocks_come_back():
    codes, absmax = quantize_blockwise(jnp.ones([3]), dynamic_map(), block_size=2)
    np.testing.assert_array_equal(dequantize_blockwise(codes, absmax, dynamic_map()), [[1.0, 1.0], [1.0, 0.0]])


def test_half_precision_is_quantized_like_float32():
    x = jnp.linspace(-1, 1, 100, dtype=jnp.bfloat16)
    half, full = (quantize_blockwise(x.astype(dtype), dynamic_map()) for dtype in (jnp.bfloat16, jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, half, full)


def test_a_code_that_is_locally_denser_than_the_lookup_table_is_searched():
    code = np.array([-1.0, -0.5, 0.25, 0.2501, 0.2502, 1.0], np.float32)
    codes, _ = quantize_blockwise(jnp.array([0.25006, 0.25004, -0.8, 1.0]), code, block_size=4)
    np.testing.assert_array_equal(codes[0], [3, 2, 0, 5])


# What is refused


def test_a_block_size_below_one_is_refused():
    with pytest.raises(ValueError, match="block_size must be in"):
        quantize_blockwise(jnp.ones(3), dynamic_map(), block_size=0)


def test_more_than_256_codes_are_refused():
    with pytest.raises(ValueError, match="at most 256 values, got 257"):
        quantize_blockwise(jnp.ones(3), np.linspace(-1, 1, 257, dtype=np.float32))


@pytest.mark.parametrize("shape", [(9,), (3, 3), (4,)])
def test_a_shape_that_does_not_fit_is_refused(shape):
    codes, absmax = quantize_blockwise(jnp.ones(7), dynamic_map(), block_size=4)
    with pytest.raises(ValueError, match="shape must have as many entries"):
        dequantize_blockwise(codes, absmax, dynamic_map(), shape=shape)
