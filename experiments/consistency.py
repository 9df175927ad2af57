"""Trains a consistency or diffusion model, on anything from a laptop to a TPU pod, and keeps checkpoints to combine.

    python -m experiments.consistency                           # improved consistency training on digits, minutes
    python -m experiments.consistency --data ring --objective ctm                   # points of a density, seconds
    python -m experiments.consistency --objective diffusion --workdir runs/diffusion               # the baseline
    python -m experiments.consistency --data hf:uoft-cs/cifar10 --flip --dropout 0.3 --dtype bfloat16 --fsdp 4
    python -m experiments.consistency --data file:pictures --size 32 --network unet --width 64
    python -m experiments.consistency generate --steps 2        # samples of the last checkpoint's average, as a PNG

A run has a directory, `runs/DATA-OBJECTIVE` by default: config.json, checkpoints/, metrics.jsonl (a line a step),
samples/ (of the averaged parameters, of the same noise each time) and, at the end, run.png. The same command again goes
on from the last checkpoint. SIGTERM and control-C save and stop; what a killed run has lost is what came after its last
checkpoint. `python -m experiments.combine` makes better parameters of the checkpoints, and `generate --workdir
WORKDIR/combined/METHOD` shows what they are worth.
"""

import math
import sys
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.harness import mesh, results, run_plots
from experiments.harness.combination import COMBINATION
from experiments.harness.consistency_settings import Settings
from experiments.harness.consistency_training import ConsistencyTraining
from experiments.harness.journal import METRICS, read_journal, series
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.sample_plots import plot_samples
from experiments.harness.trainer import Upkeep
from experiments.harness.training_run import carry_out, read_settings, read_state, run_command, take_directory

console = Console(highlight=False, markup=False, emoji=False)

Grouped = tyro.conf.OmitArgPrefixes

SHOWN_IMAGES, SHOWN_POINTS = 64, 2048
"""Samples in a picture that is made while training."""

METRICS_IN_WORDS = {"frechet_distance": "Fréchet distance", "energy_distance": "energy distance"}


def train(
    settings: Grouped[Settings] = Settings(),
    devices: Grouped[DeviceSettings] = DeviceSettings(),
    upkeep: Grouped[Upkeep] = Upkeep(evaluate_every=500, keep=30),
    workdir: Path | None = None,
    evaluation_samples: int = 1024,
    tensorboard: bool = False,
) -> int:
    """Train, or go on training.

    Args:
        settings: what is trained, on what, and how.
        devices: where.
        upkeep: what happens beside.
        workdir: the run's directory, runs/DATA-OBJECTIVE by default.
        evaluation_samples: samples by which the averaged parameters are judged.
        tensorboard: also write for TensorBoard.

    Returns:
        The exit code.
    """
    mesh.join_hosts(devices.coordinator, devices.processes, devices.process)
    settings = settings.complete()
    workdir = workdir or default_workdir(settings)
    run = ConsistencyTraining(settings, devices)
    run.check()  # or what is wrong would be known only after the directory is taken
    shapes = run.shapes()
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params))

    def show(step, samples):
        if jax.process_index() == 0:
            _picture(run, samples, workdir / "samples" / f"step_{step}.png")

    evaluate = run.evaluation(evaluation_samples, show)
    take_directory(workdir, settings)
    carry_out(
        run,
        workdir,
        upkeep=upkeep,
        introduction=f"{settings.objective.objective} on {settings.data.data}, {settings.network.network} of "
        f"{parameters / 1e6:.3g} M parameters",
        items_per_step=settings.data.batch,
        unit="examples",
        console=console,
        evaluate=evaluate,
        watch_spikes=False,
        tensorboard=tensorboard,
        summarize=lambda: _summarize(workdir, run.metric),
    )
    return 0


def generate(
    workdir: Path = Path("runs/digits-ict"),
    count: int = 64,
    steps: int | None = None,
    seed: int = 0,
    step: int | None = None,
    weights: Literal["average", "last", "combined"] | None = None,
    out: Path | None = None,
) -> int:
    """Write samples of a checkpoint as a PNG.

    Args:
        workdir: the run's directory, or that of a combination of its checkpoints.
        count: how many.
        steps: of sampling; 1, or 18 for a diffusion model, by default.
        seed: of the noise.
        step: of the checkpoint; the last one by default.
        weights: the average that was kept in training, the default, or the parameters of the step itself. In the
            directory of a combination there are those that were combined, and no others.
        out: the PNG, WORKDIR/samples.png by default.

    Returns:
        The exit code.
    """
    run = ConsistencyTraining(read_settings(workdir, Settings))
    combined = (workdir / COMBINATION).exists()
    if weights is not None and combined != (weights == "combined"):
        have = "combined" if combined else "average or last"
        raise ValueError(f"weights must be {have} in {workdir}, got {weights}")
    state = read_state(run, workdir, step)
    params = state.params if combined or weights == "last" else state.average
    key = jax.random.key(seed)
    samples = jax.jit(lambda params: run.sample(params, key, count, steps))(params)
    path = out or workdir / "samples.png"
    results.prepare(path.parent)
    _picture(run, samples, path, count)
    console.print(f"samples: {path}", soft_wrap=True)
    return 0


def default_workdir(settings: Settings) -> Path:
    """Where a run is if nothing else is said."""
    kind = settings.data.data.partition(":")[0]
    return Path("runs") / f"{kind}-{settings.objective.objective}"


def _picture(run, samples, path, shown=None):
    path.parent.mkdir(exist_ok=True)
    images = len(run.shape) == 3
    shown = shown or (SHOWN_IMAGES if images else SHOWN_POINTS)
    plot_samples(samples[:shown], path, data=None if images else np.asarray(run.held_out[:SHOWN_POINTS]))


def _summarize(workdir, metric):
    lines = read_journal(workdir / METRICS)
    if any("loss" in line for line in lines):
        steps, distances = series(lines, metric)
        if distances.size:
            value = f"{distances[-1]:.4f}, after step {steps[-1]}"
            console.print(f"{METRICS_IN_WORDS[metric]} of the averaged parameters' samples to held-out data: {value}")
        labels = {"loss": "loss", metric: METRICS_IN_WORDS[metric]}
        console.print(f"plot: {run_plots.plot_run(workdir, labels)}", soft_wrap=True)
        console.print(f"samples: {workdir / 'samples'}", soft_wrap=True)


COMMANDS = {"train": train, "generate": generate}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(
        COMMANDS, arguments, program="python -m experiments.consistency", description=__doc__, console=console
    )


if __name__ == "__main__":
    sys.exit(main())
