"""A random part of a tree's entries, drawn anew now and then.

An optimizer that keeps state for such a part only saves memory if it is cheap to remember which part. Of a flattened
leaf with ``size`` entries ``columns = int(density * size)`` are chosen: write the leaf in rows of that length and
choose one entry of every column. What there is to remember is a row for each column, a byte; taking the chosen entries
and putting them back pass over the leaf once, without a sort or a scatter.

The last row may be incomplete. It then starts at a random column, goes on at the first after the last, and each of its
entries is chosen with probability ``columns / size``. So every entry of the leaf is equally likely.

    entries 0 to 7 in 3 columns, the last row from column 2 on:    0  1  2
                                                                   3  4  5
                                                                   7     6
"""

import functools
import itertools
import math
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.sharding import with_any_sharding
from jaxreg.typing import Array, Bool, Int, PRNGKeyArray, PyTree, checked


class Subset(NamedTuple):
    """Some entries of every leaf of a tree.

    Attributes:
        rows: for every leaf the row of the entry chosen in each column, in the smallest unsigned type that holds it.
        start: the column where the last row starts, up to multiples of the number of columns; one for all leaves.
    """

    rows: PyTree
    start: Int[Array, ""]


@checked
def draw(key: PRNGKeyArray, tree: PyTree, density: float | int) -> Subset:
    """Chooses a random part of a tree.

    Args:
        key: random key.
        tree: arrays, or only their shapes.
        density: the part, in (0, 1]: ``int(density * size)`` entries of every leaf, and at least one.

    Returns:
        The subset.
    """
    leaves, structure = jax.tree.flatten(tree)
    rows, start = _draw(key, _sizes(leaves), density)
    return Subset(structure.unflatten(rows), start)


@checked
def redraw(when: Bool[Array, ""], subset: Subset, key: PRNGKeyArray, tree: PyTree, density: float | int) -> Subset:
    """Chooses anew when it is time to, else keeps the subset.

    Args:
        when: whether it is time.
        subset: the subset so far.
        key: see :func:`draw`, as are the other arguments.
        tree: what the subset is a part of.
        density: of the subset.

    Returns:
        The subset from now on.
    """
    leaves, structure = jax.tree.flatten(tree)
    rows, start = _redraw(when, jax.tree.leaves(subset.rows), subset.start, key, _sizes(leaves), density)
    return Subset(structure.unflatten(rows), start)


@checked
def take(tree: PyTree, subset: Subset) -> PyTree:
    """The chosen entries, one flat array a leaf.

    Args:
        tree: arrays.
        subset: drawn from a tree of these shapes.

    Returns:
        The tree of the chosen entries, in the order of their columns.
    """

    def take_leaf(leaf, rows, start):
        columns = rows.size
        full, rest = _full_rows(leaf.size, columns)
        column = jnp.arange(columns, dtype=jnp.uint32)
        position = rows.astype(jnp.uint32) * columns + column
        if rest:
            position = jnp.where(rows < full, position, full * columns + _column_to_entry(column, start, columns))
        return _at(jnp.ravel(leaf), position)

    return jax.tree.map(
        lambda leaf, rows: with_any_sharding(take_leaf, leaf, jax.typeof(rows).sharding)(leaf, rows, subset.start),
        tree,
        subset.rows,
    )


@checked
def put(values: PyTree, subset: Subset, like: PyTree) -> PyTree:
    """The inverse of :func:`take`: values at the chosen entries, zero elsewhere.

    Args:
        values: one flat array a leaf.
        subset: drawn from a tree of the shapes of ``like``.
        like: arrays that say which shapes, types and sharding to return.

    Returns:
        A tree like ``like``.
    """

    def put_leaf(flat, rows, start, to):
        if not to.size:
            return jnp.zeros_like(to)
        flat = flat.astype(to.dtype)
        columns = rows.size
        full, rest = _full_rows(to.size, columns)

        def look_up(row, column):
            return jnp.where(_at(rows, column) == row, _at(flat, column), 0)

        if full <= 8:
            # One after another, a few rows take a CPU half as long as looking up; ten of them take three times as long.
            parts = [jnp.where(rows == row, flat, 0) for row in range(full)]
            if rest:
                parts.append(look_up(full, _entry_to_column(jnp.arange(rest, dtype=jnp.uint32), start, columns)))
            entries = jnp.concatenate(parts)
        else:
            position = jnp.arange(to.size, dtype=jnp.uint32)
            row = position // columns
            column = position - row * columns
            if rest:
                column = jnp.where(row < full, column, _entry_to_column(column, start, columns))
            entries = look_up(row, column)
        # Behind the barrier, for XLA's code for a sum of a concatenation is slow on a CPU. A zero with the sign of `to`
        # adds nothing but hands its sharding to the sum.
        entries = jax.lax.optimization_barrier(entries).reshape(to.shape)
        return entries + jnp.copysign(jnp.zeros([], to.dtype), to)

    return jax.tree.map(
        lambda flat, rows, to: with_any_sharding(put_leaf, to, jax.typeof(to).sharding)(flat, rows, subset.start, to),
        values,
        subset.rows,
        like,
    )


@functools.partial(jax.jit, static_argnames=("sizes", "density"))
def _draw(key, sizes, density):
    """Rows for leaves of these sizes, and the start.

    All leaves share one call of the generator, those of one size everything: apart, XLA took 400 seconds to compile the
    drawing for 300 leaves.
    """

    def choose(bits, size, columns):
        full, rest = _full_rows(size, columns)
        dtype = np.min_scalar_type(full if rest else full - 1)
        rows = bits[:, :columns] % full
        if rest:
            # An entry of a full row then has probability (1 - rest / columns * columns / size) / full = columns / size.
            last = bits[:, columns:] < np.uint32((columns << 32) // size)
            entry = _column_to_entry(jnp.arange(columns, dtype=jnp.uint32), start, columns)
            rows = jnp.where((entry < rest) & last[:, jnp.minimum(entry, rest - 1)], full, rows)
        return rows.astype(dtype)

    alike = Counter(size for size in sizes if size)
    columns = {size: max(1, int(density * size)) for size in alike}
    needed = [1, *(count * (columns[size] + size % columns[size]) for size, count in alike.items())]
    bits, *parts = jnp.split(jax.random.bits(key, [sum(needed)], jnp.uint32), list(itertools.accumulate(needed))[:-1])
    start = bits[0]
    drawn = {
        size: iter(choose(part.reshape(alike[size], -1), size, columns[size]))
        for part, size in zip(parts, alike, strict=True)
    }
    return [next(drawn[size]) if size else jnp.zeros([0], jnp.uint8) for size in sizes], start


@functools.partial(jax.jit, static_argnames=("sizes", "density"))
def _redraw(when, rows, start, key, sizes, density):
    return jax.lax.cond(when, lambda: _draw(key, sizes, density), lambda: (rows, start))


def _full_rows(size, columns):
    """How many rows are full, and the length of the rest."""
    return divmod(size, max(1, columns))


def _entry_to_column(entry, start, columns):
    """The columns of entries of the last row."""
    start = start % columns
    return jnp.where(entry < columns - start, entry + start, entry - (columns - start))


def _column_to_entry(column, start, columns):
    """The entries of the last row, were it complete, in some columns."""
    start = start % columns
    return jnp.where(column < start, column + (columns - start), column - start)


def _at(flat, position):
    """The elements at positions that are known to exist, unchecked."""
    return flat.at[position].get(mode="promise_in_bounds")


def _sizes(leaves):
    return tuple(math.prod(leaf.shape) for leaf in leaves)
