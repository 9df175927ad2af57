"""Pretrains a Llama-style language model, on anything from a laptop to a TPU pod, and shows where training breaks.

    python -m experiments.pretrain                              # `tiny` on Python's documentation, minutes on two cores
    python -m experiments.pretrain --optimizer spam --option reset_every=200 --spike-probability .02 --workdir runs/spam
    python -m experiments.pretrain --preset 130m --data hf:allenai/c4:en --tokenizer hf:t5-base --dtype bfloat16
    python -m experiments.pretrain --sweep learning_rate=1e-3,3e-3,1e-2,3e-2    # side by side: sensitivity to the rate
    python -m experiments.pretrain replay --step 500 --optimizer stable_spam    # what if, from the checkpoint before
    python -m experiments.pretrain generate --prompt "def "     # a sample from the last checkpoint

A run has a directory, `runs/PRESET` by default: config.json, checkpoints/, metrics.jsonl (a line a step), spikes.jsonl
(what happened around each spike) and, at the end, run.png. The same command again goes on from the last checkpoint.
SIGTERM and control-C save and stop; what a killed run has lost is what came after its last checkpoint.
"""

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.harness import mesh, results, run_plots, sweeps
from experiments.harness.checkpoints import Checkpoints
from experiments.harness.generation import generate as sample
from experiments.harness.journal import METRICS, Journal, read_journal, series
from experiments.harness.llama import parameter_count
from experiments.harness.memory import keep_memory
from experiments.harness.pretraining import Pretraining, Settings, adopt_state
from experiments.harness.progress import TrainingProgress
from experiments.harness.run_settings import DeviceSettings, Several
from experiments.harness.train_step import TrainState
from experiments.harness.trainer import Upkeep, fit, steps_taken
from experiments.harness.training_run import carry_out, read_settings, read_state, run_command, start, take_directory

console = Console(highlight=False, markup=False, emoji=False)

Grouped = tyro.conf.OmitArgPrefixes


def train(
    settings: Grouped[Settings] = Settings(),
    devices: Grouped[DeviceSettings] = DeviceSettings(),
    upkeep: Grouped[Upkeep] = Upkeep(),
    workdir: Path | None = None,
    validation_batches: int = 8,
    tensorboard: bool = False,
    sweep: str | None = None,
    sweep_at_once: int | None = None,
) -> int:
    """Train, or go on training.

    Args:
        settings: what is trained, on what, and how.
        devices: where.
        upkeep: what happens beside.
        workdir: the run's directory, runs/PRESET by default.
        validation_batches: batches of a validation.
        tensorboard: also write for TensorBoard.
        sweep: NAME=VALUE,VALUE,…: train with each of these values of learning_rate, or of a number that the optimizer
            takes, side by side.
        sweep_at_once: how many of them at a time; as many as fit by default.

    Returns:
        The exit code.
    """
    mesh.join_hosts(devices.coordinator, devices.processes, devices.process)
    settings = settings.complete()
    grid = None if sweep is None else sweeps.parse_sweep(sweep)
    workdir = workdir or default_workdir(settings, sweep)
    run = Pretraining(settings, devices)
    run.check()  # or what is wrong would be known only after the directory is taken
    if grid is not None:
        sweeps.check_sweep(run, *grid, at_once=sweep_at_once)
    evaluate = run.evaluation(validation_batches, side_by_side=grid is not None)
    sweeps.check_directory(workdir, grid)
    take_directory(workdir, settings)
    if grid is not None:
        return _sweep(run, *grid, workdir, upkeep, evaluate, sweep_at_once)
    carry_out(
        run,
        workdir,
        upkeep=upkeep,
        introduction=f"{settings.model.preset}: {parameter_count(run.config) / 1e6:.3g} M parameters, "
        f"{settings.optimization.optimizer}",
        items_per_step=settings.data.batch * settings.model.context,
        unit="tokens",
        console=console,
        evaluate=evaluate,
        tensorboard=tensorboard,
        summarize=lambda: _summarize(workdir),
    )
    return 0


def replay(
    step: int,
    workdir: Path = Path("runs/tiny"),
    optimizer: str | None = None,
    option: Annotated[tuple[str, ...], Several] = (),
    learning_rate: float | None = None,
    clip_norm: float | None = None,
    spike_probability: float | None = None,
    after: int = 50,
    devices: int | None = None,
    fsdp: int = 1,
) -> int:
    """Train once more through a step, from the checkpoint before it and on exactly the same batches, but differently.

    The new optimizer takes over what it knows of the old one's state: moments, mostly. With nothing changed, what
    happened happens again. All replays of a step are plotted together, beside what happened.

    Args:
        step: of the run; the replay begins at the last checkpoint before it.
        workdir: the run's directory.
        optimizer: in place of the run's.
        option: an argument of it; may be given several times. They replace the run's.
        learning_rate: in place of the run's.
        clip_norm: in place of the run's; 0 for no clipping.
        spike_probability: in place of the run's.
        after: steps to train after the step.
        devices: how many, of this host; all by default.
        fsdp: over how many of them parameters and optimizer state are spread.

    Returns:
        The exit code.
    """
    settings = read_settings(workdir, Settings)
    if not 1 <= step <= settings.optimization.steps:
        raise ValueError(f"step must be in [1, {settings.optimization.steps}], got {step}")
    if after < 0:
        raise ValueError(f"after must be at least 0, got {after}")
    changed, name = _changed(settings, optimizer, option, learning_rate, clip_norm, spike_probability)
    where = DeviceSettings(devices=devices, fsdp=fsdp)
    then, now = Pretraining(settings, where), Pretraining(changed, where)
    now.check()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state, feed, _ = start(then, checkpoints, before=step)
    begin = steps_taken(state)
    happened = read_journal(workdir / METRICS)
    # A batch that the run left out when it went back to this checkpoint is in no checkpoint before the next.
    feed.skipped |= {line["skipped"] for line in happened if "skipped" in line}
    state = state._replace(optimizer_state=adopt_state(now.create().optimizer_state, state.optimizer_state))
    console.print(f"replaying steps {begin + 1} to {step + after} with {name}")
    directory = results.prepare(workdir / "replays" / f"step_{step}" / re.sub(r"[^\w=.-]+", "_", name))
    with Journal(directory) as journal:
        fit(
            state,
            now.placement.compile(now.step()),
            feed,
            steps=min(step + after, settings.optimization.steps),
            placement=now.placement,
            upkeep=Upkeep(on_nan="ignore"),
            journal=journal,
        )
    happened = [line for line in happened if begin < line["step"] <= step + after]
    replays = {path.parent.name: read_journal(path) for path in sorted(directory.parent.glob(f"*/{METRICS}"))}
    plot = run_plots.plot_replay(happened, replays, directory.parent / "replays.png")
    for label, lines in {"what happened": happened, **replays}.items():
        steps, losses = series(lines, "loss")
        losses = losses[steps >= step]
        if losses.size:
            first, most, last = losses[0], np.max(losses), losses[-1]
            console.print(f"{label}: loss {first:.4f} at step {step}, at most {most:.4f}, {last:.4f} at the end")
    console.print(f"plot: {plot}", soft_wrap=True)
    return 0


def generate(
    workdir: Path = Path("runs/tiny"),
    prompt: str = "def ",
    length: int = 400,
    temperature: float = 0.8,
    seed: int = 0,
    step: int | None = None,
) -> int:
    """Print a sample from a checkpoint.

    Args:
        workdir: the run's directory.
        prompt: how it begins.
        length: tokens to add.
        temperature: divides the logits; 0 takes the most probable token.
        seed: of the sample.
        step: of the checkpoint; the last one by default.

    Returns:
        The exit code.
    """
    run = Pretraining(read_settings(workdir, Settings))
    state = read_state(run, workdir, step)
    tokens = run.corpus.encode(prompt)
    added = sample(run.config, state.params, tokens, length=length, temperature=temperature, key=jax.random.key(seed))
    console.print(run.corpus.decode(np.concatenate([tokens, added])), soft_wrap=True)
    return 0


def default_workdir(settings: Settings, sweep: str | None = None) -> Path:
    """Where a run, or a sweep, is if nothing else is said."""
    return Path("runs") / (settings.model.preset + ("" if sweep is None else "-sweep"))


def _summarize(workdir: Path) -> None:
    lines = read_journal(workdir / METRICS)
    if any("loss" in line for line in lines):
        steps, losses = series(lines, "validation_loss")
        if losses.size:
            console.print(f"validation loss: {losses[-1]:.4f} nats a token, after step {steps[-1]}")
        console.print(f"plot: {run_plots.plot_run(workdir)}", soft_wrap=True)


def _sweep(
    run: Pretraining,
    name: str,
    values: tuple[float, ...],
    workdir: Path,
    upkeep: Upkeep,
    evaluate: Callable[[TrainState], dict[str, Any]],
    at_once: int | None,
) -> int:
    tokens = run.settings.data.batch * run.settings.model.context * len(values)
    with TrainingProgress(run.settings.optimization.steps, items_per_step=tokens, console=console) as progress:

        def on_step(step, figures):
            if "loss" in figures:
                progress.update(step, min(figures["loss"]))

        result = sweeps.sweep(
            run,
            name,
            values,
            workdir=workdir,
            upkeep=dataclasses.replace(upkeep, on_nan="ignore"),
            evaluate=evaluate,
            at_once=at_once,
            on_step=on_step,
        )
    for value, loss in zip(result["values"], result["validation_loss"], strict=True):
        console.print(f"{name} {value:g}: validation loss {loss:.4f}")
    console.print(f"result: {workdir / sweeps.SWEEP}\nplot:   {workdir / 'sweep.png'}", soft_wrap=True)
    return 0


def _changed(settings, optimizer, option, learning_rate, clip_norm, spike_probability) -> tuple[Settings, str]:
    """The settings of a replay, and what to call it."""
    given = {"optimizer": optimizer, "learning_rate": learning_rate, "clip_norm": clip_norm}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    words = [changes.get("optimizer", settings.optimization.optimizer), *option]
    words += [f"{name}={changes[name]:g}" for name in ("learning_rate", "clip_norm") if name in changes]
    if option or changes.get("optimizer", settings.optimization.optimizer) != settings.optimization.optimizer:
        changes["option"] = option
    if clip_norm == 0:
        changes["clip_norm"] = None
    faults = settings.faults
    if spike_probability is not None:
        words.append(f"spike_probability={spike_probability:g}")
        faults = dataclasses.replace(faults, spike_probability=spike_probability)
    optimization = dataclasses.replace(settings.optimization, **changes)
    return dataclasses.replace(settings, optimization=optimization, faults=faults), " ".join(words)


COMMANDS = {"train": train, "replay": replay, "generate": generate}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(
        COMMANDS, arguments, program="python -m experiments.pretrain", description=__doc__, console=console
    )


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
