"""Sums and the like over a leaf of what is computed from it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.typing import Array, Float, checked

# Numbers of parts of a leaf, and of one that keeps an axis: fewer take longer, and more than 15 XLA does not put in one
# loop. One that divides the length leaves no rest to sum.
PARTS, CHANNEL_PARTS = range(6, 12), range(12, 16)
LEAST, CHANNEL_LEAST = 2**14, 2**18  # entries; below there is nothing to gain, and more to compile


@checked
def leaf_sums(
    terms: Callable, *arrays: Float[Array, "*shape"], keep_axis: int | None = None
) -> tuple[Float[Array, "..."], ...]:
    """Sums of elementwise terms, over all axes or all but one.

    On a CPU XLA stores what it is about to sum, which for a large leaf takes longer than the rest of an optimizer's
    step. There the terms of a few parts of the leaf are added first, entry by entry, in one loop that stores as little.

    >>> import jax.numpy as jnp
    >>> [float(total) for total in leaf_sums(lambda x, y: (x * y, y), jnp.arange(3.0), jnp.ones(3))]
    [3.0, 3.0]

    Args:
        terms: of parts of the arrays, a tuple of arrays of the same shape.
        arrays: of one shape.
        keep_axis: the axis that is not summed over; None for none.

    Returns:
        The sums, in the order of the terms; ``keep_axis`` is their only axis.
    """
    return _reduced(terms, arrays, jnp.add, jnp.sum, keep_axis)


@checked
def largest_magnitude(array: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The largest magnitude of a leaf's entries, 0 if there are none; in parts, as :func:`leaf_sums`."""

    def largest(sizes, axes):
        return jax.lax.reduce(sizes, jnp.zeros([], sizes.dtype), jax.lax.max, axes)

    return _reduced(lambda part: (jnp.abs(part),), [array], jnp.maximum, largest, None)[0]


def _reduced(terms, arrays, combine, reduce, keep_axis):
    shape = arrays[0].shape
    summed = tuple(axis for axis in range(len(shape)) if keep_axis is None or axis != keep_axis % len(shape))

    def at_once(*arrays):
        return tuple(reduce(term, summed) for term in terms(*arrays))

    # What is sharded is reduced where it is.
    on_a_mesh = not jax.typeof(arrays[0]).sharding.mesh.empty
    if on_a_mesh or not summed or arrays[0].size < (LEAST if keep_axis is None else CHANNEL_LEAST):
        return at_once(*arrays)
    longest = max(summed, key=lambda axis: shape[axis])
    if keep_axis is not None and shape[longest] < CHANNEL_PARTS.start:
        return at_once(*arrays)

    def in_parts(*arrays):
        axes, axis, counts = summed, longest, CHANNEL_PARTS
        if keep_axis is None:
            arrays, axes, axis, counts = [jnp.ravel(array) for array in arrays], (0,), 0, PARTS
        length = arrays[0].shape[axis]
        count = next((n for n in counts if length % n == 0), counts.start)
        size = length // count

        def combined(term):
            def part(start, stop):
                return jax.lax.slice_in_dim(term, start, stop, axis=axis)

            folded = functools.reduce(combine, [part(i * size, (i + 1) * size) for i in range(count)])
            # Where sums are left to a library of vector operations, XLA would hand it the additions as well, and store
            # what they add. This operation, which does nothing, is none of the library's.
            reduced = reduce(jax.lax.clamp(-jnp.inf, folded, jnp.inf), axes)
            rest = count * size
            return reduced if rest == length else combine(reduced, reduce(part(rest, length), axes))

        return tuple(map(combined, terms(*arrays)))

    return jax.lax.platform_dependent(*arrays, cpu=in_parts, default=at_once)
