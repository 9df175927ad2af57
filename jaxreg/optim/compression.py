"""Compressors: what to send in place of a vector.

A compressor turns a vector into a message of a fixed shape and a message back into a vector. Both sides know the random
key, so whatever follows from it need not be sent. Compressors are arguments of the methods in
:mod:`jaxreg.distributed`; a new one is a new triple of functions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.typing import checked
from jaxreg.validation import check_range


class Compressor(NamedTuple):
    r"""How to send a vector, and what it costs in accuracy.

    Attributes:
        compress: ``(key, vector [d]) -> message``, a pytree of arrays whose shapes depend on ``d`` only.
        decompress: ``(key, message, d) -> vector [d]``, with the key of the sender.
        delta: ``d -> delta``, the contraction: ``E |C(v) - v|^2 <= (1 - delta) |v|^2`` for every ``v``.
    """

    compress: Callable
    decompress: Callable
    delta: Callable


class _Sparse(NamedTuple):
    values: jax.Array
    indices: jax.Array  # in the smallest unsigned type that holds them


class _Rounded(NamedTuple):
    levels: jax.Array  # int8
    scales: jax.Array  # one a block


@checked
def topk(k: int) -> Compressor:
    r"""Keeps the ``k`` entries that are largest in size, and sends their values and indices.

    Ties go to the lower index. ``delta = k / d``, attained where all entries are of one size.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.optim import topk
    >>> compressor, key, vector = topk(2), jax.random.key(0), jnp.array([1.0, -3.0, 0.5, 2.0])
    >>> message = compressor.compress(key, vector)
    >>> message.values.tolist(), message.indices.tolist()
    ([-3.0, 2.0], [1, 3])
    >>> compressor.decompress(key, message, 4).tolist()
    [0.0, -3.0, 0.0, 2.0]

    Args:
        k: number of entries, at least 1; all where the vector has fewer.

    Returns:
        The compressor.

    Raises:
        ValueError: ``k`` is below 1.

    References:
        Stich et al., *Sparsified SGD with Memory*, NeurIPS 2018, arXiv 1809.07599.
    """
    check_range("k", k, "[1, inf)")

    def compress(key, vector):
        del key
        d = vector.size
        _, indices = jax.lax.top_k(jnp.abs(vector), min(k, d))
        return _Sparse(vector[indices], indices.astype(np.min_scalar_type(max(d - 1, 0))))

    def decompress(key, message, d):
        del key
        return jnp.zeros([d], message.values.dtype).at[message.indices].set(message.values)

    return Compressor(compress, decompress, lambda d: min(k, d) / d)


@checked
def rand_k(k: int) -> Compressor:
    r"""Keeps ``k`` random entries, and sends their values alone: the indices follow from the key.

    The values are *not* scaled by ``d / k``: that would make them unbiased, but no contraction. ``delta = k / d``.

    Args:
        k: number of entries, at least 1; all where the vector has fewer.

    Returns:
        The compressor.

    Raises:
        ValueError: ``k`` is below 1.

    References:
        Stich et al., *Sparsified SGD with Memory*, NeurIPS 2018, arXiv 1809.07599.
    """
    check_range("k", k, "[1, inf)")

    def indices(key, d):
        # The places of the largest of d random numbers: far cheaper than a random permutation.
        return jax.lax.top_k(jax.random.bits(key, [d]), min(k, d))[1]

    def compress(key, vector):
        return vector[indices(key, vector.size)]

    def decompress(key, message, d):
        return jnp.zeros([d], message.dtype).at[indices(key, d)].set(message)

    return Compressor(compress, decompress, lambda d: min(k, d) / d)


@checked
def stochastic_rounding(*, block_size: int = 256) -> Compressor:
    r"""Rounds to 8 bits at random, up or down, so that the mean is right; every block of entries has a scale.

    .. math:: C(v)_j = s\,\lfloor v_j / s + u_j \rfloor, \qquad s = \max_{j \in \text{block}} |v_j| / 127

    with ``u_j`` uniform on [0, 1). An entry errs by ``s^2 / 4`` at most in the mean square, hence
    ``delta = 1 - min(d, block_size) / (4 * 127^2)``.

    Args:
        block_size: entries that share a scale, in [1, 64515]: above, ``delta`` would not be positive.

    Returns:
        The compressor. It is unbiased: ``E C(v) = v``.

    Raises:
        ValueError: ``block_size`` is outside its range.

    References:
        Alistarh et al., *QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding*, NeurIPS 2017,
        arXiv 1610.02132.
    """
    check_range("block_size", block_size, "[1, 64515]")

    def in_blocks(vector):
        width = min(block_size, max(vector.size, 1))
        return jnp.pad(vector, (0, -vector.size % width)).reshape(-1, width)

    def compress(key, vector):
        blocks = in_blocks(vector)
        scales = jnp.max(jnp.abs(blocks), axis=1, initial=0.0) / 127
        scaled = blocks / jnp.where(scales > 0, scales, 1.0)[:, None]
        lower = jnp.floor(scaled)
        levels = lower + (jax.random.uniform(key, blocks.shape, blocks.dtype) < scaled - lower)
        # The largest entry divided by a 127th of itself may come out a rounding error above 127.
        levels = jnp.clip(levels, -127, 127).astype(jnp.int8)
        return _Rounded(levels.ravel()[: vector.size], scales)

    def decompress(key, message, d):
        del key
        blocks = in_blocks(message.levels.astype(message.scales.dtype)) * message.scales[:, None]
        return blocks.ravel()[:d]

    return Compressor(compress, decompress, lambda d: 1 - min(d, block_size) / (4 * 127**2))


@checked
def contraction(compressor: Compressor, d: int) -> float:
    r"""How much of a vector a compressor keeps, in the worst case.

    .. math:: \mathbb E\,\|C(v) - v\|^2 \le (1 - \delta)\,\|v\|^2 \quad\text{for all } v \in \mathbb R^d

    Error feedback converges for every ``delta > 0``, the slower the smaller it is.

    Args:
        compressor: ``C``.
        d: length of the vectors, at least 1.

    Returns:
        ``delta`` in (0, 1]; 1 means nothing is lost.

    Raises:
        ValueError: ``d`` is below 1, or the compressor is no contraction.

    References:
        Stich et al., *Sparsified SGD with Memory*, NeurIPS 2018, arXiv 1809.07599.
    """
    check_range("d", d, "[1, inf)")
    delta = float(compressor.delta(d))
    check_range("delta", delta, "(0, 1]")
    return delta
