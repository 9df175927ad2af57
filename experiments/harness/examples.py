"""Images or points to train generative models on: endless batches that resume at exactly the next one.

    source = open_examples("digits", batch=128)
    batches = source.train()
    rows, positions = next(batches)             # float32 [128, 8, 8, 1], int64 [128]
    source.train(batches.state())               # continues with exactly the batch that would have come next

Everything is in memory. An epoch has every example once, in an order of its own; batch ``b`` is a function of the seed
and ``b`` alone, on any number of processes.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.batches import Examples, TrainIterator, check_batches, check_same
from experiments.harness.data import digits
from experiments.harness.frechet import SPLIT_SEED
from experiments.harness.image_files import read_array, read_dataset, read_folder
from jaxreg.typing import Array, Float, Shaped
from jaxreg.validation import check_range

POINTS = 2**16
"""Points of a density that are drawn once and for all, to be trained on."""
HELD_OUT_POINTS = 2**12


class ExampleSource(NamedTuple):
    """Examples to train on, and others to be judged by.

    Attributes:
        shape: of an example: height, width and channels, or the dimensions of a point.
        train: ``(state=None) -> TrainIterator``: endless batches, from the beginning or from such an iterator's state,
            which is the same on every process and valid for any number of them.
        held_out: examples that are not trained on.
    """

    shape: tuple[int, ...]
    train: Callable[..., TrainIterator]
    held_out: Shaped[np.ndarray, "held_out *shape"]


def open_examples(
    spec: str = "digits",
    *,
    batch: int,
    seed: int = 0,
    size: int | None = None,
    flip: bool = False,
    held_out_share: float = 0.1,
    process_index: int = 0,
    process_count: int = 1,
) -> ExampleSource:
    """Opens what to train on.

    Args:
        spec: ``"digits"``: scikit-learn's 8 x 8 digits in [-1, 1], judged by those that the classifier of
            :mod:`~experiments.harness.frechet` has not seen; ``"ring"``, ``"moons"``: points of a density on the plane;
            ``"file:PATH"``: a folder of images, or an array in an ``.npy`` or ``.npz`` file; ``"hf:NAME"``,
            ``"hf:NAME:CONFIG"``, ``"hf:parquet:PATH"``, ``"hf:imagefolder:PATH"``: the images in the split ``train``
            of a data set on the Hugging Face hub, or of local files.
        batch: examples of a training step, over all processes.
        seed: decides their order, and which are mirrored.
        size: side to which images of a folder or a data set are scaled, after they are cropped to a square; if None,
            they all have to be alike.
        flip: whether images are mirrored at random, left to right.
        held_out_share: part of the examples of a file or a data set that is not trained on, in (0, 1).
        process_index: which rows of every batch this process gets, in ``[0, process_count)``.
        process_count: divides ``batch``.

    Returns:
        The examples.

    Raises:
        ValueError: an argument is out of range, or what there is cannot be read or used.
    """
    check_batches(batch, seed, process_index=process_index, process_count=process_count)
    check_range("size", size, "[1, inf)")
    check_range("held_out_share", held_out_share, "(0, 1)")
    kind, _, where = spec.partition(":")
    if size is not None and (spec == "digits" or spec in DENSITIES):
        raise ValueError(f"size is for folders and data sets, got {size} for {spec}")
    if spec == "digits":
        train, held_out = _digits()
    elif spec in DENSITIES:
        train, held_out = _points(spec)
    elif kind in ("file", "hf") and where:
        train, held_out = _split(_read(spec, kind, where, size), held_out_share)
    else:
        names = ", ".join(f'"{name}"' for name in ("digits", *DENSITIES))
        raise ValueError(f'data must be {names}, "file:PATH" or "hf:NAME", got {spec!r}')
    if flip and train.ndim != 4:
        raise ValueError(f"flip is for images, got examples of shape {train.shape[1:]} from {spec}")
    identity = {
        "examples": len(train),
        "shape": list(train.shape[1:]),
        "crc32": zlib.crc32(np.ascontiguousarray(train)),
        "batch": batch,
        "seed": seed,
        "flip": flip,
    }
    mine = slice(process_index * batch // process_count, (process_index + 1) * batch // process_count)

    def batches(first: int) -> Iterator[tuple[Examples, dict]]:
        for number in itertools.count(first):
            chosen = _members(number, batch, len(train), seed)[mine]
            rows = train[chosen]
            if flip:
                mirrored = np.random.default_rng([seed, 1, number]).random(batch)[mine] < 0.5
                rows = np.where(mirrored[:, None, None, None], rows[:, :, ::-1], rows)
            yield Examples(rows, chosen), {"batch": number + 1, "corpus": identity}

    def iterate(state: dict[str, Any] | None = None) -> TrainIterator:
        if state is None:
            state = {"batch": 0, "corpus": identity}
        check_same(state, identity)
        return TrainIterator(batches(state["batch"]), state)

    return ExampleSource(train.shape[1:], iterate, held_out)


def as_floats(examples: Shaped[Array, "n *shape"]) -> Float[Array, "n *shape"]:
    """What a model sees of examples: bytes are colours, from -1 to 1; all else is as it is."""
    floats = jnp.asarray(examples).astype(jnp.float32)
    return floats / 127.5 - 1 if examples.dtype == np.uint8 else floats


def _members(number: int, batch: int, count: int, seed: int) -> np.ndarray:
    """Which examples a batch has: the batches cut an endless row of epochs, each of them shuffled."""
    epochs, places = np.divmod(np.arange(number * batch, (number + 1) * batch), count)
    return np.concatenate([_order(seed, epoch, count)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


@functools.cache
def _digits():
    split = digits(jax.random.key(SPLIT_SEED))
    return tuple(np.asarray(images).reshape(-1, 8, 8, 1) * 2 - 1 for images in (split.train_x, split.test_x))


# The densities of jaxreg.data, drawn by NumPy: the bits of what XLA computes depend on the device and on how it is told
# to compile, and a run that goes on has to find the points that it began with.
def _ring(random, count):
    angle = random.integers(8, size=count) * (np.pi / 4)
    return 0.7 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + random.normal(0.0, 0.05, [count, 2])


def _moons(random, count):
    angle, side = random.uniform(0.0, np.pi, count), random.choice([-1.0, 1.0], [count, 1])
    moon = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=-1)
    return 0.7 * side * moon + random.normal(0.0, 0.05, [count, 2])


DENSITIES = {"ring": _ring, "moons": _moons}


@functools.cache
def _points(name):
    points = DENSITIES[name](np.random.default_rng(SPLIT_SEED), POINTS + HELD_OUT_POINTS).astype(np.float32)
    return points[HELD_OUT_POINTS:], points[:HELD_OUT_POINTS]


def _read(spec, kind, where, size):
    if kind == "hf":
        return read_dataset(spec, size)
    if Path(where).is_dir():
        return read_folder(Path(where), size)
    examples = read_array(Path(where))
    if size is not None and examples.shape[1:3] != (size, size):
        raise ValueError(f"size is for folders and data sets; the images in {where} are {examples.shape[1:]}")
    return examples


def _split(examples, share):
    """The same examples are held out whatever the seed."""
    held = round(share * len(examples))
    if not 2 <= held < len(examples):
        raise ValueError(
            f"held_out_share must leave examples to train on and 2 to judge by, got {share} of {len(examples)}"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(examples))
    return examples[np.sort(order[held:])], examples[np.sort(order[:held])]
