"""Weighted sums of checkpoints.

A stack of ``K`` checkpoints is one tree whose leaves have a leading axis of size ``K``, oldest first. Any weighted sum
of them is one contraction per leaf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def linear_combination(stack: PyTree, coefficients: Float[Array, "*population k"]) -> PyTree:
    r"""A weighted sum of checkpoints, or several such sums.

    .. math:: \theta(a) = \sum_{i=1}^K a_i \theta_i

    The coefficients may be negative and need not sum to one. A one-hot vector returns its checkpoint bit for bit, if
    all are finite.

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import linear_combination
    >>> stack = {"w": jnp.array([[1.0, 2.0], [3.0, 5.0]]), "step": jnp.array([10, 20])}
    >>> combined = linear_combination(stack, jnp.array([-1.0, 2.0]))
    >>> combined["w"].tolist(), int(combined["step"])
    ([5.0, 8.0], 20)

    Args:
        stack: checkpoints, with a leading axis of size ``K``. Include running statistics, such as those of batch
            normalization.
        coefficients: ``a``; leading axes are those of a population.

    Returns:
        A tree like one checkpoint, in the leaves' dtypes, with the leading axes of the population. Floating leaves
        are summed in at least float32. Leaves of other types, such as counters, are those of the last checkpoint.

    Raises:
        ValueError: a leaf has another number of checkpoints.
    """
    k = coefficients.shape[-1]

    def combine(leaf):
        if jnp.ndim(leaf) == 0 or len(leaf) != k:
            raise ValueError(f"every leaf of stack must have a leading axis of {k}, got shape {jnp.shape(leaf)}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.broadcast_to(leaf[-1], (*coefficients.shape[:-1], *leaf.shape[1:]))
        wide = at_least_float32(leaf)
        summed = jnp.tensordot(jnp.asarray(coefficients, wide.dtype), wide, axes=1, precision="highest")
        return summed.astype(leaf.dtype)

    return jax.tree.map(combine, stack)


@checked
def ema_coefficients(
    k: int, gamma: ScalarLike, *, interval: ScalarLike = 1, normalise: bool = False
) -> Float[Array, "k"]:
    r"""The coefficients that an exponential moving average gives to checkpoints.

    .. math:: a_1 = g^{K-1}, \quad a_i = (1 - g)\, g^{K-i} \text{ for } i \ge 2, \qquad g = \gamma^{\text{interval}}

    is the average that starts at the first checkpoint, which it goes to as ``gamma`` goes to one. Normalised it is
    the average over a window, which then goes to the uniform one:

    .. math:: a_i = g^{K-i} \Big/ \sum_{j=1}^K g^{K-j}

    Both are the last checkpoint at ``gamma = 0``, and sum to one.

    Args:
        k: ``K >= 1``, how many checkpoints, oldest first.
        gamma: in [0, 1], the decay.
        interval: how many decays are between two checkpoints: the steps between them, if ``gamma`` is per step.
        normalise: whether the window form is wanted.

    Returns:
        The coefficients for :func:`linear_combination`.

    Raises:
        ValueError: an argument is outside its range.
    """
    check_range("k", k, "[1, inf)")
    check_range("gamma", gamma, "[0, 1]")
    check_range("interval", interval, "(0, inf)")
    decay = jnp.asarray(gamma, jnp.float32) ** interval
    powers = decay ** jnp.arange(k - 1, -1, -1)  # 0 ** 0 is 1
    if normalise:
        return powers / jnp.sum(powers)
    return powers * jnp.where(jnp.arange(k) == 0, 1.0, 1 - decay)


class CheckpointBuffer(NamedTuple):
    """The last few checkpoints of a run, in a ring that lives inside ``jit`` and ``scan``.

    Attributes:
        stack: the checkpoints, with a leading axis, in order of their places in the ring.
        count: how many were saved so far; the next one goes to place ``count`` modulo the size.
    """

    stack: PyTree
    count: Int[Array, ""]


@checked
def checkpoint_buffer_init(params: PyTree, size: int) -> CheckpointBuffer:
    """An empty buffer.

    Args:
        params: of the model to save: raw weights rather than an average, if they are to be combined.
        size: how many checkpoints to keep, at least 1.

    Returns:
        The buffer, filled with zeros.

    Raises:
        ValueError: ``size`` is below 1.
    """
    check_range("size", size, "[1, inf)")
    stack = jax.tree.map(lambda leaf: jnp.zeros([size, *jnp.shape(leaf)], jnp.result_type(leaf)), params)
    return CheckpointBuffer(stack, jnp.zeros([], jnp.int32))


@checked
def checkpoint_buffer_update(
    buffer: CheckpointBuffer, params: PyTree, step: ScalarLike, *, interval: int = 1
) -> CheckpointBuffer:
    """Saves the parameters if the step is a multiple of the interval, in place of the oldest.

    Args:
        buffer: from :func:`checkpoint_buffer_init` or the last call.
        params: after the step.
        step: steps taken.
        interval: steps between two checkpoints, at least 1.

    Returns:
        The new buffer.

    Raises:
        ValueError: ``interval`` is below 1.
    """
    check_range("interval", interval, "[1, inf)")
    save = jnp.asarray(step) % interval == 0

    def put(ring, leaf):
        place = buffer.count % len(ring)
        # One row is rewritten with itself otherwise: a condition over the whole ring would copy it.
        return ring.at[place].set(jnp.where(save, leaf, ring[place]))

    return CheckpointBuffer(jax.tree.map(put, buffer.stack, params), buffer.count + save.astype(jnp.int32))


@checked
def checkpoint_buffer_stack(buffer: CheckpointBuffer) -> PyTree:
    """The saved checkpoints, oldest first.

    Args:
        buffer: if fewer were saved than it can hold, its empty places come first, as zeros.

    Returns:
        The stack, for :func:`linear_combination`.
    """
    return jax.tree.map(lambda ring: jnp.roll(ring, -(buffer.count % len(ring)), axis=0), buffer.stack)
