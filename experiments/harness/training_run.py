"""A training run in a directory of its own: its settings, where it goes on, how it is started from a command line."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import tyro
from rich.console import Console

from experiments.harness import results
from experiments.harness.batches import TrainIterator
from experiments.harness.checkpoints import CheckpointError, Checkpoints
from experiments.harness.feed import Feed, own_feed
from experiments.harness.journal import Journal
from experiments.harness.placement import Placement
from experiments.harness.progress import TrainingProgress
from experiments.harness.run_settings import AnySettings, from_json
from experiments.harness.spikes import SpikeRecorder
from experiments.harness.train_step import State, Step
from experiments.harness.trainer import Interrupted, NonFinite, Upkeep, fit, steps_taken

CONFIG = "config.json"
"""Name of the settings in a run's directory."""


class Run(Protocol):
    """Everything of a run but its state; what training scripts train inherits from it.

    Attributes:
        placement: where it lives.
        settings: complete ones, in groups, of which ``optimization`` has the steps.
    """

    placement: Placement
    settings: Any

    def fresh_state(self) -> State:
        """The state before the first step."""

    def create(self) -> State:
        """The state before the first step, on the devices."""
        return self.placement.create(self.fresh_state)

    def shapes(self) -> State:
        """The shapes of a saved state, and how restored arrays are to lie."""
        return self.placement.shapes(jax.eval_shape(self.fresh_state))

    def batches(self, state: dict[str, Any] | None = None) -> TrainIterator:
        """The training batches, from the first or from where a run was."""

    def step(self) -> Step:
        """The step of training, not compiled yet."""


def read_settings(workdir: Path, kind: type[AnySettings]) -> AnySettings:
    """The settings of the run in a directory.

    Args:
        workdir: the directory.
        kind: of settings: a dataclass of groups, each of them a dataclass with a default.

    Raises:
        ValueError: it holds no run, or one of another kind.
    """
    try:
        return from_json(kind, json.loads((workdir / CONFIG).read_text()))
    except OSError as error:
        raise ValueError(f"workdir must be that of a run: cannot read {workdir / CONFIG}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{workdir / CONFIG} is not the settings of a run: {error!r}") from error


def take_directory(workdir: Path, settings: Any) -> None:
    """Writes down what the run is, or sees to it that it is the same one.

    Args:
        workdir: the run's directory, made if it is not there.
        settings: complete ones, a dataclass of groups.

    Raises:
        ValueError: it holds a run with other settings.
        OutputError: nothing can be written there.
    """
    results.prepare(workdir)
    wanted = dataclasses.asdict(settings)
    if not (workdir / CONFIG).exists():
        if jax.process_index() == 0:
            results.write_json(workdir / CONFIG, wanted)
        return
    stored = dataclasses.asdict(read_settings(workdir, type(settings)))
    for group, values in wanted.items():
        for name, value in values.items():
            if value != stored[group][name]:
                raise ValueError(
                    f"{workdir} holds a run with {name} = {stored[group][name]!r}, got {value!r}; "
                    "go on with the same settings, or choose another --workdir"
                )


def start(run: Run, checkpoints: Checkpoints, before: int | None = None) -> tuple[State, Feed]:
    """A run's state and batches: from the last checkpoint, that is before some step, or from scratch."""
    latest = checkpoints.latest(before)
    if latest is None:
        return run.create(), Feed(run.batches)
    state, extra = checkpoints.restore(latest, run.shapes())
    return run.placement.put(state), Feed(run.batches, own_feed(extra))


def read_state(run: Run, workdir: Path, step: int | None = None) -> State:
    """The state in one of a run's checkpoints, as it was saved.

    Args:
        run: what it is of.
        workdir: the run's directory.
        step: of the checkpoint; the last one by default.

    Raises:
        ValueError: there are none.
        CheckpointError: there is no such step, or it cannot be read.
    """
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None:
            raise ValueError(f"workdir must hold a checkpoint, {workdir} has none")
        return checkpoints.restore(chosen, run.shapes())[0]


def carry_out(
    run: Run,
    workdir: Path,
    *,
    upkeep: Upkeep,
    introduction: str,
    items_per_step: int,
    unit: str,
    console: Console,
    evaluate: Callable[[State], dict[str, Any]] | None = None,
    watch_spikes: bool = True,
    tensorboard: bool = False,
    summarize: Callable[[], None] = lambda: None,
) -> State:
    """Trains a run to its end in its directory, from where it was.

    Args:
        run: what is trained.
        workdir: taken by it.
        upkeep: how often what happens.
        introduction: what the user is told first, before the devices.
        items_per_step: in the batches of all devices together.
        unit: what these are.
        console: where progress is shown, by the first process.
        evaluate: see :func:`~experiments.harness.trainer.fit`.
        watch_spikes: whether to write ``spikes.jsonl``.
        tensorboard: whether to write for TensorBoard.
        summarize: called when the run has ended, been stopped or broken, which is the one that wants looking at.

    Returns:
        The last state.
    """
    first = jax.process_index() == 0  # the process that writes and speaks
    say = console.print if first else lambda message: None
    steps = run.settings.optimization.steps
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", keep=upkeep.keep, keep_every=upkeep.keep_every)
        )
        state, feed = start(run, checkpoints)
        done = steps_taken(state)
        used = run.placement.devices
        say(
            f"{introduction}, {len(used)} x {used[0].device_kind}, "
            f"{f'on from step {done}' if done else 'from the start'}, in {workdir}"
        )
        journal = recorder = progress = None
        if first:
            stack.push(lambda kind, error, trace: _worth_a_look(kind) and summarize())
            resume_step = done or None
            journal = stack.enter_context(Journal(workdir, resume_step=resume_step, tensorboard=tensorboard))
            if watch_spikes:
                recorder = stack.enter_context(SpikeRecorder(workdir, resume_step=resume_step))
            progress = stack.enter_context(
                TrainingProgress(steps, items_per_step=items_per_step, unit=unit, start=done, console=console)
            )
        return fit(
            state,
            run.placement.compile(run.step()),
            feed,
            steps=steps,
            placement=run.placement,
            upkeep=upkeep,
            checkpoints=checkpoints,
            journal=journal,
            recorder=recorder,
            evaluate=evaluate,
            on_step=lambda step, figures: progress and "loss" in figures and progress.update(step, figures["loss"]),
            say=say,
        )


def run_command(
    commands: Mapping[str, Callable[..., int]],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    console: Console,
) -> int:
    """The command line of a training script; what goes wrong is told in one line.

    Args:
        commands: the functions by name; ``train`` is meant where none is named.
        arguments: of the command line.
        program: how it is called.
        description: shown by ``--help``.
        console: where messages go.

    Returns:
        The exit code: 0; 1 where training met what is not finite; 2 where something cannot be used.
    """
    arguments = list(arguments)
    if not arguments or arguments[0] not in (*commands, "-h", "--help"):
        arguments = ["train", *arguments]  # what it is mostly called for
    try:
        return tyro.extras.subcommand_cli_from_dict(
            dict(commands), args=arguments, prog=program, description=description
        )
    except Interrupted as event:
        console.print(f"{event}; the same command goes on from there")
        return 0
    except NonFinite as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except (ValueError, CheckpointError, results.OutputError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2


def _worth_a_look(ended_by: type[BaseException] | None) -> bool:
    return ended_by is None or issubclass(ended_by, NonFinite | Interrupted)
