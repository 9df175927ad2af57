"""Taking pruned units out of a network, which then is smaller and computes the same."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.optim.hesso import Group, by_path, check_groups, keys_of
from jaxreg.typing import Array, Bool, PyTree, checked


@checked
def alive_units(params: PyTree, groups: list[Group] | tuple[Group, ...]) -> Bool[Array, " units"]:
    """Which units have an entry that is not zero.

    Args:
        params: the network's parameters.
        groups: the layers' units, see :class:`jaxreg.optim.Group`.

    Returns:
        False for pruned units, group after group.

    Raises:
        ValueError: a group names a leaf that does not exist or has another size.
    """
    leaves = by_path(params)
    check_groups(groups, leaves)
    alive = []
    for group in groups:
        moving = [jnp.moveaxis(leaves[path], axis, 0).reshape(group.size, -1) for path, axis in group.members]
        alive.append(jnp.any(jnp.concatenate(moving, axis=1) != 0, axis=1))
    return jnp.concatenate(alive) if alive else jnp.zeros([0], bool)


@checked
def extract_subnetwork(params: PyTree, groups: list[Group] | tuple[Group, ...], keep: Bool[Array, " units"]) -> PyTree:
    """The network without some of its units.

    If what is left out is zero (and so does not reach other layers), the smaller network computes the same.

    >>> import jax.numpy as jnp
    >>> from jaxreg.compression import alive_units, extract_subnetwork
    >>> from jaxreg.optim import Group
    >>> params = {"w": jnp.array([[1.0, 0.0, 2.0]]), "out": jnp.array([[3.0], [0.0], [4.0]])}
    >>> hidden = [Group(((("w",), 1), (("out",), 0)), size=3)]
    >>> extract_subnetwork(params, hidden, alive_units(params, hidden))["out"].tolist()
    [[3.0], [4.0]]

    Args:
        params: the network's parameters.
        groups: the layers' units, see :class:`jaxreg.optim.Group`.
        keep: which units stay, group after group. Its values decide shapes, so it cannot be traced.

    Returns:
        The parameters of the smaller network, a tree of the same structure.

    Raises:
        ValueError: ``keep`` has another number of entries than there are units, or a group names a leaf that does not
            exist or has another size.
    """
    check_groups(groups, by_path(params))
    keep, units = np.asarray(keep), sum(group.size for group in groups)
    if len(keep) != units:
        raise ValueError(f"keep must have an entry for each of the {units} units, got {len(keep)}")
    start = 0
    for group in groups:
        kept = np.flatnonzero(keep[start : start + group.size])
        start += group.size
        for path, axis in group.members:
            params = _with_leaf(params, path, jnp.take(by_path(params)[path], kept, axis=axis))
    return params


def _with_leaf(tree, path, leaf):
    return jax.tree.map_with_path(lambda where, old: leaf if keys_of(where) == path else old, tree)
