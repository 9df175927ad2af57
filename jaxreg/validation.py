"""What hyperparameters and arguments must satisfy."""

import numbers
from collections.abc import Sequence

import jax
import numpy as np

from jaxreg.typing import PyTree


def check_range(name: str, value: object, interval: str) -> None:
    """Raises unless ``value`` lies in an interval written as in mathematics.

    Only Python (and NumPy) numbers are looked at: a JAX array may be traced, and reading it would block the device.

    >>> check_range("b1", 1.5, "[0, 1)")
    Traceback (most recent call last):
    ValueError: b1 must be in [0, 1), got 1.5

    Args:
        name: the argument's name, for the message.
        value: what was passed.
        interval: such as ``"[0, 1)"`` or ``"(0, inf)"``.

    Raises:
        ValueError: ``value`` is a number outside the interval (NaN is outside of every interval).
    """
    if not isinstance(value, numbers.Real):
        return
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} must be in {interval}, got {value}")


def check_ascending(name: str, ends: Sequence[object]) -> None:
    """Raises unless one end is below the other. Like :func:`check_range` it looks at Python and NumPy numbers only.

    >>> check_ascending("bounds", (1.0, 0.0))
    Traceback (most recent call last):
    ValueError: bounds must be in ascending order, got (1.0, 0.0)

    Args:
        name: the argument's name, for the message.
        ends: two of them.

    Raises:
        ValueError: both are numbers, and the first is not less than the second.
    """
    low, high = ends
    if isinstance(low, numbers.Real) and isinstance(high, numbers.Real) and not low < high:
        raise ValueError(f"{name} must be in ascending order, got {ends}")


def check_same_shapes(name: str, tree: PyTree, expected: PyTree, *, leading: Sequence[str] = ()) -> None:
    """Raises unless two trees have the same structure and their leaves the same shapes: nothing is to be broadcast.

    >>> check_same_shapes("anchor", {"bias": np.zeros([3, 1])}, {"bias": np.zeros([3])})
    Traceback (most recent call last):
    ValueError: anchor['bias'] must have shape [3], got [3, 1]

    Args:
        name: of the argument, for the message.
        tree: what was passed.
        expected: a tree with leaves of the shapes that are wanted.
        leading: names of the axes that the leaves of ``tree`` have in front of these, of any length.

    Raises:
        ValueError: structures or shapes differ.
    """
    structure, wanted = jax.tree.structure(tree), jax.tree.structure(expected)
    if structure != wanted:
        raise ValueError(f"{name} must have the structure {wanted}, got {structure}")
    found = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), other in zip(found, jax.tree.leaves(expected), strict=True):
        shape = np.shape(leaf)
        if len(shape) < len(leading) or shape[len(leading) :] != np.shape(other):
            right = ", ".join([*leading, *map(str, np.shape(other))])
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} must have shape [{right}], got {list(shape)}")


def check_params(params: object) -> None:
    """Raises unless the ``update`` of an optimizer got the parameters.

    >>> check_params(None)
    Traceback (most recent call last):
    ValueError: this transformation needs the current parameters: call update(updates, state, params)

    Args:
        params: what ``update`` was passed.

    Raises:
        ValueError: it is None.
    """
    if params is None:
        raise ValueError("this transformation needs the current parameters: call update(updates, state, params)")
