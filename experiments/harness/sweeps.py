"""A grid of hyperparameters trained side by side: one program, vmapped over the runs, all on the same batches."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import results, run_plots
from experiments.harness.feed import Feed
from experiments.harness.journal import Journal
from experiments.harness.placement import bytes_needed
from experiments.harness.pretraining import Pretraining
from experiments.harness.train_step import TrainState
from experiments.harness.trainer import Upkeep, fit

SWEEP = "sweep.json"
"""Name of the result in a sweep's directory."""
USABLE = 0.8
"""Part of the memory that runs may take."""


def parse_sweep(text: str) -> tuple[str, tuple[float, ...]]:
    """What ``learning_rate=1e-3,1e-2`` says, as a name and numbers.

    Raises:
        ValueError: it is not of this form.
    """
    name, _, values = text.partition("=")
    try:
        numbers = tuple(float(value) for value in values.split(","))
    except ValueError:
        numbers = ()
    if not (name and numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"sweep must be NAME=VALUE,VALUE,… with different numbers, got {text!r}")
    return name.replace("-", "_"), tuple(sorted(numbers))


def check_directory(workdir: Path, grid: tuple[str, tuple[float, ...]] | None) -> None:
    """Raises a ValueError where something else is that would be lost.

    Args:
        workdir: the directory.
        grid: name and values of the sweep that is to be written there; None for a run, which is no sweep.
    """
    if grid is not None and (workdir / "checkpoints").exists():
        raise ValueError(f"{workdir} holds a run; choose another --workdir for the sweep")
    if (workdir / SWEEP).exists():
        there = json.loads((workdir / SWEEP).read_text())
        name, values = there["hyperparameter"], tuple(there["values"])
        if grid != (name, values):
            listed = ",".join(f"{value:g}" for value in values)
            raise ValueError(f"{workdir} holds the sweep {name}={listed}; choose another --workdir")


def check_sweep(run: Pretraining, name: str, values: tuple[float, ...], *, at_once: int | None = None) -> None:
    """Raises a ValueError unless :func:`sweep` can train with each of the values; nothing is computed for it."""
    if jax.process_count() > 1:
        raise ValueError(f"a sweep is for one process, there are {jax.process_count()}")
    if run.placement.axis_name is not None:
        raise ValueError("parallel must be mesh for a sweep, got pmap")
    if at_once is not None and at_once < 1:
        raise ValueError(f"sweep_at_once must be at least 1, got {at_once}")
    for value in values:  # traced ones have no range
        run.optimizer(**{name: value})
    try:
        jax.eval_shape(_step_with(run, name), values[0], jax.eval_shape(run.fresh_state), run.batch_shape())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} decides how {run.settings.optimization.optimizer} is compiled, not just a number in it: "
            "it cannot be swept, only given to one run after the other"
        ) from error


def sweep(
    run: Pretraining,
    name: str,
    values: tuple[float, ...],
    *,
    workdir: Path,
    evaluate: Callable[[TrainState], dict[str, Any]],
    upkeep: Upkeep = Upkeep(),
    at_once: int | None = None,
    on_step: Callable[[int, dict[str, Any]], None] = lambda step, figures: None,
) -> dict[str, Any]:
    """Trains a run with each of several values of a hyperparameter, from the same initial parameters.

    Runs that diverge go on, as NaN. A sweep is not saved on its way.

    Args:
        run: what is trained, such that :func:`check_sweep` passes.
        name: ``learning_rate``, or a number that the optimizer takes.
        values: in increasing order.
        workdir: gets ``metrics.jsonl``, whose figures are lists, beside those of the values that they are of,
            ``sweep.json`` and ``sweep.png``.
        evaluate: gives runs side by side their validation losses, see :meth:`Pretraining.evaluation`.
        upkeep: how often losses are written and validated.
        at_once: how many runs at a time; as many as fit into the memory by default.
        on_step: called with figures that have become known, lists of one for each run.

    Returns:
        What ``sweep.json`` holds: name, values and the runs' last validation losses.
    """
    losses: list[float] = []
    with _SweepJournal(workdir) as journal:
        while len(losses) < len(values):
            count = min(at_once or len(values), len(values) - len(losses))
            chunk, step = _fitting(run, name, values[len(losses) :][:count], halve=at_once is None)
            at_once = len(chunk)
            journal.of = {name: list(chunk)}
            seen: dict[str, Any] = {}
            fit(
                run.placement.create(_copies(run, len(chunk))),
                step,
                Feed(run.corpus.train),
                steps=run.settings.optimization.steps,
                placement=run.placement,
                upkeep=upkeep,
                journal=journal,
                evaluate=evaluate,
                on_step=lambda step, figures, seen=seen: (seen.update(figures), on_step(step, figures)),
            )
            losses += seen["validation_loss"]
    uniform = float(np.log(run.config.vocab_size))
    result = {"hyperparameter": name, "values": list(values), "validation_loss": losses, "uniform_loss": uniform}
    results.write_json(workdir / SWEEP, result)
    label = run.settings.optimization.optimizer
    run_plots.plot_sensitivity(values, {label: losses}, workdir / "sweep.png", hyperparameter=name, worst=uniform)
    return result


class _SweepJournal(Journal):
    """A journal that says on every line of which runs it is."""

    of: Mapping[str, Sequence[float]] = {}

    def write(self, step: int, **figures: Any) -> None:
        super().write(step, **self.of, **figures)


def _step_with(run, name):
    """The step as a function of a hyperparameter, too."""
    return lambda value, state, rows: run.step(**{name: value})(state, rows)


def _copies(run, count):
    return lambda: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), run.fresh_state())


def _fitting(run, name, values, *, halve):
    """As many of the values as fit into the memory, and their step."""

    def side_by_side(state, rows):
        return jax.vmap(_step_with(run, name), (0, 0, None))(jnp.asarray(values), state, rows)

    rows = run.placement.rows(next(run.corpus.train()).tokens)
    state = run.placement.shapes(jax.eval_shape(_copies(run, len(values))))
    step = run.placement.compile(side_by_side).lower(state, rows).compile()
    if halve and len(values) > 1 and bytes_needed(step) > USABLE * _memory(jax.local_devices()[0]):
        return _fitting(run, name, values[: len(values) // 2], halve=True)
    return values, step


def _memory(device):
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
