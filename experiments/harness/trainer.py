"""The training loop of long runs: what happens between two steps, so that a killed, stopped or broken run loses little.

A run is a step, made by :func:`experiments.harness.train_step.make_step`, and a feed of batches; :func:`fit` takes them
to the end. It never waits for the step it has just started: what a step reports is read a few steps later, while the
devices are busy with the next ones.
"""

import collections
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.harness.batches import Batch
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.feed import Feed, own_feed
from experiments.harness.journal import Journal
from experiments.harness.mesh import gather_json
from experiments.harness.placement import Placement
from experiments.harness.signals import noted
from experiments.harness.spikes import SpikeRecorder
from experiments.harness.train_step import Report, State, Step, leaf_names
from experiments.harness.vitals import Vitals
from jaxreg.validation import check_range

LATENESS = 2
"""Steps that are started before what a step reports is read."""

MAX_ROLLBACKS = 10
"""Batches that are skipped at most before a step succeeds; more than that, and it is not the batches' fault."""


class NonFinite(Exception):
    """Training met NaN or infinity; the message says where."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it had, if it has checkpoints."""


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
        Interrupted: SIGTERM or SIGINT came; the run is saved, if there are checkpoints.
    """
    names = leaf_names(state.params)
    pending: collections.deque[tuple[int, int, Batch, Report]] = collections.deque()
    done = steps_taken(state)
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
        extra = {"feeds": gather_json(feed.state())}
        if recorder is not None:
            extra["usual"] = recorder.usual()
        checkpoints.save(done, placement.to_save(state), extra)

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
                    journal.write(latest, skipped=event.batch)  # the checkpoint does not know of it
                if recorder is not None:
                    recorder.rewind(latest, extra.get("usual"))
                continue
            if stop:
                if checkpoints is None:
                    raise Interrupted(f"stopped after step {done}; nothing is saved to go on from")
                raise Interrupted(f"stopped after step {done}, which is saved; the same command goes on from there")
        settle()
    return state


def steps_taken(state: State) -> int:
    """How far a state is; its copies, and runs that are trained side by side, are equally far."""
    return int(np.max(jax.device_get(state.step)))


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
    elif not np.isfinite(vitals.update_norm):
        where = "the gradients are finite, the update is not"
    elif not np.isfinite(vitals.parameter_norm):
        where = "gradients and update are finite, the parameters are not"
    elif not np.isfinite(vitals.loss):
        where = "the gradients are finite"
    else:
        return
    raise _NonFiniteStep(f"the loss is {vitals.loss:.4g} at step {at} (batch {number}): {where}", at, number)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Whether SIGTERM or SIGINT has come, the same answer on all hosts; a second SIGINT interrupts at once."""
    if jax.process_count() > 1:
        # jax agrees with the other processes on a step at which all of them stop.
        yield multihost_utils.reached_preemption_sync_point
        return
    with noted(signal.SIGTERM, signal.SIGINT, patience=1) as came:
        yield lambda step: came()
