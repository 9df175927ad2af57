"""One page on a loss spike: which part of the network moved first.

Norms are shown relative to their usual size, layer by layer, over the steps that led to the spike.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.harness.figures import COLOURS, LABELS, choose_scale, finish, new_figure, save
from experiments.harness.spikes import Spike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST_RATIO = 1e-3
"""Smaller parts of a median look the same."""
LEAD = 40
"""Steps up to a spike that its page shows; medians are those of the whole window."""
HEAT_MAPS = {
    "gradient_norms": "gradient norm",
    "update_norms": "update norm",
    "first_moment_norms": "first moment norm",
    "second_moment_norms": "second moment norm",
}
"""Norms by group of parameters, and their labels."""


def plot_spike(spike: Spike, path: Path) -> Path:
    """One page on a spike: loss and update norm, and per layer how norms, moments and attention logits moved before.

    Norms are relative to the median of their own row, so that the layer that moved first stands out whatever its size.

    Args:
        spike: with its window.
        path: of the PNG.

    Returns:
        The path.
    """
    from matplotlib.colors import LogNorm

    window = spike.window
    maps = [name for name in HEAT_MAPS if name in window]
    tables = {name: _rows(window[name], len(window["step"])) for name in maps}
    steps = window["step"][-LEAD:]
    tall = float(np.clip(0.06 * max((len(rows) for _, rows in tables.values()), default=0), 2.2, 5)) + 0.4
    heights = [2.7, tall * math.ceil(len(maps) / 2) + 0.3]
    figure = new_figure(11, sum(heights))
    above, below = figure.subfigures(2, height_ratios=heights)

    signals = ["loss", "update_norm", *(["max_attention_logits"] if "max_attention_logits" in window else [])]
    for axis, name in zip(above.subplots(1, len(signals), squeeze=False)[0], signals, strict=True):
        if name == "max_attention_logits":
            logits = np.array(window[name], np.float64)[-LEAD:].T
            image = _heat_map(axis, steps, [("layer", len(logits))], logits, cmap="viridis")
            above.colorbar(image, ax=axis, pad=0.01).ax.tick_params(labelsize=8)
            finish(axis, f"{LABELS['max_attention_logit']}, by layer", xlim=(steps[0] - 0.5, steps[-1] + 0.5))
            axis.grid(False)
        else:
            _plot_signal(axis, spike, name)
    above.suptitle(_heading(spike), fontsize=10)

    grid = below.subplots(math.ceil(len(maps) / 2), 2, sharex=True, squeeze=False)
    largest = _largest_ratio([rows for _, rows in tables.values()])
    for axis, name in zip(grid.flat, maps, strict=False):
        groups, rows = tables[name]
        scale = LogNorm(1 / largest, largest)
        image = _heat_map(axis, steps, groups, rows[:, -LEAD:], norm=scale, cmap="PuOr_r")
        finish(axis, f"{HEAT_MAPS[name]}, relative to its median", xlabel="training step")
        axis.label_outer(remove_inner_ticks=True)
        axis.grid(False)
    for unused in grid.flat[len(maps) :]:
        unused.remove()
    _ratio_bar(below, image, list(grid.flat[: len(maps)]), largest)
    return save(figure, path)


def _plot_signal(axis: "Axes", spike: Spike, name: str) -> None:
    steps, values = np.array(spike.window["step"])[-LEAD:], np.array(spike.window[name], np.float64)[-LEAD:]
    axis.plot(steps, values, ".-", color=COLOURS[0], linewidth=1, markersize=3)
    if name == spike.signal and spike.upper is not None:
        axis.axhline(spike.upper, color="gray", linestyle="--", linewidth=1, label="end of the usual range")
        axis.legend(fontsize=8, loc="upper left")
    axis.plot(steps[-1:], values[-1:], "o", color=COLOURS[1], markersize=6)
    choose_scale(axis, values, norm=name.endswith("norm"))
    finish(axis, LABELS[name])


def _rows(norms: Mapping[str, list], steps: int) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Groups in the order of the network with their number of layers, and their norms over those of their medians."""
    groups, rows = [], []
    for name in sorted(norms, key=lambda name: _place(name, norms[name])):
        layers = np.array(norms[name], np.float64).reshape(steps, -1).T
        groups.append((name, len(layers)))
        rows.append(layers)
    rows = np.concatenate(rows)
    usable = np.isfinite(rows) & (rows > 0)
    medians = np.array([np.median(row[known]) if known.any() else 1.0 for row, known in zip(rows, usable, strict=True)])
    # What is zero now and then, as moments after a reset, shows as very small, and not as what cannot be shown.
    return groups, np.clip(rows / medians[:, None], SMALLEST_RATIO, None)


def _place(name, values):
    """Embeddings, then layers by their numbers, then the rest."""
    layered = np.ndim(values) > 1 or re.search(r"\d", name) is not None
    numbers = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return 0 if "embed" in name else 1 if layered else 2, numbers


def _heat_map(axis: "Axes", steps: Sequence[int], groups: Sequence[tuple[str, int]], rows: np.ndarray, **style: Any):
    """Rows over steps, the first row at the top; not a number is black."""
    # A group of one row would be too thin to see beside a stack of layers.
    heights = np.concatenate([np.full(size, max(1, len(rows) / 15) if size == 1 else 1) for _, size in groups])
    borders = np.append(0, np.cumsum(heights))
    axis.set_facecolor("black")
    edges = np.append(np.array(steps) - 0.5, steps[-1] + 0.5)
    image = axis.pcolormesh(edges, borders, np.ma.masked_invalid(rows), **style)
    axis.invert_yaxis()
    ends = np.cumsum([size for _, size in groups])
    if len(groups) == 1:
        every = math.ceil(len(rows) / 12)
        axis.set_yticks(borders[:-1:every] + 0.5, np.arange(len(rows))[::every])
        return image
    for end in ends[:-1]:
        axis.axhline(borders[end], color="gray", linewidth=min(0.8, 10 / len(groups)))
    middles = (borders[np.append(0, ends[:-1])] + borders[ends]) / 2
    every = math.ceil(len(groups) / 20)
    axis.set_yticks(middles[::every], [name for name, _ in groups][::every])
    return image


def _largest_ratio(tables: Sequence[np.ndarray]) -> float:
    """The end of the colour scale: what the largest deviation takes, between 3 and 1000 times."""
    ratios = np.concatenate([np.abs(np.log(table[np.isfinite(table)])) for table in tables] or [np.zeros(1)])
    return float(np.clip(np.exp(ratios.max(initial=0.0)), 3, 1 / SMALLEST_RATIO))


def _ratio_bar(figure, image, axes, largest):
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= largest]
    ticks = ticks if len(ticks) <= 4 else [tick for tick in ticks if math.log10(tick).is_integer()]
    bar.set_ticks(
        [1 / tick for tick in ticks[:0:-1]] + ticks,
        labels=[f"1/{tick}" for tick in ticks[:0:-1]] + [f"{tick}" for tick in ticks],
    )
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _heading(spike: Spike) -> str:
    value = "not finite" if spike.value is None else f"{spike.value:.4g}"
    usual = "" if spike.upper is None else f" (usually {spike.median:.4g}, at most {spike.upper:.4g})"
    return f"Spike at step {spike.step}: {spike.signal.replace('_', ' ')} {value}{usual}"
