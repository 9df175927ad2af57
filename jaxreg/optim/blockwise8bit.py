"""Block-wise 8-bit quantization with a dynamic code.

An optimizer's moments span many orders of magnitude, within one tensor too. A dynamic code spends its 256 values on
seven decades, with the more of them the larger the decade; dividing every block of a few hundred neighbours by its own
largest entry keeps an outlier from costing the others their precision.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.typing import Array, Float, Int, checked
from jaxreg.validation import check_range


@checked
def dynamic_map(*, signed: bool = True) -> Float[np.ndarray, "256"]:
    r"""The dynamic code: 256 values in [-1, 1], or in [0, 1], that are dense where most of a block's entries are.

    Decade :math:`i = 0, \dots, 6` is cut in :math:`2^i` equal bins (:math:`2^{i+1}` without signs), whose midpoints
    are

    .. math:: 10^{i-6} \bigl(0.1 + 0.9 \, (k + \tfrac12) / 2^i\bigr), \qquad k = 0, \dots, 2^i - 1

    These, with either sign, 0 and 1 are the code. There is no -1: the largest entry of a block is kept exactly if it
    is positive, else it becomes 0.7% smaller.

    Args:
        signed: whether values have signs; second moments, which don't, get twice the precision.

    Returns:
        The code in increasing order, a constant.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    bins = [2 ** (i + (not signed)) for i in range(7)]
    magnitudes = [10.0 ** (i - 6) * (0.1 + 0.9 * (np.arange(n) + 0.5) / n) for i, n in enumerate(bins)]
    magnitudes = np.concatenate(magnitudes)
    return np.sort(np.concatenate([magnitudes, [0.0, 1.0], -magnitudes if signed else []])).astype(np.float32)


@checked
def linear_map(*, signed: bool = True) -> Float[np.ndarray, "codes"]:
    r"""The linear code: ``k / 127`` for ``-127 <= k <= 127``, or ``k / 255`` for ``0 <= k <= 255``.

    It rounds to zero what is below 0.4% of a block's largest entry, which Adam's second moment does not survive: use it
    to see what the dynamic code is good for.

    Args:
        signed: whether values have signs.

    Returns:
        The code in increasing order, a constant.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    return (np.arange(-127, 128) / 127 if signed else np.arange(256) / 255).astype(np.float32)


@checked
def quantize_blockwise(
    x: Float[Array, "*shape"], code: Float[Array, "codes"], *, block_size: int = 2048
) -> tuple[Int[Array, "blocks block_size"], Float[Array, "blocks"]]:
    r"""The nearest code of every entry, relative to the largest of its block.

    ``x`` is flattened and cut in blocks, the last one filled up with zeros. With :math:`N_b = \max_{i \in b} |x_i|`

    .. math:: q_i = \arg\min_j |c_j - x_i / N_b|

    exactly, in one pass: where ``code`` is known when the function is traced (as :func:`dynamic_map` is) there are two
    table lookups an entry, else a binary search.

    Args:
        x: what to quantize.
        code: at most 256 increasing values within [-1, 1].
        block_size: entries of a block, at least 1 (paper: 2048; its authors' later releases: 256).

    Returns:
        The codes ``q``, uint8, and the largest magnitudes ``N_b``, float32.

    Raises:
        ValueError: ``block_size`` is below 1, or ``code`` has more than 256 values.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    check_range("block_size", block_size, "[1, inf)")
    if code.shape[0] > 256:
        raise ValueError(f"code must have at most 256 values, got {code.shape[0]}")
    flat = jnp.ravel(x).astype(jnp.float32)
    blocks = jnp.pad(flat, [0, -flat.size % block_size]).reshape(-1, block_size)
    absmax = jnp.max(jnp.abs(blocks), axis=1)
    return nearest(relative(blocks, absmax[:, None]), code), absmax


@checked
def dequantize_blockwise(
    codes: Int[Array, "blocks block_size"],
    absmax: Float[Array, "blocks"],
    code: Float[Array, "codes"],
    *,
    shape: tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    r"""The inverse of :func:`quantize_blockwise`: :math:`N_b c_{q_i}`.

    Args:
        codes: ``q``.
        absmax: the largest magnitude ``N_b`` of each block.
        code: the values ``c``.
        shape: of what was quantized; None leaves the blocks as they are, padding included.

    Returns:
        The values, float32.

    Raises:
        ValueError: ``shape`` has more entries than ``codes``, or less by a block or more.

    References:
        Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv 2110.02861.
    """
    values = look_up(code, codes) * absmax[:, None]
    if shape is None:
        return values
    size = int(np.prod(shape, dtype=np.int64))
    if not values.size - codes.shape[1] < size <= values.size:
        raise ValueError(f"shape must have as many entries as were quantized, got {shape} for {codes.shape} codes")
    return values.ravel()[:size].reshape(shape)


# What the functions above and `quantize_state` are made of.


def relative(x, absmax):
    """Entries of blocks as parts of the blocks' largest; zero where all are."""
    return x / jnp.where(absmax > 0, absmax, 1.0)


def look_up(table, index):
    """The elements of a table at indices that are known to exist, unchecked."""
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def nearest(x, code):
    """Index of the value of ``code`` nearest to each entry of ``x``, the lower of two; ``x`` within [-1, 1], or NaN."""
    if isinstance(code, np.ndarray):
        try:
            below, boundary = _cells(code.astype(np.float32).tobytes())
        except _TooDense:
            pass
        else:
            cell = _cell(x)
            return look_up(below, cell) + (x > look_up(boundary, cell)).astype(jnp.uint8)
    code = jnp.asarray(code)
    above = jnp.clip(jnp.searchsorted(code, x), 1, code.size - 1)
    return (above - (x - code[above - 1] <= code[above] - x)).astype(jnp.uint8)


# The exponent and the first 7 bits of the mantissa of a number in [-1, 1] say almost where in the code it is: in the
# dynamic code, and in any that is nowhere denser than 2^-8 of the magnitude, at most one boundary lies between two such
# numbers. So one lookup tells the codes below, and one comparison decides. Magnitudes below 2^-24 share a cell.

_FIRST, _LAST = (int(np.float32(x).view(np.int32)) >> 16 for x in (2.0**-24, 1.0))


class _TooDense(ValueError):
    pass


@functools.cache
def _cells(code: bytes) -> tuple[np.ndarray, np.ndarray]:
    """For every cell the number of codes that end before it, and the boundary in it (or the next one after it)."""
    code = np.frombuffer(code, np.float32)
    exact = (code[1:].astype(np.float64) + code[:-1]) / 2
    rounded = exact.astype(np.float32)
    # The largest float32 that is nearer to the lower code, so that `x > boundary` decides exactly.
    boundaries = np.where(rounded > exact, np.nextafter(rounded, np.float32(-2)), rounded)
    edges = (np.arange(_FIRST, _LAST + 2, dtype=np.int32) << 16).view(np.float32)
    lows, highs = np.append(0, edges[1:-1]), edges[1:]
    # Not below the low end for cells of positive numbers; not below the far end for those of negative numbers.
    positive = np.searchsorted(boundaries, lows)
    negative = np.searchsorted(boundaries, -highs)
    within = np.searchsorted(boundaries, np.nextafter(highs, np.float32(0))) - positive
    within_negative = np.searchsorted(boundaries, -lows) - negative
    if max(within.max(), within_negative.max()) > 1:
        raise _TooDense
    below = np.concatenate([positive, negative])
    return below.astype(np.uint8), np.append(boundaries, np.float32(np.inf))[below]


def _cell(x):
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> 16
    cells = _LAST - _FIRST + 1
    return jnp.clip(bits, _FIRST, _LAST) - _FIRST + cells * (x < 0)
