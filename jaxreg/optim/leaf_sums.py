"""Sums over a leaf of what is computed from it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, checked

BLOCK = 2**16  # entries; 256 KB of float32, a part of a core's cache


@checked
def leaf_sums(
    terms: Callable, *arrays: Float[Array, "*shape"], keep_axis: int | None = None
) -> tuple[Float[Array, "..."], ...]:
    """Sums of elementwise terms, over all axes or all but one.

    On a CPU XLA stores what it is about to sum, which for a large leaf takes longer than the rest of an optimizer's
    step. There it is done block by block: what a block's terms are stored in stays in the cache.

    >>> import jax.numpy as jnp
    >>> [float(total) for total in leaf_sums(lambda x, y: (x * y, y), jnp.arange(3.0), jnp.ones(3))]
    [3.0, 3.0]

    Args:
        terms: of blocks of the arrays, a tuple of arrays of the same shape.
        arrays: of one shape.
        keep_axis: the axis that is not summed over; None for none.

    Returns:
        The sums, in the order of the terms; ``keep_axis`` is their only axis.
    """
    shape = arrays[0].shape
    kept = set() if keep_axis is None else {keep_axis % len(shape)}
    summed = [axis for axis in range(len(shape)) if axis not in kept]

    def reduce(values):
        return tuple(jnp.sum(value, tuple(summed)) for value in values)

    def at_once(*arrays):
        return reduce(terms(*arrays))

    # What is sharded is summed where it is.
    on_a_mesh = not jax.typeof(arrays[0]).sharding.mesh.empty
    if on_a_mesh or not summed or arrays[0].size < 2 * BLOCK:
        return at_once(*arrays)
    wanted = arrays[0].size // BLOCK
    axis = next((axis for axis in summed if shape[axis] >= wanted), max(summed, key=lambda axis: shape[axis]))
    length = max(1, shape[axis] // wanted)
    blocks = shape[axis] // length

    def block_by_block(*arrays):
        def part(start, length):
            return terms(*(jax.lax.dynamic_slice_in_dim(array, start, length, axis) for array in arrays))

        def add(block, totals):
            return jax.tree.map(jnp.add, totals, tuple(part(block * length, length)))

        first = jax.eval_shape(lambda: tuple(part(0, length)))
        totals = jax.lax.fori_loop(0, blocks, add, jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), first))
        rest = shape[axis] - blocks * length
        sums = reduce(totals)
        return tuple(map(jnp.add, sums, reduce(part(blocks * length, rest)))) if rest else sums

    return jax.lax.platform_dependent(*arrays, cpu=block_by_block, default=at_once)
