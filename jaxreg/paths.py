"""Finding the parts of a tree by name."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey

from jaxreg.typing import checked


@checked
def path_name(path: tuple[Any, ...]) -> str:
    """The name of a place in a tree: its keys with slashes between them.

    >>> import jax
    >>> [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"Dense_0": {"kernel": 1.0}})]
    ['Dense_0/kernel']

    Args:
        path: as :func:`jax.tree_util.tree_map_with_path` gives it.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


@checked
def within_field(path: tuple[Any, ...], names: Sequence[str]) -> bool:
    """Whether a leaf of a state lies within a field of one of these names.

    >>> import jax, optax
    >>> state = optax.adam(0.1).init({"nu": 1.0})
    >>> [within_field(path, ["nu"]) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    [False, False, True]

    Args:
        path: of the leaf, as :func:`jax.tree_util.tree_map_with_path` gives it.
        names: of fields of the named tuples that states are made of, such as ``mu``; parameters may have any names.
    """
    return any(isinstance(key, GetAttrKey) and key.name in names for key in path)


@checked
def is_named(path: tuple[Any, ...], names: Sequence[str]) -> bool:
    """Whether the last key of a leaf's path is one of these names, as a parameter's is in a tree of dictionaries.

    Args:
        path: of the leaf, as :func:`jax.tree_util.tree_map_with_path` gives it.
        names: such as ``kernel``.
    """
    return bool(path) and jax.tree_util.keystr(path[-1:], simple=True) in names


@checked
def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by in which numbers count by their value: the second layer comes before the tenth.

    >>> sorted(["block_10", "block_2"], key=natural_order)
    ['block_2', 'block_10']

    Args:
        name: such as that of a layer.
    """
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
