"""The checkpoints of any kind of run, combined into better weights, and what came of it written down."""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.harness import results
from experiments.harness.checkpoint_leaves import stacked_sharding
from experiments.harness.checkpoint_stacks import (
    combine_checkpoints,
    missing_steps,
    stack_checkpoints,
    usable_steps,
    window,
)
from experiments.harness.checkpoints import CheckpointError, Checkpoints, check_path
from experiments.harness.coefficient_search import (
    GAMMAS,
    METHODS,
    Effort,
    check_effort,
    count_evaluations,
    evaluate_averages,
)
from experiments.harness.figures import COLOURS, finish, new_figure, save
from experiments.harness.progress import live_bar
from jaxreg.typing import Float
from jaxreg.validation import check_range
from jaxreg.weights import linear_combination

console = Console(highlight=False, markup=False, emoji=False)

COMBINATION = "combination.json"
EFFORT = Effort()

AT_ONCE = 16
"""Sums that are made in one pass over a stack: beyond it, arithmetic takes longer than reading the stack."""


class Combinable(Protocol):
    """A kind of run whose checkpoints can be combined.

    Attributes:
        shapes: what its checkpoints hold, a named tuple with a field ``params``, as a tree of
            ``jax.ShapeDtypeStruct`` with shardings.
        metric: what :meth:`fitness` is, in a word or two.
    """

    shapes: Any
    metric: str

    def fitness(self, params: Any) -> float:
        """Lower is better; on the same search data at every call."""

    def report(self, params: Any) -> dict[str, float]:
        """Figures on other data than the search's."""

    def others(self, state: Any) -> dict[str, Any]:
        """Parameters in the last checkpoint that are to be judged too, by what they are called."""
        return {}

    def picture(self, params: Any, path: Path) -> Path | None:
        """Writes a PNG of what parameters make, if that can be seen, and returns its path."""
        return None


def combine(
    run: Combinable,
    workdir: Path,
    out: Path,
    *,
    carry: Sequence[str] = (),
    method: str = "lcsc",
    last: int | None = None,
    stride: int = 1,
    first: int | None = None,
    gammas: tuple[float, ...] = (),
    effort: Effort = EFFORT,
    memory_bytes: float = 4e9,
    skip_bad: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Combines the checkpoints of any kind of run, and writes down what came of it.

    Args:
        run: how its parameters are judged.
        workdir: its directory, with ``checkpoints``.
        out: directory of the combination, which is not there yet.
        carry: names of files in the run's directory that the combination's has to have too, such as its settings.
        method: one of :data:`~experiments.harness.coefficient_search.METHODS`.
        last: see :func:`~experiments.harness.checkpoint_stacks.window`, as are ``stride`` and ``first``.
        stride: every how manyth checkpoint.
        first: the oldest step.
        gammas: for the method ``ema``.
        effort: how long to search.
        memory_bytes: see :class:`Candidates`.
        skip_bad: whether to leave out what cannot be combined.
        seed: of the search.

    Returns:
        What ``combination.json`` says.

    Raises:
        ValueError: an argument cannot be used.
        CheckpointError: a checkpoint cannot be combined, or the combination not be written.
        OutputError: the directory cannot be written.
    """
    check_effort(effort)
    check_range("memory", memory_bytes, "[0, inf)")
    for gamma in gammas:
        check_range("gamma", gamma, "[0, 1]")
    if gammas and method != "ema":
        raise ValueError(f"gamma is for the method ema, got {gammas} for {method}")
    check_path(out / "checkpoints")
    if (out / COMBINATION).exists() or any(path.name.isdigit() for path in (out / "checkpoints").glob("*")):
        raise ValueError(f"out must be a directory without a combination; {out} has one, which is not overwritten")
    if not (workdir / "checkpoints").is_dir():
        raise ValueError(f"workdir must hold checkpoints, {workdir} has none")
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        steps = _choose(checkpoints, run, last=last, stride=stride, first=first, skip_bad=skip_bad)
        results.prepare(out)
        candidates = Candidates(checkpoints, steps, run.shapes, memory_bytes=memory_bytes)
        rates = gammas or GAMMAS
        total = count_evaluations(method, len(steps), len(rates) + 2, effort)
        console.print(
            f"{len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}, "
            f"{'in memory' if candidates.in_memory else 'read for every few combinations'}; {total} evaluations"
        )
        with live_bar("evaluations", console=console) as bar:
            task = bar.add_task(method, total=total)

            def evaluate(population):
                values = []
                for params in candidates.each(population):
                    values.append(run.fitness(params))
                    bar.advance(task)
                return np.array(values)

            averages = evaluate_averages(evaluate, len(steps), rates)
            found = METHODS[method](evaluate, averages, effort, jax.random.key(seed))
        rows = {
            "combined": (found.coefficients, found.fitness),
            "last": (averages.coefficients[0], averages.fitness[0]),
            "uniform": (averages.coefficients[-1], averages.fitness[-1]),
            "ema": (averages.coefficients[averages.best], averages.fitness[averages.best]),
        }
        figures = {}
        for (name, (_, fitness)), params in zip(
            rows.items(), candidates.each(np.stack([row for row, _ in rows.values()])), strict=True
        ):
            figures[name] = {"search": float(fitness), "report": run.report(params)}
        figures["ema"]["gamma"] = averages.gammas[averages.best]
        state, extra = checkpoints.restore(steps[-1], run.shapes)
        for name, params in run.others(state).items():
            figures[name] = {"search": run.fitness(params), "report": run.report(params)}
        console.print(_table(run, method, figures))
        content = {
            "method": method,
            "steps": steps,
            "coefficients": found.coefficients,
            "metric": run.metric,
            "figures": figures,
            "history": found.history,
            "evaluations": found.evaluations,
            "averages": {"gammas": averages.gammas, "search": averages.fitness},
            "seed": seed,
            **(effort._asdict() if method in ("lcsc", "random") else {}),
        }
        combined = combine_checkpoints(checkpoints, steps, found.coefficients, run.shapes, select=is_parameter)
        with Checkpoints(out / "checkpoints", keep=None, asynchronous=False) as written:
            written.save(steps[-1], state._replace(params=combined.params), extra)
    coefficients = {method: found.coefficients, f"ema, gamma {figures['ema']['gamma']:.3g}": rows["ema"][0]}
    try:
        for name in carry:
            shutil.copyfile(workdir / name, out / name)
        results.write_json(out / COMBINATION, content)
        plots = [plot_coefficients(steps, coefficients, out / "coefficients.png")]
        for name, params in {"last": state.params, "combined": combined.params}.items():
            plots.append(run.picture(params, out / f"samples_{name}.png"))
    except OSError as error:
        raise results.OutputError(f"cannot write to the output directory {out}: {error.strerror}") from error
    console.print(f"weights: {out / 'checkpoints'}\nresult:  {out / COMBINATION}", soft_wrap=True)
    console.print(*(f"plot:    {plot}" for plot in plots if plot is not None), sep="\n", soft_wrap=True)
    return results.finite(content)


def plot_coefficients(steps: Sequence[int], coefficients: dict[str, Sequence[float]], path: Path) -> Path:
    """Coefficients over the steps of their checkpoints.

    Args:
        steps: of the checkpoints.
        coefficients: one for each, by name of the combination.
        path: of the PNG.

    Returns:
        The path.
    """
    figure = new_figure(7, 3.6)
    axis = figure.subplots()
    for number, (label, row) in enumerate(coefficients.items()):
        axis.plot(steps, row, "o-", color=COLOURS[number % len(COLOURS)], markersize=3.5, linewidth=1.2, label=label)
    axis.axhline(0, color="gray", linewidth=0.8)
    finish(axis, xlabel="step of the checkpoint", ylabel="coefficient")
    axis.legend(fontsize=8)
    return save(figure, path)


class Candidates:
    """Weighted sums of a window of checkpoints: of a stack in memory where it fits, else read anew for every few sums.

    Args:
        checkpoints: of the run.
        steps: the window.
        shapes: see :class:`Combinable`.
        memory_bytes: that the stack, and several sums at once, may take.
    """

    def __init__(self, checkpoints: Checkpoints, steps: Sequence[int], shapes: Any, *, memory_bytes: float):
        self._source = checkpoints, steps
        self._shapes = shapes
        one = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.params))
        fitting = int(memory_bytes // one)
        self._stack = None
        self._at_once = max(1, fitting)
        if fitting >= len(steps):
            self._stack = stack_checkpoints(checkpoints, steps, shapes, select=is_parameter).params
            self._at_once = min(max(1, fitting - len(steps)), AT_ONCE)
        shardings = jax.tree.map(lambda leaf: stacked_sharding(leaf, 0), shapes.params)
        self._one = jax.jit(linear_combination, out_shardings=shardings)
        self._row = jax.jit(lambda sums, row: jax.tree.map(lambda leaf: leaf[row], sums), out_shardings=shardings)
        self._several = jax.jit(
            lambda stack, rows, last: linear_combination(stack, rows),
            out_shardings=jax.tree.map(lambda leaf: stacked_sharding(leaf, 1), shapes.params),
            donate_argnames="last",
            keep_unused=True,
        )
        self._sums = None

    @property
    def in_memory(self) -> bool:
        """Whether the checkpoints fitted."""
        return self._stack is not None

    def each(self, population: Float[np.ndarray, "population k"]) -> Iterator[Any]:
        """The parameters of one sum after the other; the last such iterator ends before the next one begins."""
        population = np.asarray(population, np.float32)
        for start in range(0, len(population), self._at_once):
            part = population[start : start + self._at_once]
            if self._stack is not None and len(part) == 1:
                yield self._one(self._stack, part[0])
                continue
            sums = self._together(part)
            for row in range(len(part)):
                yield self._row(sums, row)

    def _together(self, part):
        if self._stack is None:
            return combine_checkpoints(*self._source, part, self._shapes, select=is_parameter).params
        if self._sums is None:
            self._sums = jax.tree.map(
                lambda leaf: jnp.zeros((self._at_once, *leaf.shape), leaf.dtype, device=stacked_sharding(leaf, 1)),
                self._shapes.params,
            )
        rows = np.pad(part, ((0, self._at_once - len(part)), (0, 0)))  # or every size would be compiled
        # In the memory of the last sums: to clear new memory takes longer than to compute them.
        self._sums = self._several(self._stack, rows, self._sums)
        return self._sums


def is_parameter(name: str) -> bool:
    """Whether a leaf of a checkpoint, by its name, is one of the model's parameters."""
    return name.startswith("params/")


def _choose(checkpoints, run, *, last, stride, first, skip_bad):
    """The steps of the window, each of which can be combined."""
    there = checkpoints.steps()
    if not there:
        raise ValueError(f"workdir must hold checkpoints, there are none in {checkpoints.directory}")
    steps = window(there, last=last, stride=stride, first=first)
    if missing := missing_steps(steps):
        message = f"{checkpoints.directory} lacks steps {', '.join(map(str, missing))} of the window {steps}"
        if not skip_bad:
            raise CheckpointError(f"{message}; --first chooses a window without a gap, --skip-bad takes what there is")
        console.print(message, style="yellow", soft_wrap=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps = usable_steps(checkpoints, steps, run.shapes, select=is_parameter, skip_bad=skip_bad)
    for warning in caught:
        console.print(str(warning.message), style="yellow", markup=False, soft_wrap=True)
    if len(steps) < 2:
        raise ValueError(f"window must hold at least 2 checkpoints, got {steps} of {there}; train with a larger --keep")
    return steps


def _table(run, method, figures):
    grid = Table(title=run.metric, box=SIMPLE_HEAD)
    reported = list(figures["combined"]["report"])
    for header in ("", "search data", *(f"{name}, other data" for name in reported)):
        grid.add_column(header, justify="right" if header else "left", no_wrap=True)
    labels = {
        "last": "last checkpoint",
        "uniform": "uniform average",
        "ema": f"best EMA (gamma {figures['ema']['gamma']:.3g})",
        **{name: name for name in figures if name not in ("last", "uniform", "ema", "combined")},
        "combined": f"{method}, written",
    }
    for name, label in labels.items():
        row = figures[name]
        grid.add_row(label, f"{row['search']:.4f}", *(f"{row['report'][figure]:.4f}" for figure in reported))
    return grid
