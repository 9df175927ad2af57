"""Weighted sums of checkpoints.

A stack of ``K`` checkpoints is one tree whose leaves have a leading axis of size ``K``, oldest first. Any weighted sum
of them is one contraction per leaf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def linear_combination(stack: PyTree, coefficients: Float[Array, "*population k"]) -> PyTree:
    r"""A weighted sum of checkpoints, or several such sums.

    .. math:: \theta(a) = \sum_{i=1}^K a_i \theta_i

    The coefficients may be negative and need not sum to one. A one-hot vector returns its checkpoint bit for bit, if
    all are finite.

    A search that combines one population after the other does so about twice as fast in the memory of the last, on a
    CPU and if the sums of a leaf take more than 32 MB: new memory of that size has to be cleared. For this, jit a
    function of ``(stack, coefficients, last)`` with ``donate_argnames="last", keep_unused=True``.

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
        if not is_floating(leaf):
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


class DynamicEMAState(NamedTuple):
    """State of :func:`dynamic_ema_update`.

    Attributes:
        ema: the averaged parameters, floating leaves at least float32.
        prev_grads: gradients of the last step.
        count: steps averaged so far.
    """

    ema: PyTree
    prev_grads: PyTree
    count: Int[Array, ""]


@checked
def dynamic_ema_init(params: PyTree) -> DynamicEMAState:
    """The state before the first step: the average is the parameters themselves.

    Args:
        params: of the model, at the start of a task.

    Returns:
        The state.

    References:
        Qiao et al., *Large Continual Instruction Assistant*, arXiv 2410.10868.
    """
    params = jax.tree.map(lambda leaf: at_least_float32(leaf) if is_floating(leaf) else jnp.asarray(leaf), params)
    return DynamicEMAState(params, jax.tree.map(jnp.zeros_like, params), jnp.zeros([], jnp.int32))


@checked
def dynamic_ema_weights(
    state: DynamicEMAState, params: PyTree, grads: PyTree, *, fallback: ScalarLike = 0.01, scale: ScalarLike = 2.0
) -> tuple[PyTree, PyTree]:
    r"""How much of the new parameters the next average takes in, for each leaf.

    .. math::
        a_t = \frac{c\,(1 + \|g_t\|_1)}{\|\theta_t - \theta^*_{t-1}\|_1 \, \|g_t - g_{t-1}\|_1}

    The further the parameters have gone from the average, and the more the gradient changes, the less is taken in. In
    the first step, which has no earlier gradient, and wherever the quotient is not in (0, 1), the fallback stands in
    for it. Norms are sums over a leaf: they grow with it, so that small leaves live on the fallback.

    Args:
        state: see :func:`dynamic_ema_update`, as are the other arguments.
        params: after the step.
        grads: of the step.
        fallback: in [0, 1].
        scale: ``c > 0``.

    Returns:
        The weights, and whether they are the quotient rather than the fallback: trees of scalars. The share of the
        latter says how much of the method is at work.

    Raises:
        ValueError: ``fallback`` or ``scale`` is outside its range.

    References:
        Qiao et al., *Large Continual Instruction Assistant*, arXiv 2410.10868.
    """
    check_range("fallback", fallback, "[0, 1]")
    check_range("scale", scale, "(0, inf)")

    def quotient(average, before, leaf, gradient):
        if not is_floating(leaf):
            return jnp.array(jnp.inf)
        gradient = at_least_float32(gradient)
        distance = jnp.sum(jnp.abs(at_least_float32(leaf) - average))
        product = distance * jnp.sum(jnp.abs(gradient - before))
        wanted = scale * (1 + jnp.sum(jnp.abs(gradient)))
        usable = (state.count > 0) & (product > 0)
        return jnp.where(usable, wanted / jnp.where(usable, product, 1.0), jnp.inf)

    quotients = jax.tree.map(quotient, state.ema, state.prev_grads, params, grads)
    valid = jax.tree.map(lambda a: (a > 0) & (a < 1), quotients)
    return jax.tree.map(lambda a, inside: jnp.where(inside, a, fallback), quotients, valid), valid


@checked
def dynamic_ema_update(
    state: DynamicEMAState, params: PyTree, grads: PyTree, *, fallback: ScalarLike = 0.01, scale: ScalarLike = 2.0
) -> tuple[PyTree, DynamicEMAState]:
    r"""A running average of parameters that weighs new ones by how far they went and how gradients change.

    .. math:: \theta^*_t = (1 - a_t)\, \theta^*_{t-1} + a_t \theta_t

    with ``a_t`` of :func:`dynamic_ema_weights`, one for each leaf. Call it after every step of an optimizer; at the
    end of a task the average becomes the parameters, and the next task starts a new average from them.

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import dynamic_ema_init, dynamic_ema_update
    >>> state = dynamic_ema_init(jnp.zeros(2))
    >>> averaged, state = dynamic_ema_update(state, jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5]))
    >>> [round(float(value), 4) for value in averaged]
    [0.01, -0.01]

    Args:
        state: from :func:`dynamic_ema_init` or the last call.
        params: ``theta_t``, after the step.
        grads: ``g_t``, of the step, as the optimizer got them.
        fallback: in [0, 1], the weight in the first step and wherever the formula leaves (0, 1) (authors' code: 0.01).
        scale: ``c > 0`` (authors' code: 2).

    Returns:
        The average, in the dtypes of ``params``, and the new state. Leaves that are not floating are those of
        ``params``.

    Raises:
        ValueError: ``fallback`` or ``scale`` is outside its range.

    References:
        Qiao et al., *Large Continual Instruction Assistant*, arXiv 2410.10868.
    """
    weights, _ = dynamic_ema_weights(state, params, grads, fallback=fallback, scale=scale)

    def average(before, leaf, weight):
        return before + weight * (at_least_float32(leaf) - before) if is_floating(leaf) else jnp.asarray(leaf)

    ema = jax.tree.map(average, state.ema, params, weights)

    def kept(before, gradient):
        # Leaves that are not floating have no gradient, or one of the type float0.
        return gradient.astype(before.dtype) if is_floating(before) else before

    grads = jax.tree.map(kept, state.prev_grads, grads)
    averaged = jax.tree.map(lambda leaf, like: leaf.astype(jnp.result_type(like)), ema, params)
    return averaged, DynamicEMAState(ema, grads, state.count + 1)
