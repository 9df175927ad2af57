import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, ScalarLike, checked


@checked
def scaled(
    x: Float[Array, "*batch n"], labels: Int[Array, "*batch"], *, by: ScalarLike = 1.0
) -> Float[Array, "*batch"]:
    """An example."""
    return jnp.sum(x, -1) * by + 0.0 * labels


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_numpy_and_jax_arrays_pass_and_labels_may_be_unsigned(dtype):
    x, labels = np.ones((2, 3), np.float32), np.zeros(2, dtype)
    for convert in (np.asarray, jnp.asarray, jnp.asarray):
        np.testing.assert_array_equal(scaled(convert(x), convert(labels)), [3, 3])


@pytest.mark.parametrize("by", [2, 2.0, np.float32(2), np.int32(2), np.array(2.0), jnp.array(2.0), jnp.array(2)])
def test_scalars_of_every_kind_pass(by):
    np.testing.assert_array_equal(scaled(jnp.ones([1, 3]), jnp.zeros([1], int), by=by), [6])


def test_numpy_arrays_pass_within_a_gradient():
    def total(x, by):
        return scaled(jax.lax.stop_gradient(x), np.zeros(2, int), by=by).sum()

    to_x, to_by = jax.grad(total, argnums=(0, 1))(np.ones((2, 3), np.float32), 2.0)
    np.testing.assert_array_equal(to_x, np.zeros([2, 3]))
    assert to_by == 6


def test_tracers_pass():
    value = jax.jit(jax.grad(lambda by: scaled(jnp.ones([3]), jnp.array(0), by=by)))(2.0)
    assert value == 3


@pytest.mark.parametrize(
    ("arguments", "settings", "name"),
    [
        ((jnp.ones([2, 3]), jnp.zeros([3], int)), {}, "labels"),
        ((jnp.ones([2, 3]), jnp.zeros([2])), {}, "labels"),
        ((jnp.ones([2, 3], int), jnp.zeros([2], int)), {}, "x"),
        (([1.0, 2.0], jnp.array(0)), {}, "x"),
        ((jnp.ones([2, 3]), jnp.zeros([2], int)), {"by": jnp.ones([2])}, "by"),
        ((jnp.ones([2, 3]), jnp.zeros([2], int)), {"by": "much"}, "by"),
    ],
)
def test_mistakes_are_named(arguments, settings, name):
    with pytest.raises(TypeError, match=rf"tests.*scaled.*\n.*parameter '{name}'"):
        scaled(*arguments, **settings)


def test_the_signature_stays_readable():
    assert list(inspect.signature(scaled).parameters) == ["x", "labels", "by"]
    assert scaled.__doc__ == "An example."


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.float32),
        (jnp.float32, jnp.float32),
        (jnp.int32, jnp.float32),
        (jnp.uint8, jnp.float32),
        (jnp.bool_, jnp.float32),
    ],
)
def test_precision_is_widened_to_float32(given, result):
    wide = at_least_float32(jnp.ones([2], given))
    assert wide.dtype == result
    np.testing.assert_array_equal(wide, 1)


def test_float64_stays():
    with jax.enable_x64(True):
        assert at_least_float32(jnp.ones([2], jnp.float64)).dtype == jnp.float64
