"""Pictures of what a generative model makes: images side by side, points beside the data."""

import io
import math
from pathlib import Path

import numpy as np

from experiments.harness.figures import COLOURS, finish, new_figure, save
from experiments.harness.results import write_atomically
from jaxreg.typing import Float

LEAST_PIXELS = 32
"""Images with fewer pixels a side are magnified, pixel by pixel."""


def plot_samples(
    samples: Float[np.ndarray, "n *shape"],
    path: Path,
    *,
    data: Float[np.ndarray, "m dimensions"] | None = None,
    columns: int | None = None,
) -> Path:
    """Writes samples as a PNG: a grid of images, or a scatter of the first two dimensions of points.

    Args:
        samples: images in [-1, 1], of which the first one or three channels are shown; or points.
        path: of the PNG.
        data: points to show behind.
        columns: of a grid.

    Returns:
        The path.
    """
    samples = np.asarray(samples)
    return plot_points(samples, path, data=data) if samples.ndim == 2 else write_grid(samples, path, columns=columns)


def image_grid(
    images: Float[np.ndarray, "n height width channels"], *, columns: int | None = None
) -> Float[np.ndarray, "rows columns 3"]:
    """Images side by side in one, a pixel of margin between them.

    Args:
        images: in [-1, 1]; what is beyond is shown as the ends are, what is not finite as black.
        columns: how many are in a row, as many as there are rows by default; the last row is filled up with white.

    Returns:
        Colours in [0, 1].
    """
    images = np.asarray(images, np.float64)
    count, height, width, channels = images.shape
    colours = np.nan_to_num(np.clip(0.5 + 0.5 * images, 0, 1), nan=0.0)
    colours = colours[..., :3] if channels >= 3 else np.repeat(colours[..., :1], 3, axis=-1)
    columns = math.ceil(math.sqrt(count)) if columns is None else min(columns, count)
    rows = math.ceil(count / columns)
    magnified = max(1, math.ceil(LEAST_PIXELS / max(height, width)))
    colours = colours.repeat(magnified, axis=1).repeat(magnified, axis=2)
    tiles = np.ones((rows * columns, *(length + 1 for length in colours.shape[1:3]), 3))
    tiles[:count, 1:, 1:] = colours
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    grid = tiles.reshape(rows * tiles.shape[1], -1, 3)
    return np.pad(grid, [(0, 1), (0, 1), (0, 0)], constant_values=1.0)


def write_grid(images: Float[np.ndarray, "n height width channels"], path: Path, *, columns: int | None = None) -> Path:
    """Writes :func:`image_grid` as a PNG, whole or not at all."""
    from matplotlib.image import imsave  # slow to import

    buffer = io.BytesIO()
    pixels = np.round(255 * image_grid(images, columns=columns)).astype(np.uint8)
    imsave(buffer, pixels, format="png", metadata={"Software": None})
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


def plot_points(
    points: Float[np.ndarray, "n dimensions"],
    path: Path,
    *,
    data: Float[np.ndarray, "m dimensions"] | None = None,
) -> Path:
    """Writes a scatter of the first two dimensions of points.

    Args:
        points: that a model makes; those that are not finite are left out.
        path: of the PNG.
        data: points to show behind.

    Returns:
        The path.
    """
    points = np.asarray(points)
    figure = new_figure(4.6, 4.4)
    axis = figure.subplots()
    if data is not None:
        data = np.asarray(data)
        axis.plot(data[:, 0], data[:, 1], ".", color="#B0B0B0", markersize=3, label="data")
    finite = points[np.isfinite(points).all(1)]
    axis.plot(finite[:, 0], finite[:, 1], ".", color=COLOURS[0], markersize=2, label="samples")
    axis.set_aspect("equal")
    if data is not None:
        # A sample far out must not make all else a dot.
        centre, reach = data[:, :2].mean(0), 1.5 * np.abs(data[:, :2] - data[:, :2].mean(0)).max()
        axis.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach))
    finish(axis)
    axis.legend(fontsize=8, loc="upper right")
    return save(figure, path)
