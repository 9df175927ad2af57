"""FRUGAL: an optimizer's state for a part of the gradient, sign descent for the rest.

Adam keeps two numbers for every parameter. Projecting the gradient to a subspace and keeping state there saves memory,
but GaLore and its like throw away what is outside of the subspace. FRUGAL splits the gradient instead: the projection
goes through Adam, the rest takes a step that needs no state, such as that of its sign, and so every parameter moves on
every step. Which subspace it is changes every few hundred steps. The ways to choose one are in
:mod:`jaxreg.optim.projections`.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreg.optim.descend import descend
from jaxreg.optim.projections import PROJECTIONS, BlockOrder, ProjectionName, redraw
from jaxreg.precision import widened
from jaxreg.typing import Array, Int, PyTree, ScalarLike, ScalarOrSchedule, checked
from jaxreg.validation import check_range

StateFree = Literal["sign", "sgd", "none"]


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
    space = PROJECTIONS[projection](density, block_order)
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
        basis = redraw(refresh, state.basis, key, updates, period, projection, density, block_order)
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
    weight_decay: ScalarOrSchedule = 0.0,
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
        weight_decay: ``lambda >= 0``, a number or a schedule; ``lambda * params`` joins the direction, as in
            :func:`optax.adamw`.
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
        return optax.tree.cast_like(directions, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _zeros_like(tree):
    return jax.tree.map(jnp.zeros_like, tree)
