"""FRUGAL: an optimizer's state for a part of the gradient, sign descent for the rest.

Adam keeps two numbers for every parameter. Projecting the gradient to a subspace and keeping state there saves memory,
but GaLore and its like throw away what is outside of the subspace. FRUGAL splits the gradient instead: the projection
goes through Adam, the rest takes a step that needs no state, such as that of its sign, and so every parameter moves on
every step. Which subspace it is changes every few hundred steps.

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
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.optim import subset
from jaxreg.optim.descend import descend
from jaxreg.precision import at_least_float32, widened
from jaxreg.sharding import with_any_sharding
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_range

ProjectionName = Literal["block", "svd", "random", "columns", "rows", "randk"]
StateFree = Literal["sign", "sgd", "none"]
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


class GradientSplittingState(NamedTuple):
    """State of :func:`gradient_splitting`, of its projectable part.

    Attributes:
        count: steps taken.
        basis: the present subspace: which member of each lane is active (block), a matrix a leaf (svd, random), indices
            (columns, rows), or a :class:`~jaxreg.optim.subset.Subset` (randk).
        inner_state: of the direction, in the subspace, at least float32.
    """

    count: Int[Array, ""]
    basis: PyTree
    inner_state: optax.OptState


@checked
def gradient_splitting(
    direction: optax.GradientTransformation,
    *,
    projection: ProjectionName = "block",
    density: float | int = 0.25,
    update_gap: ScalarLike = 200,
    state_free: StateFree = "sign",
    state_free_lr_scale: ScalarLike = 1.0,
    reset_statistics: bool = True,
    block_order: BlockOrder = "random",
    projectable: Any = None,
    seed: ScalarLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Any direction within a subspace, and a direction without state for the rest of the gradient.

    .. math:: u = P^\top \operatorname{direction}(P g) + s \, \operatorname{sign}(g - P^\top P g)

    Every ``update_gap`` steps, the first included, :math:`P` is chosen anew. Leaves that are not ``projectable`` go
    through ``direction`` whole. More than two axes are a stack of matrices, projected one by one. The projections:

    - ``block``: whole tensors. Of ``c`` tensors of one shape ``round(density * c)`` are active; shapes of which that
      leaves none are counted together. Which are active is drawn within fixed groups of about ``1 / density``, of each
      of which one is; the paper draws among all tensors.
    - ``svd``: GaLore's, ``round(density * min(m, n))`` leading singular vectors of the present gradient, see
      :func:`galore_projector`. ``random``: as many random orthonormal vectors.
    - ``columns``, ``rows``: ``int(density * n)`` random columns, or ``int(density * m)`` rows, of each matrix.
    - ``randk``: ``int(density * size)`` random entries of each tensor.

    All but ``block`` keep at least one of each. Residuals of ``svd`` and ``random`` that are below a millionth of the
    gradient's largest entry are rounding errors of the projection and count as zero, lest their sign move anything.

    With ``optax.inject_hyperparams`` all arguments but ``update_gap``, ``state_free_lr_scale`` and ``seed`` are static.

    >>> import optax
    >>> from jaxreg.optim import descend, gradient_splitting
    >>> frugal_lion = descend(gradient_splitting(optax.scale_by_lion()), 1e-4)

    Args:
        direction: transformation of gradients that does not need ``params``, such as ``optax.scale_by_adam``.
        projection: how the subspace is chosen (paper: ``block``, nearly as good as ``svd`` and cheaper).
        density: part of the gradient that goes through ``direction``, in [0, 1] (paper: 0.25); with 0 nothing does.
        update_gap: steps between two choices (paper: 200), at least 1; infinity never chooses again.
        state_free: direction of the rest ``R``: its sign, ``R`` itself (sgd), or none, which drops it as GaLore does.
        state_free_lr_scale: ``s >= 0`` (paper: 1 to pretrain, 0.1 to fine-tune), factor on it.
        reset_statistics: whether ``direction`` starts anew in every subspace. Blocks always do.
        block_order: how a lane goes through its tensors; ``mirror`` sends every other lane backwards.
        projectable: pytree of bools, or a function from parameters to one: which leaves are split. By default those
            with at least two axes; the paper keeps embeddings and the output head whole as well.
        seed: of the random choices.

    Returns:
        The transformation, which does not need ``params``. Extra arguments are passed on to ``direction``.

    Raises:
        ValueError: a hyperparameter is outside its range, or a leaf to be projected as a matrix has one axis.

    References:
        Zmushko et al., *FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training*,
        arXiv 2411.07837.
    """
    check_range("density", density, "[0, 1]")
    check_range("update_gap", update_gap, "[1, inf]")
    check_range("state_free_lr_scale", state_free_lr_scale, "[0, inf)")
    if density == 0:
        projection = "block"  # with no block
    forget = reset_statistics or projection == "block"
    direction = optax.with_extra_args_support(direction)
    space = _PROJECTIONS[projection](density, block_order)
    free = {
        "sign": lambda rest: state_free_lr_scale * jnp.sign(rest),
        "sgd": lambda rest: state_free_lr_scale * rest,
        "none": jnp.zeros_like,
    }[state_free]

    def init(params):
        if projection not in ("block", "randk"):
            for leaf in jax.tree.leaves(params):
                if leaf.ndim < 2:
                    raise ValueError(
                        f"projection {projection!r} needs leaves with at least two axes, got shape {leaf.shape}; "
                        "say with projectable which leaves to split"
                    )
        # Nothing is drawn yet: the first step is a refresh, and an SVD of nothing takes as long as one of something.
        basis = jax.eval_shape(space.draw, jax.random.key(0), params, 0)
        basis = jax.tree.map(lambda b: jnp.zeros(b.shape, b.dtype), basis)
        low = space.down(jax.tree.map(jnp.zeros_like, params), basis)
        return GradientSplittingState(jnp.zeros([], jnp.int32), basis, direction.init(low))

    def update(updates, state, params=None, **extra_args):
        del params
        period = jnp.asarray(state.count // update_gap).astype(jnp.int32)
        refresh = state.count % update_gap == 0
        key = jax.random.fold_in(jax.random.key(seed), period)
        basis = _redraw(refresh, state.basis, key, updates, period, projection, density, block_order)
        low = space.down(updates, basis)
        inner_state = state.inner_state
        if forget:
            # The initial state is computed from constants: zeros, to the compiler.
            inner_state = jax.tree.map(
                lambda new, old: jnp.where(refresh, new, old), direction.init(_zeros_like(low)), inner_state
            )
        low, inner_state = direction.update(low, inner_state, None, **extra_args)
        directions = space.join(low, basis, updates, free)
        return directions, GradientSplittingState(optax.safe_increment(state.count), basis, inner_state)

    split = optax.GradientTransformationExtraArgs(init, update)
    return _widened(
        optax.chain(optax.masked(split, _mask(projectable, True)), optax.masked(direction, _mask(projectable, False)))
    )


@checked
def frugal(
    learning_rate: ScalarOrSchedule,
    *,
    projection: ProjectionName = "block",
    density: float | int = 0.25,
    update_gap: ScalarLike = 200,
    state_free: StateFree = "sign",
    state_free_lr_scale: ScalarLike = 1.0,
    b1: ScalarLike = 0.9,
    b2: ScalarLike = 0.999,
    eps: ScalarLike = 1e-8,
    reset_statistics: bool = True,
    block_order: BlockOrder = "random",
    projectable: Any = None,
    seed: ScalarLike = 0,
    weight_decay: ScalarLike = 0.0,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FRUGAL: :func:`gradient_splitting` with Adam in the subspace, decoupled weight decay, learning rate.

    State is ``8 density`` bytes a projectable parameter, where Adam's is 8.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxreg.optim import frugal
    >>> optimizer = frugal(optax.cosine_decay_schedule(0.1, 100), projection="svd", update_gap=10)
    >>> params = jnp.eye(4)
    >>> state = optimizer.init(params)
    >>> step = jax.jit(lambda params, state: optimizer.update(params, state, params))
    >>> for _ in range(100):
    ...     updates, state = step(params, state)
    ...     params = optax.apply_updates(params, updates)
    >>> bool(jnp.all(jnp.abs(params) < 0.1))
    True

    Args:
        learning_rate: ``eta``, a positive number or an optax schedule; it also scales the step without state.
        projection: see :func:`gradient_splitting`, as are all arguments not described here.
        density: part of the gradient that Adam sees (paper: 0.25).
        update_gap: steps between two subspaces (paper: 200).
        state_free: what moves the rest.
        state_free_lr_scale: factor on that.
        b1: ``beta_1`` in [0, 1) (paper: 0.9).
        b2: ``beta_2`` in [0, 1) (paper: 0.999).
        eps: ``epsilon >= 0`` (authors' code: 1e-8).
        reset_statistics: whether moments and bias correction start anew in every subspace.
        block_order: in which order tensors become active.
        projectable: which leaves are split; by default those with at least two axes.
        seed: of the random choices.
        weight_decay: ``lambda >= 0``; ``lambda * params`` joins the direction, as in :func:`optax.adamw`.
        mask: pytree of bools, or a function from parameters to one: which leaves decay.

    Returns:
        An optax optimizer.

    Raises:
        ValueError: a hyperparameter is outside its range.

    References:
        Zmushko et al., *FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training*,
        arXiv 2411.07837.
    """
    check_range("b1", b1, "[0, 1)")
    check_range("b2", b2, "[0, 1)")
    check_range("eps", eps, "[0, inf)")
    return descend(
        gradient_splitting(
            optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
            projection=projection,
            density=density,
            update_gap=update_gap,
            state_free=state_free,
            state_free_lr_scale=state_free_lr_scale,
            reset_statistics=reset_statistics,
            block_order=block_order,
            projectable=projectable,
            seed=seed,
        ),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )


class _Projection(NamedTuple):
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

    return _Projection(draw, down, join)


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
        return jnp.full([like.shape[axis]], basis.size, jnp.int32).at[basis].set(jnp.arange(basis.size))

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

    return _Projection(
        draw=lambda key, tree, period: subset.draw(key, tree, density),
        down=subset.take,
        join=join,
    )


_PROJECTIONS = {
    "block": _block,
    "svd": lambda density, _: _matrix(density, lambda key, g, rank: galore_projector(g, rank=rank)),
    "random": lambda density, _: _matrix(density, _random_basis),
    "columns": lambda density, _: _coordinates(density, -1),
    "rows": lambda density, _: _coordinates(density, -2),
    "randk": lambda density, _: _randk(density),
}


@functools.partial(jax.jit, static_argnames=("projection", "density", "block_order"))
def _redraw(when, basis, key, tree, period, projection, density, block_order):
    draw = _PROJECTIONS[projection](density, block_order).draw
    return jax.lax.cond(when, lambda: draw(key, tree, period), lambda: basis)


def _per_leaf(draw, down_leaf, up_leaf, rest_leaf):
    def join(low, basis, tree, free):
        def join_leaf(leaf, basis, low):
            return up_leaf(basis, leaf, low) + free(rest_leaf(leaf, basis))

        return jax.tree.map(join_leaf, tree, basis, low)

    return _Projection(draw, lambda tree, basis: jax.tree.map(down_leaf, tree, basis), join)


# Where it meets the rest of optax and JAX


def _mask(projectable, wanted):
    """The mask of the leaves that are projectable, or of those that are not."""
    if projectable is None:
        return lambda tree: jax.tree.map(lambda leaf: (jnp.ndim(leaf) >= 2) == wanted, tree)
    if callable(projectable):
        return lambda tree: jax.tree.map(lambda flag: bool(flag) == wanted, projectable(tree))
    return jax.tree.map(lambda flag: bool(flag) == wanted, projectable)


def _widened(transformation):
    """Works in float32 where parameters have less; updates keep the gradients' dtype."""

    def init(params):
        return transformation.init(widened(params))

    def update(updates, state, params=None, **extra_args):
        directions, state = transformation.update(widened(updates), state, params, **extra_args)
        return jax.tree.map(lambda d, u: d.astype(u.dtype), directions, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)


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
