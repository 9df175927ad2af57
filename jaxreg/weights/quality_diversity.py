r"""CycleQD: merging experts by quality diversity.

Every task has an archive: a grid whose axes are the qualities in the *other* tasks, and each of whose cells keeps the
model that is best in the task itself. So an archive holds specialists of its task that differ in what else they can.
The archives take turns. Two models of one archive are merged, the child is pushed along what the task's expert has
learnt, evaluated in all tasks, and put into every archive where it is better than what is in its cell::

    state = cycleqd_init(experts, base, eval_fn, low=0.0, high=1.0)


    def generation(state, number):
        key_generation = jax.random.fold_in(key, number)
        return cycleqd_step(state, key_generation, eval_fn, task=number % num_tasks), None


    state, _ = jax.lax.scan(generation, state, jnp.arange(1200))
    params = aggregate_archive(state)

Models are kept as task vectors, their differences from the base model, in the memory of the device: use few bins for
large models, as there are ``tasks * bins ** (tasks - 1)`` cells.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.linalg import matmul, svd
from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Bool, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes
from jaxreg.weights.task_vectors import add_task_vector, task_vector

Mutation = Literal["svd", "gaussian"]
Sampling = Literal["elite", "uniform"]


class SVDBasis(NamedTuple):
    r"""Singular value decomposition of a matrix, :math:`U \operatorname{diag}(s) V^\top`, of the least rank.

    Attributes:
        u: left singular vectors, in columns.
        s: singular values, in descending order.
        v: right singular vectors, in columns.
    """

    u: Float[Array, "*stack rows rank"]
    s: Float[Array, "*stack rank"]
    v: Float[Array, "*stack columns rank"]


class QDState(NamedTuple):
    """The archives.

    Attributes:
        base: the model that the experts were fine-tuned from.
        basis: of each expert's task vector, stacked: :func:`svd_basis`.
        elites: task vectors of the models in the archives, leaves ``[tasks, cells, ...]``, zero in empty cells.
        metrics: their quality in every task, higher is better; minus infinity in empty cells. The cells of an archive
            are the grid in the order of the other tasks, the last changing fastest.
        edges: of the bins of each task's quality.
    """

    base: PyTree
    basis: PyTree
    elites: PyTree
    metrics: Float[Array, "tasks cells tasks"]
    edges: Float[Array, "tasks edges"]

    @property
    def occupied(self) -> Bool[Array, "tasks cells"]:
        """Which cells hold a model; their share is the coverage."""
        return jnp.isfinite(self.metrics).all(axis=-1)


@checked
def svd_basis(task_vector: PyTree) -> PyTree:
    r"""The singular value decomposition of each matrix of a task vector, computed once and for all.

    Args:
        task_vector: a difference of weights (not the weights). Of a leaf with more than two axes, such as a
            convolution's kernel, the last axis are the columns; for a stack use ``jax.vmap``.

    Returns:
        A tree with an :class:`SVDBasis` in place of each floating leaf of at least two axes, and None in place of the
        others: biases and normalizations.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """

    def decompose(leaf):
        if jnp.ndim(leaf) < 2 or not is_floating(leaf):
            return None
        u, s, vh = svd(_as_matrix(at_least_float32(leaf)))
        return SVDBasis(u, s, vh.T)

    return jax.tree.map(decompose, task_vector)


@checked
def cycleqd_init(
    experts: PyTree,
    base: PyTree,
    eval_fn: Callable[[Any], Any],
    *,
    bins: int = 15,
    low: ScalarLike | Float[Array, "tasks"],
    high: ScalarLike | Float[Array, "tasks"],
) -> QDState:
    """Archives that every expert has entered, where it is not beaten by another in its cell.

    Args:
        experts: one model a task, in the order of the tasks, at least two, stacked: leaves ``[tasks, ...]``.
        base: the model that they were fine-tuned from.
        eval_fn: from parameters to their quality in every task ``[tasks]``, higher is better; traceable.
        bins: of each axis of the grids, at least 1 (paper: 15).
        low: the least quality of the grid, for all tasks or for each.
        high: the greatest. What is outside counts to the first or the last bin.

    Returns:
        The state.

    Raises:
        ValueError: there are fewer than two experts, they are no stack of trees with the shapes of ``base``, or
            ``bins`` is below 1.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """
    check_range("bins", bins, "[1, inf)")
    check_same_shapes("experts", experts, base, leading=["tasks"])
    vectors = task_vector(base, experts)
    tasks = len(jax.tree.leaves(vectors)[0])
    check_range("the number of experts", tasks, "[2, inf)")
    cells = bins ** (tasks - 1)
    elites = jax.tree.map(lambda leaf: jnp.zeros([tasks, cells, *leaf.shape[1:]], leaf.dtype), vectors)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), tasks) for bound in (low, high))
    edges = jnp.linspace(low, high, bins + 1, axis=-1)
    metrics = jnp.full([tasks, cells, tasks], -jnp.inf)
    state = QDState(base, jax.vmap(svd_basis)(vectors), elites, metrics, edges)

    def enter(state, vector):
        return _enter(state, vector, eval_fn), None

    return jax.lax.scan(enter, state, vectors)[0]


@checked
def cycleqd_step(
    state: QDState,
    key: PRNGKeyArray,
    eval_fn: Callable[[Any], Any],
    *,
    task: ScalarLike,
    crossover_std: ScalarLike = 0.01,
    mutation_rate: ScalarLike = 0.1,
    mutation: Mutation = "svd",
    sampling: Sampling = "elite",
) -> QDState:
    """One generation: two models of one archive have a child, which enters all archives where it is better.

    Args:
        state: from :func:`cycleqd_init` or the last call.
        key: source of randomness.
        eval_fn: from parameters to their quality in every task, see :func:`cycleqd_init`.
        task: whose archive has its turn: the generation's number modulo the number of tasks.
        crossover_std: see :func:`merge_task_vectors` (paper: 0.01).
        mutation_rate: see :func:`mutate_along_basis` (paper: 0.1); for ``"gaussian"`` the standard deviation of the
            noise that is added to every parameter (authors' code: 3e-4).
        mutation: along the singular vectors of the task's expert, or in no direction.
        sampling: of parents, in proportion to :func:`elite_probabilities` or all models of the archive alike; always
            different ones, unless there is only one.

    Returns:
        The new state.

    Raises:
        ValueError: ``crossover_std`` or ``mutation_rate`` is negative.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """
    check_range("crossover_std", crossover_std, "[0, inf)")
    check_range("mutation_rate", mutation_rate, "[0, inf)")
    key_parents, key_cross, key_mutate = jax.random.split(key, 3)
    occupied = state.occupied[task]
    weights = elite_probabilities(state, task) if sampling == "elite" else occupied.astype(jnp.float32)
    # The largest of log-weights with Gumbel noise are drawn as if one after the other, without putting back.
    noisy = jnp.log(weights) + jax.random.gumbel(key_parents, weights.shape)
    first = jnp.argmax(noisy)
    second = jnp.argmax(noisy.at[first].set(-jnp.inf))
    second = jnp.where(occupied[second], second, first)
    first, second = (jax.tree.map(lambda leaf, at=at: leaf[task, at], state.elites) for at in (first, second))
    child = merge_task_vectors(key_cross, first, second, std=crossover_std)
    if mutation == "svd":
        basis = jax.tree.map(lambda leaf: leaf[task], state.basis)
        child = mutate_along_basis(key_mutate, child, basis, rate=mutation_rate)
    else:
        child = _with_noise(key_mutate, child, mutation_rate)
    return _enter(state, child, eval_fn)


@checked
def elite_probabilities(state: QDState, task: ScalarLike) -> Float[Array, "cells"]:
    r"""How likely each model of an archive becomes a parent: the better in every respect, the likelier.

    .. math:: p \propto \prod_j n(v_j), \qquad n(v) = \tfrac12 + 0.8\, \frac{v - \min v}{\max v - \min v}

    over the quality and the coordinates in the grid; :math:`n = 1` where all models are alike.

    Args:
        state: of the search.
        task: whose archive it is.

    Returns:
        The probability of each cell, 0 for empty ones.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """
    tasks, cells, _ = state.metrics.shape
    grid = (state.edges.shape[1] - 1,) * (tasks - 1)
    occupied = state.occupied[task]
    weights = jnp.where(occupied, 1.0, 0.0)
    coordinates = np.stack(np.unravel_index(np.arange(cells), grid)).astype(np.float32)
    for values in (state.metrics[task, :, task], *coordinates):
        low = jnp.min(values, where=occupied, initial=jnp.inf)
        span = jnp.max(values, where=occupied, initial=-jnp.inf) - low
        normalized = 0.5 + 0.8 * (values - low) / jnp.where(span > 0, span, 1.0)
        weights *= jnp.where(occupied & (span > 0), normalized, 1.0)
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1.0)


@checked
def merge_task_vectors(key: PRNGKeyArray, first: PyTree, second: PyTree, *, std: ScalarLike = 0.01) -> PyTree:
    r"""Crossover: the average of two task vectors with slightly random weights.

    .. math:: \tau = \frac{w_1 \tau_1 + w_2 \tau_2}{w_1 + w_2}, \qquad w_i \sim N(1, \sigma^2)

    Args:
        key: of the weights.
        first: ``tau_1``.
        second: ``tau_2``.
        std: ``sigma >= 0`` (paper: 0.01); far below 1, or the denominator may vanish.

    Returns:
        The child, a tree like ``first``; floating leaves are averaged, others those of ``first``.

    Raises:
        ValueError: ``std`` is negative.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """
    check_range("std", std, "[0, inf)")
    weights = 1.0 + std * jax.random.normal(key, [2])
    weights /= jnp.sum(weights)

    def merge(a, b):
        return (weights[0] * a + weights[1] * b).astype(a.dtype) if is_floating(a) else a

    return jax.tree.map(merge, first, second)


@checked
def mutate_along_basis(key: PRNGKeyArray, vector: PyTree, basis: PyTree, *, rate: ScalarLike = 0.1) -> PyTree:
    r"""Mutation: every matrix takes random parts of what an expert has learnt.

    .. math:: \tau \leftarrow \tau + U \operatorname{diag}(r \odot s) V^\top, \qquad r_j \sim U(0, \rho)

    Args:
        key: of the parts.
        vector: ``tau``, a task vector.
        basis: ``U, s, V`` of each matrix of the expert's task vector: :func:`svd_basis`.
        rate: ``rho >= 0`` (paper: 0.1).

    Returns:
        A tree like ``vector``; what is no matrix stays as it is.

    Raises:
        ValueError: ``rate`` is negative.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """
    check_range("rate", rate, "[0, inf)")
    leaves, structure = jax.tree.flatten(vector)

    def mutated(number, leaf, basis):
        if basis is None:
            return leaf
        parts = rate * jax.random.uniform(jax.random.fold_in(key, number), basis.s.shape, basis.s.dtype)
        change = matmul(basis.u * (parts * basis.s), basis.v.T)
        return (leaf + change.reshape(leaf.shape)).astype(leaf.dtype)

    mutants = map(mutated, range(len(leaves)), leaves, structure.flatten_up_to(basis))
    return jax.tree.unflatten(structure, list(mutants))


@checked
def aggregate_archive(state: QDState) -> PyTree:
    r"""One model of all archives: the best of each, merged.

    .. math:: \theta = \theta_\text{base} + \sum_k \operatorname{softmax}(q)_k\, \tau_k

    where :math:`\tau_k` has the highest quality :math:`q_k` in task ``k``.

    Args:
        state: of the search.

    Returns:
        Its parameters, a tree like the base model.

    References:
        Kuroki et al., *Agent Skill Acquisition for Large Language Models via CycleQD*, ICLR 2025, arXiv 2410.14735.
    """
    tasks = jnp.arange(len(state.metrics))
    qualities = state.metrics[tasks, :, tasks]
    best = jnp.argmax(qualities, axis=1)
    weights = jax.nn.softmax(qualities[tasks, best])

    def merge(leaf):
        return (
            jnp.tensordot(weights, leaf[tasks, best], axes=1, precision="highest") if is_floating(leaf) else leaf[0, 0]
        )

    return add_task_vector(state.base, jax.tree.map(merge, state.elites))


def _enter(state, vector, eval_fn):
    """Puts a model into every archive in whose cell it is better."""
    tasks, bins = len(state.metrics), state.edges.shape[1] - 1
    metrics = at_least_float32(eval_fn(add_task_vector(state.base, vector)))
    # Bins are closed on the right, as in the authors' code.
    bin_of = jnp.clip(jax.vmap(jnp.searchsorted)(state.edges, metrics) - 1, 0, bins - 1)
    rows = jnp.arange(tasks)
    others = np.array([[other for other in range(tasks) if other != task] for task in range(tasks)])
    cell = bin_of[others] @ (bins ** np.arange(tasks - 2, -1, -1))
    comparable = jnp.isfinite(metrics).all()
    better = comparable & (metrics > state.metrics[rows, cell, rows])

    def put(archive, new):
        wins = better.reshape(-1, *[1] * (archive.ndim - 2))
        return archive.at[rows, cell].set(jnp.where(wins, new, archive[rows, cell]))

    elites = jax.tree.map(put, state.elites, vector)
    return state._replace(elites=elites, metrics=put(state.metrics, metrics))


def _as_matrix(leaf):
    return leaf.reshape(math.prod(leaf.shape[:-1]), leaf.shape[-1])


def _with_noise(key, vector, std):
    leaves, structure = jax.tree.flatten(vector)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        (leaf + std * jax.random.normal(k, leaf.shape, leaf.dtype)).astype(leaf.dtype) if is_floating(leaf) else leaf
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
