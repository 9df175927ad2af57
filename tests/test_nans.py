import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.nans import unless_nan


def test_the_outcome_or_nan_where_anything_measured_is():
    x, y = jnp.array([[1.0], [jnp.nan]]), jnp.array([0.0, 2.0, jnp.nan])
    expected = [[1.0, 0.0, np.nan], [np.nan, np.nan, np.nan]]
    np.testing.assert_array_equal(unless_nan(x > y, x, y), expected)


def test_infinity_is_a_number():
    assert unless_nan(jnp.array(True), jnp.array(-jnp.inf)) == 1.0


def test_precision():
    assert unless_nan(jnp.array([True]), jnp.ones([1], jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert unless_nan(jnp.array([True]), jnp.ones([1], jnp.float32)).dtype == jnp.float32
        assert unless_nan(jnp.ones([1], jnp.float64), jnp.ones([1], jnp.float32)).dtype == jnp.float64
