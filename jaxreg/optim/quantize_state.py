"""Any optimizer with its state in 8 bits.

What an optimizer remembers of a parameter need not be as precise as the parameter. Between two steps the wrapper keeps
every large floating-point array of the wrapped optimizer's state as one byte an entry, and a scale for every few
hundred entries; a step sees the state in 32 bits and is as exact as ever.

Codes have the shape of what they stand for, and scales as many axes: both can be sharded like the parameters. To that
end blocks are tiles of neighbours that don't reach around the end of a row: of a [1024, 4096] array with blocks of 256
entries they are [1, 256], of a [1000, 10] array [25, 10].
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxreg.optim.blockwise8bit import dynamic_map, linear_map, look_up, nearest, relative
from jaxreg.paths import within_field
from jaxreg.precision import is_floating
from jaxreg.sharding import with_any_sharding
from jaxreg.typing import PyTree, checked
from jaxreg.validation import check_range

NON_NEGATIVE = ("nu", "nu_max", "v_row", "v_col", "sum_of_squares", "exp_avg_sq", "grad_sum_sq")
"""What optax calls arrays of its states that are sums of squares."""

OTHER_NON_NEGATIVE = {optax.ScaleBySM3State: ("mu",), optax.contrib.SophiaState: ()}
"""States of optax that call other arrays so, and what those are called that are sums of squares there."""

WEIGHTS = ("cache", "init_params", "init_particles", "params", "params0", "restored", "x0", "z")
"""What optax, and :func:`~jaxreg.optim.hesso_cric`, call the weights that a state holds, of now or of earlier."""


class QuantizedState(NamedTuple):
    """State of :func:`quantize_state`.

    Attributes:
        codes: the wrapped optimizer's state, with uint8 codes of the same shape in place of what is quantized.
        scales: for every array of that state the largest magnitude of each block, with as many axes as the array, or
            ``optax.MaskedNode()`` if it is not quantized.
    """

    codes: optax.OptState
    scales: PyTree


@checked
def quantize_state(
    inner: optax.GradientTransformation,
    *,
    block_size: int = 256,
    min_size: int = 4096,
    unsigned: Sequence[str] | None = None,
    unquantized: Sequence[str] = WEIGHTS,
    full_precision: Any = None,
    code: Literal["dynamic", "linear"] = "dynamic",
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, its state quantized block-wise to 8 bits between two steps.

    Every floating-point array of the inner state with at least ``min_size`` entries is kept as the nearest codes
    :math:`q` relative to the largest magnitude :math:`N_b` of each block (see
    :func:`~jaxreg.optim.quantize_blockwise`); a step is

    .. math::
        s = N_b c_q, \qquad (u, s') = \mathrm{inner}(g, s), \qquad
        N_b' = \max_{i \in b} |s'_i|, \quad q' = \arg\min_j |c_j - s' / N_b'|

    so that the updates come from the new state before it is rounded. Arrays that are sums of squares have a code
    without signs, which is twice as fine; which they are is told by their names in the inner state.

    Adam's state takes 2.03 bytes a parameter instead of 8. What is saved and restored as a checkpoint are the codes.

    Copies of the weights in a state, such as the ``z`` of :func:`optax.contrib.schedule_free`, would be rounded by more
    than a step moves them. Those of optax are left alone; name those of other optimizers in ``unquantized``.

    Where gradients spike, second moments need 32 bits: next to a square that is ten million times larger, those of the
    rest of the block are rounded to zero, and its entries take huge steps.

    >>> import optax
    >>> from jaxreg.optim import quantize_state
    >>> lion = quantize_state(optax.lion(1e-4))

    Args:
        inner: the optimizer to wrap, or only the part that holds the state.
        block_size: greatest number of entries of a block, at least 1 (paper: 2048; the authors' later releases: 256).
            Smaller blocks are more precise and take ``4 / block_size`` bytes more an entry.
        min_size: arrays with fewer entries are left alone (paper: 4096).
        unsigned: names of fields of the inner state that hold no negative numbers, such as ``nu``. An array that isn't
            named here is safe but coarser; one that is named here and has negative entries would lose them. None for
            what optax calls its sums of squares; the ``nu`` of its SM3 and Sophia is none.
        unquantized: names of fields of the inner state that are left alone, by default those that optax has for copies
            of the weights.
        full_precision: pytree of bools, or a function from parameters to one, as ``optax.masked`` has it: whose state
            is left alone. The paper keeps that of embeddings in 32 bits.
        code: "dynamic", see :func:`~jaxreg.optim.dynamic_map`, or "linear" to compare with.

    Returns:
        The wrapped optimizer; extra arguments of ``update`` are passed on to ``inner``.

    Raises:
        ValueError: ``block_size`` or ``min_size`` is below 1.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    check_range("block_size", block_size, "[1, inf)")
    check_range("min_size", min_size, "[1, inf)")
    inner = optax.with_extra_args_support(inner)

    def quantizable(path, array):
        large = array.ndim > 0 and array.size >= min_size
        return large and is_floating(array) and not within_field(path, unquantized)

    def quantized(state, wanted, never):
        def quantize(array, wanted, signed):
            if wanted:
                return _quantize(jnp.asarray(array), never, form=_Form(code, signed, block_size))
            return array, optax.MaskedNode()

        pairs = jax.tree.map(quantize, state, wanted, _signed(state, unsigned))
        return QuantizedState(*(jax.tree.map(lambda _, pair, i=i: pair[i], state, pairs) for i in range(2)))

    def init(params):
        # Where init is compiled, XLA would look for the largest of so many constant zeros while compiling.
        state = jax.lax.optimization_barrier(inner.init(params))
        wanted = jax.tree_util.tree_map_with_path(quantizable, state)
        if full_precision is not None and jax.tree.leaves(params):
            exempt = full_precision(params) if callable(full_precision) else full_precision
            wanted = optax.tree.map_params(inner, lambda want, keep: want and not keep, wanted, exempt)
        return quantized(state, wanted, None)

    def update(updates, state, params=None, **extra_args):
        # What has a scale is quantized, in this step as when it was initialised.
        wanted = jax.tree.map(lambda _, scale: not isinstance(scale, optax.MaskedNode), *state)
        scales = jax.tree.leaves(state.scales)
        never = jnp.max(scales[0]) < 0 if scales else None

        def dequantize(array, scale, wanted, signed):
            return _dequantize(array, scale, never, form=_Form(code, signed, block_size)) if wanted else array

        wide = jax.tree.map(dequantize, *state, wanted, _signed(state.codes, unsigned))
        directions, wide = inner.update(updates, wide, params, **extra_args)
        # From a state in 32 bits, updates of half-precision parameters come out wider.
        directions = optax.tree.cast_like(directions, updates)
        return directions, quantized(wide, wanted, never)

    return optax.GradientTransformationExtraArgs(init, update)


def _signed(state, unsigned):
    """Which arrays of a state may have negative entries."""

    def is_other(part):
        return unsigned is None and type(part) in OTHER_NON_NEGATIVE

    def signed(path, part):
        if is_other(part):
            names = OTHER_NON_NEGATIVE[type(part)]
            return jax.tree_util.tree_map_with_path(lambda path, _: not within_field(path, names), part)
        return not within_field(path, NON_NEGATIVE if unsigned is None else unsigned)

    return jax.tree_util.tree_map_with_path(signed, state, is_leaf=is_other)


class _Form(NamedTuple):
    """How an array is quantized.

    Attributes:
        code: "dynamic" or "linear".
        signed: whether its entries may be negative.
        block_size: greatest number of entries of a block.
    """

    code: str
    signed: bool
    block_size: int

    def table(self):
        return {"dynamic": dynamic_map, "linear": linear_map}[self.code](signed=self.signed)


# Compiled apart these two are traced and lowered once for all arrays of a shape, of which a network has many.


@functools.partial(jax.jit, static_argnames="form")
def _quantize(array, never, *, form):
    """From an array to its codes, in its shape, and its blocks' scales."""
    tiles, table = _tiles(array.shape, form.block_size), form.table()

    def quantize(array):
        blocks = _split(array.astype(jnp.float32), tiles)
        scale = _largest(blocks)
        # Nothing is larger than infinity: a sum with the array hands its sharding to the codes.
        codes = _merge(nearest(relative(blocks, scale), table), array.shape) + (array > jnp.inf)
        return codes, scale.reshape([count for count, _ in tiles])

    sharding = jax.typeof(array).sharding
    return _separately(never, with_any_sharding(quantize, array, (sharding, _scale_sharding(sharding, tiles))), array)


@functools.partial(jax.jit, static_argnames="form")
def _dequantize(codes, scale, never, *, form):
    """From codes and scales to an array."""
    tiles, table = _tiles(codes.shape, form.block_size), form.table()

    def dequantize(codes, scale):
        scale = jnp.expand_dims(scale, tuple(range(1, 2 * codes.ndim, 2)))
        return _merge(look_up(table, _split(codes, tiles)) * scale, codes.shape)

    return _separately(never, with_any_sharding(dequantize, codes, jax.typeof(codes).sharding), codes, scale)


def _separately(never, function, *arrays):
    """Calls a function so that on a CPU its arguments and results are stored, given a condition that never holds.

    XLA:CPU would merge quantizing with what computes the state, and compute that several times over, an entry at a
    time. It doesn't look into the branches of a condition, as long as it cannot know that it never holds: that a scale
    is negative, for one. Without a condition, the function is just called.
    """
    if never is None:
        return function(*arrays)

    def apart(*arrays):
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *arrays))
        return jax.lax.cond(never, lambda *_: nothing, function, *arrays)

    return jax.lax.platform_dependent(*arrays, cpu=apart, default=function)


def _largest(blocks):
    """The largest magnitude of each tile, with all axes."""
    size = jnp.abs(blocks)
    for axis in range(1, size.ndim, 2):
        # Halves entry by entry, as long as there are enough: XLA:CPU does sixteen entries at a time there, and one at a
        # time where it is told to take the maximum of a row.
        while size.shape[axis] > 16:
            half = -(-size.shape[axis] // 2)
            first, second = (
                jax.lax.slice_in_dim(size, *part, axis=axis)
                for part in ((0, half), (size.shape[axis] - half, size.shape[axis]))
            )
            size = jnp.maximum(first, second)
    return jnp.max(size, tuple(range(1, size.ndim, 2)), keepdims=True)


def _tiles(shape, block_size):
    """How many tiles each axis is cut in, evenly, and their length; ``block_size`` entries at most in all.

    They fill the axis exactly where tiles of more than half the length can: else it would have to be copied, longer.
    """
    tiles, room = [], block_size
    for length in reversed(shape):
        least = -(-length // min(length, room))
        count = next((count for count in range(least, 2 * least) if length % count == 0), least)
        tiles.append((count, -(-length // count)))
        room //= tiles[-1][1]
    return tiles[::-1]


def _scale_sharding(sharding, tiles):
    """That of the array, except along axes with fewer tiles than devices or that they don't divide."""
    devices = dict(sharding.mesh.shape)

    def keep(axes, count):
        names = axes if isinstance(axes, tuple) else (axes,)
        return axes if axes is not None and count % math.prod(devices[name] for name in names) == 0 else None

    spec = [*sharding.spec, *[None] * (len(tiles) - len(sharding.spec))]
    return NamedSharding(
        sharding.mesh, PartitionSpec(*(keep(axes, n) for axes, (n, _) in zip(spec, tiles, strict=True)))
    )


def _split(array, tiles):
    """An array as tiles, two axes for each of its own; filled up with zeros."""
    padded = jnp.pad(
        array, [(0, count * length - size) for (count, length), size in zip(tiles, array.shape, strict=True)]
    )
    return padded.reshape([n for tile in tiles for n in tile])


def _merge(blocks, shape):
    """The inverse of :func:`_split`."""
    counts, lengths = blocks.shape[::2], blocks.shape[1::2]
    whole = blocks.reshape([count * length for count, length in zip(counts, lengths, strict=True)])
    return whole[tuple(slice(length) for length in shape)]
