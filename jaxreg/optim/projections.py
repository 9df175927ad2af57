"""Subspaces of gradients: whole tensors, singular vectors, random directions, columns, rows, entries.

A projection says how a subspace is chosen, what a gradient is within it, and how the two parts of a gradient come
together again.

The cheapest projection takes whole tensors. Array shapes must not depend on which tensors these are, so tensors share
state in *lanes* of about ``1 / density``, of each of which one member is active. Of ``c`` tensors of one shape, as in a
network of equal layers, ``round(density * c)`` lanes are made; shapes of which there are too few for a lane are pooled,
and their lanes hold tensors of unequal shapes. A lane's state stands in the tree where its first tensor stands. It has
that tensor's shape and sharding if all members do; otherwise it is flat, as long as the largest member.
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.optim import subset
from jaxreg.precision import at_least_float32
from jaxreg.sharding import with_any_sharding
from jaxreg.typing import Array, Float, checked
from jaxreg.validation import check_range

ProjectionName = Literal["block", "svd", "random", "columns", "rows", "randk"]
BlockOrder = Literal["random", "ascending", "descending", "mirror"]


@checked
def galore_projector(gradient: Float[Array, "*stack rows columns"], *, rank: int) -> Float[Array, "*stack side {rank}"]:
    r"""GaLore's basis: the leading singular vectors on the shorter side of a gradient.

    .. math:: G = U \Sigma V^\top, \qquad B = V_{:, :r} \text{ if } m \ge n \text{ else } U_{:, :r}

    The low-dimensional gradient is :math:`G B` or :math:`B^\top G`, and what it stands for :math:`G B B^\top` or
    :math:`B B^\top G`.

    On a CPU, jaxlib's LAPACK can hang when several devices of one process call it at once within ``jax.shard_map``.

    Args:
        gradient: ``G``, an ``m x n`` matrix or a stack of them.
        rank: ``r``, in [0, min(m, n)].

    Returns:
        ``B``, with orthonormal columns of length ``side = min(m, n)``, in at least float32.

    Raises:
        ValueError: ``rank`` is outside its range.

    References:
        Zhao et al., *GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection*, arXiv 2403.03507.
    """
    rows, columns = gradient.shape[-2:]
    check_range("rank", rank, f"[0, {min(rows, columns)}]")
    left, _, right = jnp.linalg.svd(at_least_float32(gradient), full_matrices=False)
    return jnp.swapaxes(right, -1, -2)[..., :rank] if rows >= columns else left[..., :rank]


class Projection(NamedTuple):
    """A way to choose a subspace. Trees are of gradients, which may hold no leaf at all.

    Attributes:
        draw: (key, tree, period) -> basis.
        down: (tree, basis) -> P g, a tree that has state.
        join: (low, basis, tree, free) -> P^T low + free(g - P^T P g), where free(0) = 0.
    """

    draw: Callable
    down: Callable
    join: Callable


# Whole tensors


def _block(density, order):
    def lanes_of(tree):
        """For every lane the positions of its tensors among the leaves, the first being the largest."""
        leaves = jax.tree.leaves(tree)
        alike = collections.defaultdict(list)
        for i, leaf in enumerate(leaves):
            alike[leaf.shape].append(i)
        pools, odd = [], []
        for members in alike.values():
            (pools if round(density * len(members)) else odd).append(members)
        odd = sorted(itertools.chain(*odd), key=lambda i: -leaves[i].size)
        pools.append(odd)
        counts = [round(density * len(pool)) for pool in pools]
        return [run.tolist() for pool, n in zip(pools, counts, strict=True) if n for run in np.array_split(pool, n)]

    # Which member of its lane is active is one scalar a lane, not an element of one array: kernels that are alike but
    # for the position they read would each be compiled by XLA:CPU, and a deep network would take four times as long.

    def draw(key, tree, period):
        leaves, structure = jax.tree.flatten(tree)
        lanes = lanes_of(tree)
        lengths = np.array([len(lane) for lane in lanes], np.int32)
        active, backwards = period % lengths, (-1 - period) % lengths
        if order == "random":
            active = (jax.random.bits(key, lengths.shape, jnp.uint32) % lengths.astype(np.uint32)).astype(jnp.int32)
        elif order == "descending":
            active = backwards
        elif order == "mirror":
            active = jnp.where(np.arange(len(lanes)) % 2 == 0, active, backwards)
        basis = [optax.MaskedNode()] * len(leaves)
        for which, lane in enumerate(lanes):
            basis[lane[0]] = active[which]
        return structure.unflatten(basis)

    def down(tree, basis):
        leaves, structure = jax.tree.flatten(tree)
        active = structure.flatten_up_to(basis)
        low = [optax.MaskedNode()] * len(leaves)
        for lane in lanes_of(tree):
            first, *others = (leaves[i] for i in lane)
            if all(leaf.shape == first.shape for leaf in others):
                members = [first, *(_like(leaf, first) for leaf in others)]
            else:
                members = [_flat(leaf, first.size).astype(first.dtype) for leaf in (first, *others)]
            low[lane[0]] = jax.lax.select_n(active[lane[0]], *members) if others else members[0]
        return structure.unflatten(low)

    def join(low, basis, tree, free):
        leaves, structure = jax.tree.flatten(tree)
        low, active = structure.flatten_up_to(low), structure.flatten_up_to(basis)
        full = [free(leaf) for leaf in leaves]
        for lane in lanes_of(tree):
            for place, i in enumerate(lane):
                value, leaf = low[lane[0]], leaves[i]
                value = _like(value, leaf) if value.shape == leaf.shape else _unflat(value, leaf)
                full[i] = jnp.where(active[lane[0]] == place, value.astype(leaf.dtype), full[i])
        return structure.unflatten(full)

    return Projection(draw, down, join)


# Singular vectors and random directions


def _matrix(density, choose):
    """Products with orthonormal columns on the shorter side of a matrix."""

    def rank_of(leaf):
        shorter = min(leaf.shape[-2:])
        return min(shorter, max(1, round(density * shorter)))

    def axis_of(leaf):
        return -1 if leaf.shape[-2] >= leaf.shape[-1] else -2

    def multiply(leaf, basis, axis):
        """Along an axis of the leaf, with the rows of the basis."""
        equation = "...mn,...nr->...mr" if axis == -1 else "...mn,...mr->...rn"
        return jnp.einsum(equation, leaf, basis, precision="highest")

    def draw(key, tree, period):
        del period
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(key, len(leaves))

        def draw_leaf(key, leaf):
            return _sharded(lambda k, g: choose(k, g, rank_of(g)), leaf, P())(key, leaf)

        return structure.unflatten([draw_leaf(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])

    def down_leaf(leaf, basis):
        axis = axis_of(leaf)
        return _sharded(lambda g, b: multiply(g, b, axis), leaf, _without(leaf, axis))(leaf, basis)

    def up_leaf(basis, like, low):
        axis = axis_of(like)
        return _sharded(lambda u, b: multiply(u, jnp.swapaxes(b, -1, -2), axis), like)(low, basis)

    def rest_leaf(leaf, basis):
        if rank_of(leaf) == min(leaf.shape[-2:]):
            return jnp.zeros_like(leaf)
        residual = leaf - up_leaf(basis, leaf, down_leaf(leaf, basis))
        largest = jnp.max(jnp.abs(leaf), axis=(-2, -1), keepdims=True, initial=0.0)
        return jnp.where(jnp.abs(residual) > 1e-6 * largest, residual, 0)

    return _per_leaf(draw, down_leaf, up_leaf, rest_leaf)


def _random_basis(key, gradient, rank):
    *stack, rows, columns = gradient.shape
    return jax.random.orthogonal(key, min(rows, columns), tuple(stack), gradient.dtype)[..., :rank]


# Some columns, some rows


def _coordinates(density, axis):
    def draw(key, tree, period):
        del period
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(key, len(leaves))

        def choose(key, length):
            return jax.random.permutation(key, length)[: max(1, int(density * length))].astype(jnp.int32)

        return structure.unflatten([choose(k, leaf.shape[axis]) for k, leaf in zip(keys, leaves, strict=True)])

    def down_leaf(leaf, basis):
        return _sharded(lambda g, b: jnp.take(g, b, axis=axis, mode="clip"), leaf, _without(leaf, axis))(leaf, basis)

    def where_of(basis, like):
        """For every column the place among the chosen ones, or their number."""
        places = jnp.arange(basis.size, dtype=jnp.int32)
        return jnp.full([like.shape[axis]], basis.size, jnp.int32).at[basis].set(places)

    def up_leaf(basis, like, low):
        def put(low, basis):
            return jnp.take(low, where_of(basis, like), axis=axis, mode="fill", fill_value=0)

        return _sharded(put, like)(low, basis)

    def rest_leaf(leaf, basis):
        chosen = where_of(basis, leaf) < basis.size
        shape = [1] * leaf.ndim
        shape[axis] = leaf.shape[axis]
        return _sharded(lambda g, chosen: jnp.where(chosen.reshape(shape), 0, g), leaf)(leaf, chosen)

    return _per_leaf(draw, down_leaf, up_leaf, rest_leaf)


# Some entries


def _randk(density):
    def join(low, basis, tree, free):
        chosen = subset.put(jax.tree.map(jnp.ones_like, subset.take(tree, basis)), basis, tree)
        full = subset.put(low, basis, tree)
        return jax.tree.map(lambda u, g, c: jnp.where(c != 0, u, free(g)), full, tree, chosen)

    return Projection(
        draw=lambda key, tree, period: subset.draw(key, tree, density),
        down=subset.take,
        join=join,
    )


PROJECTIONS = {
    "block": _block,
    "svd": lambda density, _: _matrix(density, lambda key, g, rank: galore_projector(g, rank=rank)),
    "random": lambda density, _: _matrix(density, _random_basis),
    "columns": lambda density, _: _coordinates(density, -1),
    "rows": lambda density, _: _coordinates(density, -2),
    "randk": lambda density, _: _randk(density),
}


@functools.partial(jax.jit, static_argnames=("projection", "density", "block_order"))
def redraw(when, basis, key, tree, period, projection, density, block_order):
    draw = PROJECTIONS[projection](density, block_order).draw
    return jax.lax.cond(when, lambda: draw(key, tree, period), lambda: basis)


def _per_leaf(draw, down_leaf, up_leaf, rest_leaf):
    def join(low, basis, tree, free):
        def join_leaf(leaf, basis, low):
            return up_leaf(basis, leaf, low) + free(rest_leaf(leaf, basis))

        return jax.tree.map(join_leaf, tree, basis, low)

    return Projection(draw, lambda tree, basis: jax.tree.map(down_leaf, tree, basis), join)


def _sharded(function, leaf, spec=None):
    """The function, its result with explicit axes sharded in a given way, by default as the leaf."""
    sharding = jax.typeof(leaf).sharding
    return with_any_sharding(function, leaf, sharding if spec is None else NamedSharding(sharding.mesh, spec))


def _without(leaf, axis):
    """The leaf's spec, unsharded along an axis."""
    spec = [*jax.typeof(leaf).sharding.spec, *itertools.repeat(None, leaf.ndim)][: leaf.ndim]
    spec[axis] = None
    return P(*spec)


def _like(leaf, other):
    """A leaf of the same shape with the sharding and dtype of another."""
    leaf = leaf.astype(other.dtype)
    sharding = jax.typeof(other).sharding
    if AxisType.Explicit in sharding.mesh.axis_types and jax.typeof(leaf).sharding != sharding:
        return jax.sharding.reshard(leaf, sharding)
    return leaf


def _flat(leaf, size):
    return _sharded(lambda x: jnp.pad(jnp.ravel(x), [0, size - x.size]), leaf, P())(leaf)


def _unflat(flat, like):
    # A gather where a reshape would do: through a reshape the flat state's sharding would spread to the updates.
    def at(flat, position):
        return flat.at[position].get(mode="promise_in_bounds")

    return _sharded(at, like)(flat, jnp.arange(like.size).reshape(like.shape))
