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
from experiments.harness.checkpoints import CheckpointError, Checkpoints, check_path, first_line
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

    def batch_shape(self) -> jax.ShapeDtypeStruct:
        """The rows of a batch, those of all processes together."""

    def step(self) -> Step:
        """The step of training, not compiled yet."""

    def check(self) -> None:
        """Raises a ValueError unless a step can be taken; nothing is computed or compiled for it."""
        rows, accumulate = self.batch_shape(), self.settings.optimization.accumulate
        batch, devices, axis_name = rows.shape[0], len(self.placement.devices), self.placement.axis_name
        if batch % devices:
            raise ValueError(f"batch must be a multiple of the number of devices, {devices}, got {batch}")
        if axis_name is not None and batch // devices % accumulate:
            raise ValueError(f"accumulate must divide the rows of a device, {batch} / {devices}, got {accumulate}")
        try:
            state, step = jax.eval_shape(self.fresh_state), self.step()
            if axis_name is not None:
                step = jax.vmap(step, (None, 0), axis_name=axis_name)
                rows = jax.ShapeDtypeStruct((devices, batch // devices, *rows.shape[1:]), rows.dtype)
            jax.eval_shape(step, state, rows)
        except TypeError as error:  # of an optimizer that is given what it cannot reckon with
            words = self.settings.optimization.optimizer, *self.settings.optimization.option
            raise ValueError(f"no step can be taken with {' '.join(words)}: {first_line(error)}") from error


def read_settings(workdir: Path, kind: type[AnySettings]) -> AnySettings:
    """The settings of the run in a directory.

    Args:
        workdir: the directory.
        kind: of settings: a dataclass of groups, each of them a dataclass with a default.

    Raises:
        ValueError: it holds no run, or one of another kind.
        OutputError: it is an address such as ``gs://bucket/run``.
    """
    results.check_local(workdir)
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
        ValueError: it holds a run with other settings, or can hold no checkpoints.
        OutputError: nothing can be written there.
    """
    check_path(workdir / "checkpoints")
    results.prepare(workdir)
    wanted = dataclasses.asdict(settings)
    if not (workdir / CONFIG).exists():
        if jax.process_index() == 0:
            # With NaN and infinity as Python reads them: null is another setting.
            text = json.dumps(wanted, indent=1) + "\n"
            results.write_atomically(workdir / CONFIG, lambda file: file.write(text.encode()))
        return
    stored = dataclasses.asdict(read_settings(workdir, type(settings)))
    for group, values in wanted.items():
        for name, value in values.items():
            was = stored[group][name]
            if value != was and (value == value or was == was):  # NaN is the same setting, too
                raise ValueError(
                    f"{workdir} holds a run with {name} = {was!r}, got {value!r}; "
                    "go on with the same settings, or choose another --workdir"
                )


def start(run: Run, checkpoints: Checkpoints, before: int | None = None) -> tuple[State, Feed, dict[str, Any]]:
    """A run's state and batches: from the last checkpoint, that is before some step, or from scratch.

    Args:
        run: what it is of.
        checkpoints: of the run.
        before: a step.

    Returns:
        State, batches, and what else the checkpoint has.
    """
    latest = checkpoints.latest(before)
    if latest is None:
        return run.create(), Feed(run.batches), {}
    state, extra = checkpoints.restore(latest, run.shapes())
    return run.placement.put(state), Feed(run.batches, own_feed(extra)), extra


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
        state, feed, extra = start(run, checkpoints)
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
                recorder = stack.enter_context(
                    SpikeRecorder(workdir, resume_step=resume_step, usual=extra.get("usual"))
                )
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
        description: shown by ``--help``, above the options of ``train``.
        console: where messages go.

    Returns:
        The exit code: 0; 1 where training met what is not finite; 2 where something cannot be used.
    """
    name, *arguments = arguments if arguments and arguments[0] in commands else ["train", *arguments]
    others = ", ".join(f"`{other}`" for other in commands if other != "train")
    try:
        if name == "train":  # what it is mostly called for
            description += f"\nThese are the options of training. Other commands, each with its own --help: {others}."
            return tyro.cli(commands[name], args=arguments, prog=program, description=description)
        return tyro.cli(commands[name], args=arguments, prog=f"{program} {name}")
    except Interrupted as event:
        console.print(str(event), markup=False)
        return 0
    except NonFinite as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except (ValueError, CheckpointError, results.OutputError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2


def _worth_a_look(ended_by: type[BaseException] | None) -> bool:
    return ended_by is None or issubclass(ended_by, NonFinite | Interrupted)
