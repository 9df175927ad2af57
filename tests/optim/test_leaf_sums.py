import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.optim.leaf_sums import largest_magnitude, leaf_sums


def products(x, y):
    return x * y, x + 1


@pytest.mark.parametrize("shape", [(1000, 513), (3, 3, 64, 999), (400_000,), (7, 90_001), (5, 4), (0, 3)])
@pytest.mark.parametrize("keep_axis", [None, 0, -1])
def test_sums_are_numpys(shape, keep_axis):
    if keep_axis is not None and len(shape) == 1:
        keep_axis = 0
    x, y = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    axes = tuple(axis for axis in range(len(shape)) if keep_axis is None or axis != keep_axis % len(shape))
    ours = jax.jit(lambda x, y: leaf_sums(products, x, y, keep_axis=keep_axis))(x, y)
    for sums, terms in zip(ours, products(x.astype(np.float64), y.astype(np.float64)), strict=True):
        wanted = terms.sum(axes)
        assert sums.shape == wanted.shape
        np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-5 * np.sqrt(max(1, terms.size)))


def test_on_a_mesh_nothing_is_sliced():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones([4096, 64]), NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda x: leaf_sums(lambda x: (x,), x)[0]).lower(x).compile()
    assert compiled(x) == x.size
    assert "all-gather" not in compiled.as_text()
    assert "while" not in compiled.as_text()


@pytest.mark.parametrize("shape", [(1000, 513), (70_001,), (5, 4), (0, 3), ()])
def test_the_largest_magnitude_is_numpys(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert jax.jit(largest_magnitude)(x) == np.max(np.abs(x), initial=0.0)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_sum_that_is_not_finite_stays_so(value):
    x = jnp.ones([70_001]).at[34_999].set(value)
    np.testing.assert_equal(np.asarray(leaf_sums(lambda x: (x,), x)[0]), np.float32(value))


@pytest.mark.parametrize("keep_axis", [None, -1])
@pytest.mark.parametrize("shape", [(4096, 1024), (1440, 360), (2039, 999)])  # the last are 2039, a prime, and 27 * 37
def test_the_terms_of_a_large_leaf_are_stored_by_a_quarter_at_most(shape, keep_axis):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = jax.jit(lambda x, y: leaf_sums(products, x, y, keep_axis=keep_axis)).lower(x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 0.26 * x.size * x.dtype.itemsize


def test_under_vmap():
    x = jax.random.normal(jax.random.key(0), [2, 600, 512])
    together = jax.vmap(lambda x: leaf_sums(lambda x: (x * x,), x, keep_axis=1)[0])(x)
    np.testing.assert_allclose(together, np.square(np.asarray(x, np.float64)).sum(1), rtol=1e-5)
