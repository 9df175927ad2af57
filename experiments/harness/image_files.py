"""Images from files: arrays, folders of pictures, and data sets of the Hugging Face hub."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.harness.hub_datasets import open_dataset
from jaxreg.typing import Shaped

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
NAMES = ("images", "x_train", "arr_0")
"""What images are called in an ``.npz`` file that holds more than one array."""


def read_array(path: Path) -> Shaped[np.ndarray, "n *shape"]:
    """Images, latents or points from an array.

    Args:
        path: of an ``.npy`` file, or of an ``.npz`` file with one array, or with one called images, x_train or arr_0.
            It is ``[n, height, width]`` or ``[n, height, width, channels]``, colours as bytes or numbers that are
            trained on as they are, such as latents; or ``[n, dimensions]``.

    Returns:
        Bytes or float32, images with an axis of channels.

    Raises:
        ValueError: there is no such array.
    """
    try:
        content = np.load(path, allow_pickle=False)
        array = content if isinstance(content, np.ndarray) else _chosen(path, content)
    except FileNotFoundError as error:
        raise ValueError(f"file:{path}: there is no such file") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"file:{path} cannot be read as an .npy or .npz file: {error}") from error
    if array.ndim not in (2, 3, 4) or not array.size or array.dtype.kind not in "uif":
        raise ValueError(f"file:{path} must hold numbers of 2 to 4 dimensions, got {array.dtype} {array.shape}")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        if not np.all(np.isfinite(array)):
            raise ValueError(f"file:{path} must hold finite numbers, got NaN or infinity")
    return array[..., None] if array.ndim == 3 else array


def read_folder(folder: Path, size: int | None = None) -> Shaped[np.ndarray, "n height width channels"]:
    """The pictures in a folder and those below it, in the order of their names.

    Args:
        folder: with png, jpg, webp, bmp or gif files.
        size: see :func:`stack_pictures`.

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    from PIL import Image, UnidentifiedImageError  # slow to import

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise ValueError(f"file:{folder} holds no picture, none of its files ends in {', '.join(PICTURES)}")

    def pictures():
        for path in paths:
            try:
                with Image.open(path) as picture:
                    yield str(path), picture.copy()
            except (OSError, UnidentifiedImageError) as error:
                raise ValueError(f"{path} cannot be read as a picture: {error}") from error

    return stack_pictures(pictures(), size)


def read_dataset(spec: str, size: int | None = None) -> Shaped[np.ndarray, "n height width channels"]:
    """The images of a data set, see :func:`~experiments.harness.hub_datasets.open_dataset`.

    Args:
        spec: ``"hf:NAME"`` or ``"hf:FORMAT:PATH"``.
        size: see :func:`stack_pictures`.

    Raises:
        ValueError: it has no column of images, or more than one.
    """
    dataset = open_dataset(spec, streaming=False)
    columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    if len(columns) != 1:
        raise ValueError(f"{spec} must have one column of images, got {columns} of {', '.join(dataset.features)}")
    (column,) = columns
    pictures = dataset.select_columns(columns)
    return stack_pictures(((f"{spec}, example {n}", row[column]) for n, row in enumerate(pictures)), size)


def stack_pictures(
    pictures: Iterable[tuple[str, "Image"]], size: int | None = None
) -> Shaped[np.ndarray, "n height width channels"]:
    """Pictures as one array of bytes, with one channel if all of them are grey, else with three.

    Args:
        pictures: with their names.
        size: side to which they are scaled, after they are cropped to the square in their middle; if None, they all
            have to be alike.

    Raises:
        ValueError: they are not alike.
    """
    arrays: list[np.ndarray] = []
    for name, picture in pictures:
        picture = picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB")
        if size is not None:
            picture = _squared(picture, size)
        array = np.asarray(picture)
        array = array[..., None] if array.ndim == 2 else array
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise ValueError(
                f"size must be given where pictures are not alike: {name} is {array.shape[0]} x {array.shape[1]}, "
                f"those before {arrays[0].shape[0]} x {arrays[0].shape[1]}"
            )
        arrays.append(array)
    channels = max(array.shape[-1] for array in arrays)
    return np.stack([np.broadcast_to(array, (*array.shape[:2], channels)) for array in arrays])


def _squared(picture: "Image", size: int) -> "Image":
    from PIL.Image import Resampling

    side = min(picture.size)
    left, upper = ((length - side) // 2 for length in picture.size)
    # Cropped first: scaling looks beyond the box it is given.
    return picture.crop((left, upper, left + side, upper + side)).resize((size, size), Resampling.LANCZOS)


def _chosen(path, content):
    names = content.files
    known = names if len(names) == 1 else [name for name in NAMES if name in names]
    if not known:
        raise ValueError(f"it must hold one array, or one called {' or '.join(NAMES)}, got {', '.join(names)}")
    return content[known[0]]
