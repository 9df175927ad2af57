"""What clients exchange, for methods that are written from one client's point of view.

An axis name is that of the `vmap`, `pmap` or `shard_map` that runs the clients; a tuple of names, outermost first, for
several clients on each of several devices; None for a client on its own.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

AxisName: TypeAlias = str | tuple[str, ...] | None


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """The names one by one, outermost first."""
    return () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name


def size(axis_name: AxisName) -> int:
    """The number of clients."""
    return math.prod(jax.lax.axis_size(name) for name in axis_names(axis_name))


def index(axis_name: AxisName) -> jax.Array:
    """Which client this is, counted from 0."""
    names = axis_names(axis_name)
    return jax.lax.axis_index(names) if names else jnp.zeros([], jnp.int32)


# Innermost first, for both: what the clients of a device have in common leaves the device once.


def gather(tree, axis_name: AxisName):
    """Every client's tree, in the order of their indices, along a new first axis; the same on all clients."""

    def gather_leaf(leaf):
        gathered = leaf
        for name in reversed(axis_names(axis_name)):
            gathered = jax.lax.all_gather(gathered, name)
        return gathered.reshape(size(axis_name), *leaf.shape)

    return jax.tree.map(gather_leaf, tree)


def mean(tree, axis_name: AxisName):
    """The mean of the clients' trees; the same on all clients."""
    for name in reversed(axis_names(axis_name)):
        tree = jax.lax.pmean(tree, name)
    return tree
