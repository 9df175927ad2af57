"""A step of training: loss, gradients, update, and what there is to know about them.

A run is a function ``step(state, rows) -> (state, Report)``, made by :func:`make_step`, which
:func:`experiments.harness.trainer.fit` calls for every batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.harness.vitals import Vitals, read_vitals
from jaxreg.paths import path_name
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike
from jaxreg.validation import check_range


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        step: steps taken.
        params: of the model.
        optimizer_state: of the optimizer.
    """

    step: Int[Array, "*runs"]
    params: Any
    optimizer_state: optax.OptState


class AveragedState(NamedTuple):
    """What a step changes where an average of the parameters is kept.

    Attributes:
        step: steps taken.
        params: of the model.
        optimizer_state: of the optimizer.
        average: exponential moving average of the parameters, the initial ones included.
    """

    step: Int[Array, "*runs"]
    params: Any
    optimizer_state: optax.OptState
    average: Any


class Moment(NamedTuple):
    """What a loss may look at beside parameters and rows.

    Attributes:
        step: steps taken before this one.
        key: of this step, and of these rows if they are a part of the batch; None if :func:`make_step` has got none.
        average: of the parameters after the step before; None where none is kept.
    """

    step: Int[Array, ""]
    key: PRNGKeyArray | None
    average: Any


class Report(NamedTuple):
    """What a step says about itself.

    Attributes:
        vitals: norms and the like.
        bad_leaf: number of the first leaf of the parameters and, after those, of the gradients whose norm is not
            finite; -1 if all are. Parameters are looked at only if gradients or update are not finite.
    """

    vitals: Vitals
    bad_leaf: Int[Array, "*runs"]


State = TrainState | AveragedState
Step = Callable[[State, Any], tuple[State, Report]]
Loss = Callable[[Any, Any, Moment], tuple[Float[Array, ""], Any]]


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def init_averaged_state(params: Any, optimizer: optax.GradientTransformation) -> AveragedState:
    """The state before the first step, with an average of the parameters."""
    # A copy: a step gives up the buffers of its state, which cannot be done twice.
    return AveragedState(*init_state(params, optimizer), jax.tree.map(jnp.copy, params))


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    distort: Callable[[Int[Array, ""], Any], Any] | None = None,
    axis_name: str | None = None,
    key: PRNGKeyArray | None = None,
    decay: ScalarLike | None = None,
) -> Step:
    """One step of training, to be jitted, vmapped over runs or pmapped.

    Args:
        loss: ``(params, rows, moment) -> (mean loss of the rows, what the model sowed)``.
        optimizer: any optax transformation.
        accumulate: in how many parts, one after the other, the rows are worked through; divides their number.
        distort: ``(step, gradients) -> gradients``, a fault to inject.
        axis_name: of the ``pmap`` or ``shard_map`` whose devices have different rows.
        key: of the run's noise. The loss gets ``fold_in(key, step)``, with the device's number folded in where there
            is an axis, and split where there are parts.
        decay: of the average in an :class:`AveragedState`, in [0, 1].

    Returns:
        ``(state, rows) -> (state, Report)``.

    Raises:
        ValueError: ``decay`` is outside its range.
    """
    check_range("decay", decay, "[0, 1]")
    optimizer = optax.with_extra_args_support(optimizer)

    def value_and_gradients(params, rows, moment):
        (value, sown), gradients = jax.value_and_grad(loss, has_aux=True)(params, rows, moment)
        return value, gradients, sown

    def now(state):
        moment = Moment(state.step, None, getattr(state, "average", None))
        if key is None:
            return moment
        step_key = jax.random.fold_in(key, state.step)
        if axis_name is not None:
            step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))
        return moment._replace(key=step_key)

    def accumulated(params, rows, moment):
        if accumulate == 1:
            return value_and_gradients(params, rows, moment)
        # Every accumulate-th row: rows that lie on one device stay there.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)

        keys = None if key is None else jax.random.split(moment.key, accumulate)

        def add(totals, part):
            rows, part_key = part
            value, gradients, sown = value_and_gradients(params, rows, moment._replace(key=part_key))
            return jax.tree.map(jnp.add, totals, (value, gradients)), sown

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(value_and_gradients, params, first, moment)[:2]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        totals, sown = jax.lax.scan(add, zeros, (parts, keys))
        value, gradients = jax.tree.map(lambda x: x / accumulate, totals)
        return value, gradients, jax.tree.map(lambda x: jnp.max(x, axis=0), sown)

    def step(state, rows):
        value, gradients, sown = accumulated(state.params, rows, now(state))
        if axis_name is not None:
            value, gradients = jax.lax.pmean((value, gradients), axis_name)
            sown = jax.lax.pmax(sown, axis_name)
        if distort is not None:
            gradients = distort(state.step, gradients)
        # Some optimizers look at the loss.
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        vitals = read_vitals(value, params, gradients, updates, optimizer_state, sown)
        new_state = state._replace(step=state.step + 1, params=params, optimizer_state=optimizer_state)
        if isinstance(state, AveragedState):
            new_state = new_state._replace(average=optax.incremental_update(params, state.average, 1 - decay))
        return new_state, Report(vitals, _first_bad(vitals, (state.params, gradients)))

    return step


def _first_bad(vitals, tree):
    def search():
        finite = jnp.isfinite(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]))
        return jnp.where(jnp.all(finite), -1, jnp.argmin(finite))

    # To read all parameters once more would cost a small model a percent of its time.
    finite = jnp.isfinite(vitals.gradient_norm) & jnp.isfinite(vitals.update_norm)
    return jax.lax.cond(finite, lambda: -1, search)


def leaf_names(params: Any) -> list[str]:
    """What the numbers in :attr:`Report.bad_leaf` stand for."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [f"{kind} {name}" for kind in ("the parameter", "the gradient of") for name in names]
