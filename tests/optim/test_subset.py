"""Random parts of a tree against a NumPy picture of the rows, hand-made examples and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.optim.subset import Subset, draw, put, redraw, take


def picture(size, columns, start):
    """The entries of a leaf where the module's docstring draws them, -1 where there is none."""
    full = size // columns
    last = np.full(columns, -1)
    last[: size - full * columns] = np.arange(full * columns, size)
    return np.concatenate([np.arange(full * columns).reshape(full, columns), [np.roll(last, start)]])


def positions(size, rows, start):
    """The flat positions of the chosen entries."""
    rows = np.asarray(rows)
    return picture(size, rows.size, int(start) % rows.size)[rows, np.arange(rows.size)]


def test_take_and_put_by_hand():
    leaf = 10 * jnp.arange(8)
    chosen = Subset(jnp.array([2, 1, 2], jnp.uint8), jnp.uint32(2))
    np.testing.assert_array_equal(picture(8, 3, 2), [[0, 1, 2], [3, 4, 5], [7, -1, 6]])
    np.testing.assert_array_equal(take(leaf, chosen), [70, 40, 60])
    np.testing.assert_array_equal(put(jnp.array([1, 2, 3]), chosen, leaf), [0, 0, 0, 0, 2, 0, 3, 1])


@pytest.mark.parametrize("size", [1, 2, 7, 12, 13])
def test_every_row_of_every_small_leaf(size):
    """For all numbers of columns and all starts: take and put agree with the picture, row by row."""
    leaf = jnp.arange(size)
    for columns in range(1, size + 1):
        starts = np.arange(columns + 2)  # also beyond the columns
        pictures = np.stack([picture(size, columns, start % columns) for start in starts])
        rows = np.arange(pictures.shape[1])
        chosen = Subset(
            jnp.broadcast_to(rows[None, :, None].astype(np.uint8), pictures.shape),
            jnp.broadcast_to(starts[:, None], pictures.shape[:2]).astype(jnp.uint32),
        )
        there = pictures >= 0

        def both(chosen, leaf=leaf):
            return take(leaf, chosen), put(jnp.ones(chosen.rows.shape, jnp.int32), chosen, leaf)

        taken, mask = jax.jit(jax.vmap(jax.vmap(both)))(chosen)
        np.testing.assert_array_equal(np.where(there, taken, -1), pictures)
        for start in starts:
            for row in rows:
                entries = pictures[start, row][there[start, row]]
                np.testing.assert_array_equal(np.flatnonzero(mask[start, row]), np.sort(entries))
        np.testing.assert_array_equal(mask.sum(axis=1), 1)


SHAPES = {"scalar": (), "vector": (8,), "odd": (31,), "matrix": (30, 11), "kernel": (2, 3, 5, 7), "empty": (0, 3)}


@pytest.mark.parametrize("density", [0.004, 0.05, 0.07, 0.12, 0.25, 0.3, 0.7, 1.0])
def test_take_and_put_are_numpy_indexing(density):
    tree = {name: 1.0 + jnp.arange(np.prod(shape, dtype=int)).reshape(shape) for name, shape in SHAPES.items()}

    @jax.jit
    def draw_take_put(key):
        chosen = draw(key, tree, density)
        taken = take(tree, chosen)
        return chosen, taken, put(jax.tree.map(lambda x: -x, taken), chosen, tree)

    for key in jax.random.split(jax.random.key(0), 3):
        chosen, taken, back = draw_take_put(key)
        for name, leaf in tree.items():
            leaf = np.asarray(leaf)
            expected = np.zeros_like(leaf)
            if leaf.size:
                where = positions(leaf.size, chosen.rows[name], chosen.start)
                assert where.min() >= 0, "an entry that does not exist is chosen"
                assert len(set(where)) == max(1, int(density * leaf.size))
                np.testing.assert_array_equal(taken[name], leaf.ravel()[where])
                expected.ravel()[where] = -leaf.ravel()[where]
            np.testing.assert_array_equal(back[name], expected)
            assert back[name].shape == leaf.shape


@pytest.mark.parametrize("density", [0.1, 0.3, 0.7])
def test_every_entry_is_equally_likely(density):
    size, draws = 13, 20_000
    leaf = jnp.zeros(size)

    def mask(key):
        chosen = draw(key, leaf, density)
        return put(jnp.ones(chosen.rows.shape), chosen, leaf)

    frequency = jax.jit(lambda keys: jax.vmap(mask)(keys).mean(0))(jax.random.split(jax.random.key(1), draws))
    expected = max(1, int(density * size)) / size
    np.testing.assert_allclose(frequency, expected, atol=4.5 * np.sqrt(expected * (1 - expected) / draws))


def test_leaves_of_one_size_get_other_rows():
    chosen = draw(jax.random.key(0), [jnp.zeros(100), jnp.zeros([10, 10])], 0.2)
    assert not np.array_equal(*chosen.rows)


@pytest.mark.parametrize(
    ("size", "columns", "dtype"),
    [(512, 2, np.uint8), (511, 2, np.uint8), (513, 2, np.uint16), (514, 2, np.uint16), (2**17 + 1, 1, np.uint32)],
)
def test_rows_have_the_smallest_type_that_holds_them(size, columns, dtype):
    rows = draw(jax.random.key(0), jnp.zeros(size), (columns + 0.5) / size).rows
    assert (rows.size, rows.dtype) == (columns, dtype)


def test_what_is_not_chosen_does_not_leak():
    leaf = jnp.arange(40.0)
    for density in (0.05, 0.3):
        chosen = draw(jax.random.key(0), leaf, density)
        mask = put(jnp.ones(chosen.rows.size), chosen, leaf) > 0
        assert jnp.isfinite(take(jnp.where(mask, leaf, jnp.nan), chosen)).all()
        back = put(jnp.full(chosen.rows.size, jnp.nan), chosen, leaf)
        np.testing.assert_array_equal(jnp.isnan(back), mask)


def test_values_take_the_type_of_the_leaf():
    leaf = jnp.ones(10, jnp.bfloat16)
    chosen = draw(jax.random.key(0), leaf, 0.5)
    assert take(leaf, chosen).dtype == put(jnp.ones(5), chosen, leaf).dtype == jnp.bfloat16


@pytest.mark.parametrize("density", [0.01, 0.3])
def test_positions_beyond_the_integers_of_float32(density):
    size = 2**24 + 5
    leaf = jnp.arange(size)
    chosen = draw(jax.random.key(0), leaf, density)
    taken = take(leaf, chosen)
    np.testing.assert_array_equal(taken, positions(size, chosen.rows, chosen.start))
    np.testing.assert_array_equal(np.flatnonzero(put(1 + taken, chosen, leaf)), np.sort(taken))


def test_redraw_draws_when_it_is_time():
    tree = {"a": jnp.zeros([7, 3]), "b": jnp.zeros(())}
    old, new = (draw(jax.random.key(seed), tree, 0.3) for seed in (0, 1))
    for when, expected in ((True, new), (False, old)):
        actual = redraw(jnp.array(when), old, jax.random.key(1), tree, 0.3)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert not np.array_equal(old.rows["a"], new.rows["a"])


def test_shapes_and_empty_trees_are_enough_to_draw():
    shapes = {"a": jax.ShapeDtypeStruct((5, 4), jnp.float32), "none": None}
    chosen = draw(jax.random.key(0), shapes, 0.5)
    jax.tree.map(
        np.testing.assert_array_equal, chosen, draw(jax.random.key(0), {"a": jnp.zeros([5, 4]), "none": None}, 0.5)
    )
    nothing = draw(jax.random.key(0), {}, 0.5)
    assert take({}, nothing) == put({}, nothing, {}) == {}


@pytest.mark.parametrize("density", [0.05, 0.07, 0.3])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_leaves_keep_their_sharding(density, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    leaf = jnp.arange(320.0).reshape(8, 40)

    def run(leaf):
        chosen = draw(jax.random.key(0), leaf, density)
        return put(take(leaf, chosen), chosen, leaf)

    for spec in (P("data", "model"), P(None, "data"), P()):
        sharding = NamedSharding(mesh, spec)
        with jax.set_mesh(mesh):
            back = jax.jit(run)(jax.device_put(leaf, sharding))
        np.testing.assert_array_equal(back, run(leaf))
        assert back.sharding.is_equivalent_to(sharding, 2)
