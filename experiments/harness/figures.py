"""How every plot looks and is written: colours that colour-blind readers can tell apart, files that are whole."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.harness.results import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Of Okabe and Ito, those that are dark enough for a line."""

LABELS = {
    "loss": "loss (nats a token)",
    "gradient_norm": "gradient norm",
    "update_norm": "update norm",
    "max_attention_logit": "largest attention logit",
}
"""What figures of a journal are called on an axis."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure that belongs to nobody else, in inches."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout="constrained")


def finish(axis: "Axes", title: str | None = None, **settings: object) -> None:
    """Gives a panel its grid, title and small print.

    Args:
        axis: the panel.
        title: what it shows.
        settings: of ``axis.set``, such as ``xlabel``.
    """
    axis.set(**settings)
    if title is not None:
        axis.set_title(title, fontsize=9, loc="left")
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def choose_scale(axis: "Axes", values: np.ndarray, *, norm: bool) -> None:
    """Makes a panel logarithmic for norms, and for anything that varies by more than a factor of 20.

    Args:
        axis: the panel, after everything is plotted.
        values: that are plotted.
        norm: whether they are norms.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and (norm or (positive.size == values.size and positive.max() > 20 * positive.min())):
        log_scale(axis)


def log_scale(axis: "Axes") -> None:
    """Makes a panel's vertical axis logarithmic, with plain numbers; after everything is plotted."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def save(figure: "Figure", path: Path) -> Path:
    """Writes a figure as a PNG that depends on what it shows only, whole or not at all.

    Args:
        figure: what to write.
        path: where to.

    Returns:
        The path.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path
