"""Plots of training runs: how one went, what replays did better, which learning rates it survives.

Made from the files that runs leave behind, and from nothing else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.harness.figures import COLOURS, LABELS, choose_scale, finish, new_figure, save
from experiments.harness.journal import METRICS, read_journal, series
from experiments.harness.spike_page import plot_spike
from experiments.harness.spikes import SPIKES, read_spikes
from jaxreg.metrics import lr_sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]
"""A journal."""
MOST_PAGES = 20
"""Spikes that get a page of their own."""


def plot_run(workdir: Path | str, labels: Mapping[str, str] | None = None) -> Path:
    """Plots a run's journal: losses, norms, attention logits, with spikes marked; and every spike on its own page.

    Args:
        workdir: the run's directory, with ``metrics.jsonl`` and perhaps ``spikes.jsonl``. It gets ``run.png`` and, for
            the first 20 spikes, ``spikes/step_STEP.png``.
        labels: what figures are called on an axis, besides or in place of the usual names.

    Returns:
        The path of ``run.png``.

    Raises:
        ValueError: a file cannot be used, or the journal holds no loss.
    """
    workdir = Path(workdir)
    lines = read_journal(workdir / METRICS)
    spikes = read_spikes(workdir / SPIKES) if (workdir / SPIKES).exists() else []
    labels = {**LABELS, **(labels or {})}
    names = [name for name in labels if any(name in line for line in lines)]
    if "loss" not in names:
        raise ValueError(f"{workdir / METRICS} must hold a loss, got {len(lines)} lines without")
    figure = new_figure(8, 0.6 + 2.1 * len(names))
    axes = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for name, axis in zip(names, axes, strict=True):
        steps, values = series(lines, name)
        _plot_training(axis, steps, values)
        if name == "loss":
            validation = series(lines, "validation_loss")
            if validation[0].size:
                axis.plot(*validation, "o-", color=COLOURS[1], markersize=3, linewidth=1.2, label="held-out data")
            values = np.concatenate([values, validation[1]])
        choose_scale(axis, values, norm=name.endswith("norm"))
        _mark_spikes(axis, [spike.step for spike in spikes])
        finish(axis, ylabel=labels[name])
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, fontsize=8, loc="outside upper right", ncols=len(texts), frameon=False)
    axes[-1].set(xlabel="training step")
    for spike in spikes[:MOST_PAGES]:
        (workdir / "spikes").mkdir(exist_ok=True)
        plot_spike(spike, workdir / "spikes" / f"step_{spike.step}.png")
    return save(figure, workdir / "run.png")


def plot_replay(original: Lines, replayed: Mapping[str, Lines], path: Path) -> Path:
    """What happened and what happens otherwise: loss, gradient and update norm, each on one pair of axes.

    Where a run stops being finite it has a cross.

    Args:
        original: lines of the run's journal.
        replayed: lines of the replays' journals, by name; one without a loss is left out.
        path: of the PNG.

    Returns:
        The path.
    """
    names = [name for name in LABELS if name != "max_attention_logit"]
    figure = new_figure(12, 4.2)
    axes = figure.subplots(1, len(names), sharex=True)
    begun = {label: lines for label, lines in replayed.items() if any("loss" in line for line in lines)}
    runs = {"what happened": original, **begun}
    for axis, name in zip(axes, names, strict=True):
        everything = []
        for number, (label, lines) in enumerate(runs.items()):
            steps, values = series(lines, name)
            style = "-" if number <= len(COLOURS) else "--"
            # What happened is broad and behind, for many a replay runs along it for a while.
            colour, width = ("#B0B0B0", 3.5) if number == 0 else (COLOURS[(number - 1) % len(COLOURS)], 1.3)
            axis.plot(steps, values, style, color=colour, linewidth=width, label=label)
            _mark_end(axis, steps, values, colour)
            everything.append(values)
        choose_scale(axis, np.concatenate(everything), norm=name.endswith("norm"))
        finish(axis, LABELS[name], xlabel="training step")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=min(4, len(labels)))
    return save(figure, path)


def plot_sensitivity(
    rates: Sequence[float],
    losses: Mapping[str, Sequence[float | None]],
    path: Path,
    *,
    hyperparameter: str = "learning_rate",
    worst: float | None = None,
) -> Path:
    """Final loss against learning rate, with :func:`~jaxreg.metrics.lr_sensitivity` in the legend.

    Args:
        rates: learning rates, in increasing order.
        losses: final losses at these, by name of the run; None and NaN for runs that diverged.
        path: of the PNG.
        hyperparameter: what the rates are.
        worst: the loss before training, or of a uniform guess; diverged runs and larger losses are shown there, by a
            cross. The largest loss by default.

    Returns:
        The path.

    Raises:
        ValueError: a run has more or fewer losses than there are rates, or no loss is finite and ``worst`` is None.
    """
    table = {label: np.array(row, np.float64) for label, row in losses.items()}
    for label, row in table.items():
        if len(row) != len(rates):
            raise ValueError(f"losses must have {len(rates)} values for each run, got {len(row)} for {label}")
    finite = np.concatenate(list(table.values()))
    finite = finite[np.isfinite(finite)]
    lost = "diverged" if worst is None else "diverged, or no better than untrained"
    if worst is None:
        if not finite.size:
            raise ValueError("worst must be given where no loss is finite, got None")
        worst = float(finite.max())
    figure = new_figure(6.4, 4.4)
    axis = figure.subplots()
    for number, (label, row) in enumerate(table.items()):
        sensitivity = float(lr_sensitivity(row, np.array(worst)))
        capped = np.where(np.isfinite(row), np.minimum(row, worst), worst)
        colour = COLOURS[number % len(COLOURS)]
        text = f"{label} (sensitivity {sensitivity:.3g})"
        kept = row <= worst
        axis.plot(rates, capped, "o-", color=colour, markersize=5, markevery=list(np.flatnonzero(kept)), label=text)
        axis.plot(np.asarray(rates)[~kept], capped[~kept], "x", color=colour, markersize=8, markeredgewidth=2)
    axis.axhline(worst, color="gray", linestyle=":", linewidth=1, label=lost)
    if hyperparameter == "learning_rate" or (min(rates) > 0 and max(rates) >= 10 * min(rates)):
        axis.set(xscale="log")
    finish(axis, xlabel=hyperparameter.replace("_", " "), ylabel="final loss (nats a token)")
    axis.legend(fontsize=8)
    return save(figure, path)


def _plot_training(axis: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    """Every step faintly, and the median of a hundredth of the run around it."""
    half = len(values) // 200
    axis.plot(steps, values, color=COLOURS[0], linewidth=0.6, alpha=0.45 if half > 1 else 1)
    label = "training batch"
    if half > 1:
        centres = np.arange(half, len(values) - half, max(1, half // 2))
        parts = np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1)[centres - half]
        known = np.isfinite(parts).any(1)
        medians = np.nanmedian(np.where(np.isfinite(parts), parts, np.nan)[known], axis=1)
        axis.plot(steps[centres[known]], medians, color=COLOURS[0], linewidth=1.6, label=f"{label}, running median")
    else:
        axis.lines[-1].set_label(label)


def _mark_spikes(axis: "Axes", steps: Sequence[int]) -> None:
    for number, step in enumerate(steps):
        axis.axvline(step, color=COLOURS[3], linewidth=0.8, alpha=0.7, zorder=0, label=None if number else "spike")


def _mark_end(axis: "Axes", steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    """A cross on the last finite value before the first that is not."""
    lost = np.flatnonzero(~np.isfinite(values))
    if lost.size and lost[0] > 0:
        axis.plot(steps[lost[0] - 1], values[lost[0] - 1], "X", color=colour, markersize=9)
