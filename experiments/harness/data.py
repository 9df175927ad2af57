"""Data that needs no download: real digits, Python's own documentation, and exactly defined label noise."""

import functools
import pydoc_data.topics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import sklearn.datasets

from jaxreg.typing import Array, Float, Int, PRNGKeyArray, ScalarLike, checked


class Split(NamedTuple):
    """Examples to learn from and examples to be judged by."""

    train_x: Float[Array, "train features"]
    train_y: Int[Array, " train"]
    test_x: Float[Array, "test features"]
    test_y: Int[Array, " test"]


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


@checked
def digits(key: PRNGKeyArray, *, train: int = 1200) -> Split:
    """Scikit-learn's 1797 handwritten digits, 8 x 8 pixels in [0, 1], split at random.

    Args:
        key: decides which examples are for training.
        train: number of training examples; the remaining ones are for testing.

    Returns:
        The split, images flattened to 64 features.
    """
    images, labels = _digits()
    order = jax.random.permutation(key, len(labels))
    x, y = jnp.asarray(images)[order], jnp.asarray(labels)[order]
    return Split(x[:train], y[:train], x[train:], y[train:])


def long_tailed_counts(*, largest: int = 140, ratio: float = 50.0, classes: int = 10) -> np.ndarray:
    """Examples of each class, falling geometrically from ``largest`` to ``largest / ratio``."""
    return np.round(largest * ratio ** (-np.arange(classes) / (classes - 1))).astype(np.int32)


@checked
def long_tailed_digits(key: PRNGKeyArray, *, largest: int = 140, ratio: float = 50.0) -> Split:
    """Digits of which some are rare in training and none in the test.

    Args:
        key: decides which examples are for training.
        largest: training examples of digit 0, the most frequent, fewer than 174.
        ratio: how many times rarer digit 9 is; see :func:`long_tailed_counts`.

    Returns:
        The split, digit after digit in order. The test has ``174 - largest`` of each.
    """
    images, labels = _digits()
    fewest = np.bincount(labels).min()
    of_class = np.stack([np.flatnonzero(labels == digit)[:fewest] for digit in range(10)])
    shuffled = jax.random.permutation(key, of_class, axis=1, independent=True)
    counts = long_tailed_counts(largest=largest, ratio=ratio)
    train = jnp.concatenate([row[:count] for row, count in zip(shuffled, counts, strict=True)])
    test = shuffled[:, largest:].reshape(-1)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    return Split(x[train], y[train], x[test], y[test])


class Tasks(NamedTuple):
    """Several data sets as one, of one shape."""

    train_x: Float[Array, "tasks train features"]
    train_y: Int[Array, "tasks train"]
    test_x: Float[Array, "tasks test features"]
    test_y: Int[Array, "tasks test"]


BINARY_TASKS = ("breast cancer", (3, 8), (4, 9), (1, 7))


@checked
def binary_tasks(key: PRNGKeyArray, *, train: int = 100, test: int = 250) -> Tasks:
    """Four tasks of two classes: scikit-learn's breast cancer data, and pairs of digits that look alike.

    Args:
        key: decides which examples are for training.
        train: training examples of each.
        test: test examples of each; both together at most 357.

    Returns:
        The tasks. Features of the breast cancer data have mean 0 and variance 1; zeros fill them up to 64.
    """
    images, digit = _digits()
    cancer, diagnosis = sklearn.datasets.load_breast_cancer(return_X_y=True)
    cancer = (cancer - cancer.mean(0)) / cancer.std(0)
    sets = [(np.pad(cancer, [(0, 0), (0, 64 - cancer.shape[1])]).astype(np.float32), diagnosis)]
    for zero, one in BINARY_TASKS[1:]:
        chosen = np.isin(digit, (zero, one))
        sets.append((images[chosen], digit[chosen] == one))

    def split(key, x, y):
        order = jax.random.permutation(key, len(y))[: train + test]
        x, y = jnp.asarray(x)[order], jnp.asarray(y, jnp.int32)[order]
        return Tasks(x[:train], y[:train], x[train:], y[train:])

    splits = [split(key, x, y) for key, (x, y) in zip(jax.random.split(key, len(sets)), sets, strict=True)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *splits)


@functools.cache
def rotation(degrees: float, *, side: int = 8) -> np.ndarray:
    """The matrix to multiply flattened square images with, ``images @ matrix``, to turn them counterclockwise.

    Pixels are interpolated linearly; what turns in from outside is zero.
    """
    pixels = np.eye(side * side, dtype=np.float32).reshape(-1, side, side)
    return scipy.ndimage.rotate(pixels, degrees, axes=(2, 1), reshape=False, order=1).reshape(len(pixels), -1)


@checked
def flip_labels(
    key: PRNGKeyArray, labels: Int[Array, " examples"], *, rate: ScalarLike, num_classes: int
) -> Int[Array, " examples"]:
    """Symmetric label noise: each label becomes, with probability ``rate``, one of the *other* classes, all alike."""
    key_which, key_shift = jax.random.split(key)
    shift = jax.random.randint(key_shift, labels.shape, 1, num_classes, labels.dtype)
    flipped = jax.random.bernoulli(key_which, rate, labels.shape)
    return jnp.where(flipped, (labels + shift) % num_classes, labels)


class Text(NamedTuple):
    """A text as class indices.

    Attributes:
        train: the first part of the text.
        validation: the rest.
        alphabet: the byte of each class but the last, which stands for all other bytes.
    """

    train: Int[Array, " train"]
    validation: Int[Array, " validation"]
    alphabet: bytes


@functools.cache
def documentation(*, classes: int = 64, train_share: float = 0.9) -> Text:
    """Python's language reference as it ships with the interpreter (``help()`` topics in key order), byte by byte.

    Args:
        classes: the commonest ``classes - 1`` bytes keep a class of their own, ties in byte order; the rest share one.
        train_share: part of the text, from its start, that is for training.

    Returns:
        About 460 thousand bytes with Python 3.11; other versions differ a little.
    """
    topics = pydoc_data.topics.topics
    text = np.frombuffer("".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
    counts = np.bincount(text, minlength=256)
    commonest = np.argsort(-counts, kind="stable")[: classes - 1]
    class_of_byte = np.full(256, classes - 1, np.uint8)
    class_of_byte[commonest] = np.arange(classes - 1)
    symbols = class_of_byte[text]
    end = int(train_share * len(symbols))
    return Text(symbols[:end], symbols[end:], bytes(commonest.astype(np.uint8)))
