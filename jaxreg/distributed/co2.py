"""CO2: workers that compute while their last results are being averaged.

Between two rounds of communication every worker takes some steps of its own. Averaging what came out takes time, so
CO2 does not wait for it: the next steps start from where the last average led, and the average of these results is used
a round late. Two brakes keep that stable: the stale update is divided by how far the point has moved meanwhile, and
the momentum that adds such updates up is clipped.

A round, on eight devices with one worker each::

    layout = Co2State(params=P(), previous=P(), momentum=P(), pending=P("devices"))
    state = jax.shard_map(co2_init, mesh=mesh, in_specs=P(), out_specs=layout)(params)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(layout, P("devices")), out_specs=(P(), layout))
    def train_round(state, batches):
        results, _ = local_steps(loss_fn, state.params, optax.sgd(0.1), batches)
        return co2_round(state, results, axis_name="devices")

The all-reduce in it depends on nothing that ``local_steps`` computes, so that the compiler can run both at once. On one
device leave out `shard_map` and ``axis_name``: its workers are the leading axis of the batches.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.distributed import collectives
from jaxreg.precision import at_least_float32, widened
from jaxreg.typing import PyTree, ScalarLike, checked
from jaxreg.validation import check_range


class Co2State(NamedTuple):
    """State of :func:`co2_round`, at least float32.

    Attributes:
        params: ``X_t``, where the round in progress starts. The same on all devices.
        previous: ``X_{t-1}``, where the one before started. The same on all devices.
        momentum: ``m``. The same on all devices.
        pending: what this device has yet to average with the others: the mean of its workers' last results, with a
            leading axis of 1 (of as many as devices, outside of a `shard_map`).
    """

    params: PyTree
    previous: PyTree
    momentum: PyTree
    pending: PyTree


@checked
def co2_init(params: PyTree) -> Co2State:
    """State of :func:`co2_round` before the first round, of one device.

    Args:
        params: where all workers start.

    Returns:
        The state, with nothing to apply in the first round.
    """
    params = widened(params)
    return Co2State(params, params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda x: x[None], params))


@checked
def co2_round(
    state: Co2State,
    local_results: PyTree,
    *,
    outer_lr: ScalarLike = 1.0,
    outer_momentum: ScalarLike = 0.5,
    clip: ScalarLike = 1.0,
    clip_by: Literal["value", "norm"] = "value",
    gap_penalty: Literal["adaptive"] | ScalarLike = "adaptive",
    axis_name: collectives.AxisName = None,
) -> tuple[PyTree, Co2State]:
    r"""CO2's outer step, at the end of round ``t``.

    .. math::
        m_t = \operatorname{clip}_\phi\Bigl(\beta m_{t-1} + \frac{X_{t-1} - \bar Y_{t-1}}{\Lambda_t}\Bigr), \qquad
        X_{t+1} = X_t - \alpha m_t

    where :math:`\bar Y_{t-1}` is the mean over all workers of where the steps of round ``t - 1``, begun at
    :math:`X_{t-1}`, have led. It is averaged here, from what the last call was given; ``local_results`` are only put
    aside for the next. The first round moves nothing.

    Args:
        state: from :func:`co2_init`, or the last call.
        local_results: ``Y_t``, trees like the parameters with a leading axis: the workers of this device.
        outer_lr: ``alpha > 0`` (paper: 1).
        outer_momentum: ``beta`` in [0, 1) (authors' code: 0.5).
        clip: ``phi > 0`` (authors' code: 1, without effect there: the clamped value is discarded); infinity never
            clips.
        clip_by: whether every entry of the momentum is clipped, or the norm of all.
        gap_penalty: ``Lambda >= 1``. The authors' code has a constant, 1. ``"adaptive"`` is the relative gap between
            the point and the one where the stale results started, :math:`1 + \|X_t - X_{t-1}\| / \|X_{t-1} -
            \bar Y_{t-1}\|`: our reading, the paper leaves it open.
        axis_name: the axis of the devices, if there are several.

    Returns:
        ``X_{t+1}``, in the precision of the local results and the same on all devices, and the new state.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Sun et al., *CO2: Efficient Distributed Training with Full Communication-Computation Overlap*, ICLR 2024,
        arXiv 2401.16265.
    """
    check_range("outer_lr", outer_lr, "(0, inf)")
    check_range("outer_momentum", outer_momentum, "[0, 1)")
    check_range("clip", clip, "(0, inf]")
    check_range("gap_penalty", gap_penalty, "[1, inf)")
    average = jax.tree.map(lambda x: x[0], collectives.mean(state.pending, axis_name))
    progress = jax.tree.map(jnp.subtract, state.previous, average)
    if gap_penalty == "adaptive":
        gap = optax.tree.norm(jax.tree.map(jnp.subtract, state.params, state.previous))
        distance = optax.tree.norm(progress)
        gap_penalty = 1 + jnp.where(distance > 0, gap / jnp.where(distance > 0, distance, 1), 0)
    momentum = jax.tree.map(lambda m, p: outer_momentum * m + p / gap_penalty, state.momentum, progress)
    if clip_by == "value":
        momentum = jax.tree.map(lambda m: jnp.clip(m, -clip, clip), momentum)
    else:
        norm = optax.tree.norm(momentum)
        momentum = jax.tree.map(lambda m: m * jnp.where(norm > clip, clip / norm, 1), momentum)
    params = jax.tree.map(lambda x, m: x - outer_lr * m, state.params, momentum)
    pending = jax.tree.map(lambda y: jnp.mean(at_least_float32(y), axis=0, keepdims=True), local_results)
    return (
        jax.tree.map(lambda x, y: x.astype(y.dtype), params, local_results),
        Co2State(params, state.params, momentum, pending),
    )


@checked
def local_steps(
    loss_fn: Callable,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    batches: PyTree,
    optimizer_states: PyTree | None = None,
) -> tuple[PyTree, PyTree]:
    """Every worker's own steps, from a common start.

    Args:
        loss_fn: ``(params, batch) -> scalar``.
        params: ``X_t``, where all workers start.
        optimizer: the inner optimizer.
        batches: trees with leading axes ``[workers, tau]``: a batch for every step of every worker.
        optimizer_states: of the workers, from the last call: they stay with their worker and are never averaged. None
            to start afresh.

    Returns:
        ``Y_t`` and the optimizer's states, both with a leading axis ``[workers]``.
    """

    def worker(state, batches):
        def step(carry, batch):
            own, state = carry
            updates, state = optimizer.update(jax.grad(loss_fn)(own, batch), state, own)
            return (optax.apply_updates(own, updates), state), None

        # In a `shard_map`, parameters that are the same on all devices have gradients that are summed over devices, an
        # all-reduce each step. As soon as their value depends on something local, they are the worker's own.
        first = jax.tree.leaves(batches)[0].ravel()[0]
        never = (first == first) & False
        own, state = jax.tree.map(
            lambda x: jnp.where(never, x, x), (params, optimizer.init(params) if optimizer_states is None else state)
        )
        (own, state), _ = jax.lax.scan(step, (own, state), batches)
        return own, state

    return jax.vmap(worker)(optimizer_states, batches)


@checked
def round_time(t_comp: ScalarLike, t_comm: ScalarLike, *, tau: ScalarLike, overlapped: bool) -> ScalarLike:
    r"""How long a round of ``tau`` steps takes.

    .. math:: \max(\tau t_\text{comp}, t_\text{comm}) \;\text{overlapped, else}\; \tau (t_\text{comp} + t_\text{comm})

    Args:
        t_comp: seconds that a step computes.
        t_comm: seconds that an all-reduce takes.
        tau: steps of a round.
        overlapped: whether there is one all-reduce a round, run while the steps compute (CO2), or one after every step
            (synchronous data parallelism).

    Returns:
        Seconds.

    References:
        Sun et al., *CO2: Efficient Distributed Training with Full Communication-Computation Overlap*, ICLR 2024,
        arXiv 2401.16265.
    """
    return jnp.maximum(tau * t_comp, t_comm) if overlapped else tau * (t_comp + t_comm)
