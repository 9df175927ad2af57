"""Code lengths against enumerated codes, SciPy's entropy and gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxreg.penalties import backslash_rate, exp_golomb_bits, ggd_bits


def exp_golomb_code(m, k):
    """The code word of an unsigned integer, written out."""
    quotient = bin((m >> k) + 1)[2:]
    remainder = format(m & (2**k - 1), f"0{k}b") if k else ""
    return "0" * (len(quotient) - 1) + quotient + remainder


@pytest.mark.parametrize("k", [0, 1, 3])
def test_code_lengths_are_those_of_the_codes(k):
    integers = np.arange(-300, 301)
    unsigned = [2 * q - 1 if q > 0 else -2 * q for q in integers.tolist()]
    codes = [exp_golomb_code(m, k) for m in unsigned]
    assert len(set(codes)) == len(codes)
    np.testing.assert_array_equal(exp_golomb_bits(integers, k=k), [len(code) for code in codes])


def test_code_lengths_next_to_powers_of_two():
    for power in (23, 24, 29):
        m = 2**power - 1  # the first integer of a new length
        lengths = exp_golomb_bits(jnp.array([-(m - 1) // 2, (m + 1) // 2]))
        np.testing.assert_array_equal(lengths, [2 * (power - 1) + 1, 2 * power + 1])


def test_ideal_bits_are_the_entropy():
    for shape in (0.7, 2.0):
        x = scipy.stats.gennorm.rvs(shape, scale=0.3, size=50_000, random_state=1).astype(np.float32)
        entropy = scipy.stats.gennorm.entropy(shape, scale=0.3) / np.log(2) + 6
        np.testing.assert_allclose(ggd_bits({"a": x[:20_000], "b": x[20_000:]}, step=2.0**-6), entropy, atol=0.02)


def test_ideal_bits_are_those_of_rounded_values():
    x = scipy.stats.gennorm.rvs(1.0, size=50_000, random_state=1).astype(np.float32)
    _, counts = np.unique(np.round(x * 8), return_counts=True)
    np.testing.assert_allclose(ggd_bits(x, step=1 / 8), scipy.stats.entropy(counts, base=2), atol=0.03)


def test_rate_by_hand():
    params = {"a": jnp.array([[4.0, -9.0]]), "b": jnp.array([0.0])}
    np.testing.assert_allclose(backslash_rate(params, shape=0.5, eps=1e-8), (2 + 3 + 1e-4) / 3, rtol=1e-6)
    gradient = jax.grad(lambda p: backslash_rate(p, shape=0.5))(params)
    np.testing.assert_allclose(gradient["a"], [[0.25 / 3, -0.5 / 3 / 3]], rtol=1e-5)
    np.testing.assert_array_equal(gradient["b"], [0.0])
    assert float(backslash_rate({})) == 0.0


def test_fitted_shape_is_taken_as_given():
    x = jnp.asarray(scipy.stats.gennorm.rvs(1.0, size=20_000, random_state=0), jnp.float32)
    np.testing.assert_allclose(backslash_rate(x), np.mean(np.abs(x)), rtol=0.02)
    gradient = jax.grad(backslash_rate)(x)
    np.testing.assert_allclose(len(x) * gradient, np.sign(x), atol=0.2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"k must be in \[0, 30\], got -1"):
        exp_golomb_bits(jnp.array([1]), k=-1)
    with pytest.raises(ValueError, match=r"eps must be in \(0, inf\), got 0"):
        backslash_rate(jnp.ones(2), eps=0)
    with pytest.raises(ValueError, match=r"step must be in \(0, inf\), got 0"):
        ggd_bits(jnp.ones(2), step=0)
