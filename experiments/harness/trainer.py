"""The training loop of long runs: what happens between two steps, so that a killed, stopped or broken run loses little.

A run is a function ``step(state, rows) -> (state, Report)``, made by :func:`make_step`, and a feed of batches;
:func:`fit` takes them to the end. It never waits for the step it has just started: what a step reports is read a few
steps later, while the devices are busy with the next ones.
"""

import collections
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from experiments.harness.batches import Batch, TrainIterator
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.journal import Journal
from experiments.harness.mesh import gather_json
from experiments.harness.placement import Placement
from experiments.harness.spikes import SpikeRecorder
from experiments.harness.vitals import Vitals, read_vitals
from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike
from jaxreg.validation import check_range

LATENESS = 2
"""Steps that are started before what a step reports is read."""

MAX_ROLLBACKS = 10
"""Batches that are skipped at most before a step succeeds; more than that, and it is not the batches' fault."""


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
            finite; -1 if all are.
    """

    vitals: Vitals
    bad_leaf: Int[Array, "*runs"]


class NonFinite(Exception):
    """Training met NaN or infinity; the message says where."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it had."""


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


def steps_taken(state: State, placement: Placement) -> int:
    """How far a state is; runs that are trained side by side are equally far."""
    return int(np.max(placement.fetch(state.step)))


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
        return new_state, Report(vitals, _first_bad((state.params, gradients)))

    return step


def _first_bad(tree):
    # A sum of squares is what the norms need anyway.
    finite = jnp.stack([jnp.isfinite(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(tree)])
    return jnp.where(jnp.all(finite), -1, jnp.argmin(finite))


def leaf_names(params: Any) -> list[str]:
    """What the numbers in :attr:`Report.bad_leaf` stand for."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return [f"{kind} {name}" for kind in ("the parameter", "the gradient of") for name in names]


class Feed:
    """A run's batches in their order, but for those that are to be left out.

    Args:
        start: opens the batches, at a state of theirs or, with None, at the first.
        state: of a feed, to go on from.
    """

    def __init__(self, start: Callable[[dict | None], TrainIterator], state: dict[str, Any] | None = None):
        state = state or {"drawn": 0, "skipped": [], "batches": None}
        self._start = start
        self._batches = start(state["batches"])
        self.drawn: int = state["drawn"]
        self.skipped: set[int] = set(state["skipped"])

    def __next__(self) -> tuple[int, Batch]:
        """The number of a batch, and the batch."""
        while True:
            number, batch = self.drawn, next(self._batches)
            self.drawn += 1
            if number not in self.skipped:
                return number, batch

    def state(self) -> dict[str, Any]:
        """Where the feed is, as JSON; to be asked between two batches."""
        return {"drawn": self.drawn, "skipped": sorted(self.skipped), "batches": self._batches.state()}

    def reopened(self, state: dict[str, Any], skip: int) -> "Feed":
        """The feed as it was, with one more batch to leave out."""
        feed = Feed(self._start, state)
        feed.skipped |= self.skipped | {skip}
        return feed


def own_feed(extra: dict[str, Any]) -> dict[str, Any]:
    """The state of this process's feed, of those that a checkpoint has of all processes.

    Raises:
        ValueError: there were more or fewer processes, and each had its own batches.
    """
    feeds = extra["feeds"]
    if len(feeds) == jax.process_count():
        return feeds[jax.process_index()]
    if any(feed != feeds[0] for feed in feeds):
        raise ValueError(f"processes must be {len(feeds)} to resume this stream, got {jax.process_count()}")
    return feeds[0]


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """What happens beside training, and how often.

    Attributes:
        log_every: steps between two lines of metrics.jsonl.
        evaluate_every: steps between two validations.
        checkpoint_every: steps between two checkpoints.
        keep: newest checkpoints that are kept.
        keep_every: checkpoints of its multiples are kept for good.
        on_nan: stop; skip the batch and go on from the last checkpoint; or ignore it.
    """

    log_every: int = 1
    evaluate_every: int = 100
    checkpoint_every: int = 100
    keep: int = 3
    keep_every: int | None = None
    on_nan: Literal["stop", "skip", "ignore"] = "stop"

    def __post_init__(self):
        for name in ("log_every", "evaluate_every", "checkpoint_every", "keep", "keep_every"):
            check_range(name, getattr(self, name), "[1, inf)")


def fit(
    state: State,
    step: Step,
    feed: Feed,
    *,
    steps: int,
    placement: Placement,
    upkeep: Upkeep = Upkeep(),
    checkpoints: Checkpoints | None = None,
    journal: Journal | None = None,
    recorder: SpikeRecorder | None = None,
    evaluate: Callable[[State], dict[str, Any]] | None = None,
    on_step: Callable[[int, dict[str, Any]], None] = lambda step, figures: None,
    say: Callable[[str], None] = print,
) -> State:
    """Trains until a number of steps has been taken.

    Args:
        state: placed on the devices; it is used up.
        step: compiled by the placement.
        feed: batches from the state on.
        steps: in all, those of the state included.
        placement: where rows go and states come from.
        upkeep: how often what happens.
        checkpoints: where the run is saved; without them, a stopped run is lost.
        journal: where figures are written.
        recorder: watches for spikes.
        evaluate: figures of a state, such as its validation loss.
        on_step: called with figures that have become known, for a progress bar.
        say: tells the user of events.

    Returns:
        The last state.

    Raises:
        NonFinite: a loss, parameter or gradient is NaN or infinite, and that is a reason to stop.
        Interrupted: SIGTERM or SIGINT came; the run is saved.
    """
    names = leaf_names(state.params)
    pending: collections.deque[tuple[int, int, Batch, Report]] = collections.deque()
    done = steps_taken(state, placement)
    rollbacks: dict[int, int] = collections.defaultdict(int)

    def settle(keep=0):
        """Reads what steps report, all but the last few."""
        while len(pending) > keep:
            at, number, batch, report = pending.popleft()
            vitals, bad_leaf = placement.fetch(report)
            if recorder is not None:
                recorder.see(at, vitals, batch.positions)
            figures = {"batch": number, **figures_of(vitals)}
            if journal is not None and at % upkeep.log_every == 0:
                journal.write(at, **figures)
            on_step(at, figures)
            if upkeep.on_nan != "ignore":
                _check_finite(at, number, vitals, bad_leaf, names)

    def save():
        settle()
        if journal is not None:
            journal.sync()  # a checkpoint is not ahead of its journal
        checkpoints.save(done, placement.to_save(state), {"feeds": gather_json(feed.state())})

    with _stop_signals() as asked_to_stop:
        while done < steps:
            try:
                number, batch = next(feed)
                state, report = step(state, placement.rows(batch.rows))
                done += 1
                pending.append((done, number, batch, report))
                settle(keep=LATENESS)
                last = done == steps
                due = evaluate is not None and (done % upkeep.evaluate_every == 0 or last)
                if due or last:
                    settle()
                if due:
                    figures = evaluate(state)
                    if journal is not None:
                        journal.write(done, **figures)
                    on_step(done, figures)
                stop = asked_to_stop(done)
                if checkpoints is not None and (done % upkeep.checkpoint_every == 0 or last or stop):
                    save()
            except _NonFiniteStep as event:
                latest = checkpoints.latest(before=event.step) if checkpoints is not None else None
                rollbacks[latest] += 1
                if upkeep.on_nan != "skip" or latest is None or rollbacks[latest] > MAX_ROLLBACKS:
                    raise NonFinite(f"{event}; the last good checkpoint is {latest or 'none'}") from None
                say(f"{event}: back to step {latest}, without batch {event.batch}")
                pending.clear()
                template = placement.shapes(jax.eval_shape(placement.to_save, state))
                restored, extra = checkpoints.restore(latest, template)
                state, done = placement.put(restored), latest
                feed = feed.reopened(own_feed(extra), skip=event.batch)
                if journal is not None:
                    journal.rewind(latest)
                if recorder is not None:
                    recorder.rewind(latest)
                continue
            if stop:
                raise Interrupted(
                    f"stopped after step {done}, which is saved" if checkpoints is not None else "stopped"
                )
        settle()
    return state


def figures_of(vitals: Vitals) -> dict[str, Any]:
    """The figures of a step that go into the journal: those that are one number."""
    figures = {name: vitals._asdict()[name] for name in ("loss", "gradient_norm", "update_norm", "parameter_norm")}
    if vitals.max_attention_logits is not None:
        figures["max_attention_logit"] = np.max(vitals.max_attention_logits, axis=-1)
    return {name: np.asarray(value, np.float64).tolist() for name, value in figures.items()}


class _NonFiniteStep(Exception):
    def __init__(self, message, step, batch):
        super().__init__(message)
        self.step, self.batch = step, batch


def _check_finite(at, number, vitals, bad_leaf, names):
    if bad_leaf >= 0:
        where = f"{names[bad_leaf]} is not finite"
    elif np.isfinite(vitals.loss) and np.isfinite(vitals.parameter_norm):
        return
    else:
        where = "the gradients are finite" + ("" if np.isfinite(vitals.parameter_norm) else ", the update is not")
    raise _NonFiniteStep(f"the loss is {vitals.loss:.4g} at step {at} (batch {number}): {where}", at, number)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Whether SIGTERM or SIGINT has come, the same answer on all hosts; a second SIGINT interrupts at once."""
    came: list[int] = []

    def handle(number, frame):
        if number == signal.SIGINT and came:
            raise KeyboardInterrupt
        came.append(number)

    if jax.process_count() > 1:
        # jax agrees with the other processes on a step at which all of them stop.
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield lambda step: False
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
