"""HESSO: prunes units while it trains, by shrinking them to exactly zero.

A unit is whatever can be taken out of a network together: a hidden neuron's column in one matrix, its bias, its row in
the next matrix. HESSO ranks all units by a mix of five saliencies, calls the lowest redundant, and goes on training
with any optimizer while the redundant ones are shrunk a little more on every step. HESSO-CRIC first finds out in trial
runs which units look dispensable but are not: it shrinks the lowest, watches who takes their places, restores the
parameters, and repeats until nobody new turns up; then it ranks by the saliencies averaged over all trials.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.linalg import unit_vectors
from jaxreg.precision import at_least_float32
from jaxreg.sharding import with_any_sharding
from jaxreg.typing import Array, Bool, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_params, check_range


class Group(NamedTuple):
    """The units of one layer.

    Attributes:
        members: where the units are: ``(path, axis)`` of every leaf that holds a part of each, unit ``i`` being slice
            ``i`` along the axis. The path is a tuple of keys, such as ``("params", "Dense_0", "kernel")``.
        size: number of units.
    """

    members: tuple[tuple[tuple[str | int, ...], int], ...]
    size: int


Groups = Sequence[Group] | Callable[[PyTree], Sequence[Group]]


@checked
def saliency(
    params: PyTree[Float[Array, "..."], "T"],
    directions: PyTree[Float[Array, "..."], "T"],
    groups: Sequence[Group],
    *,
    weights: tuple[float, float, float, float, float] = (0.2, 0.2, 0.2, 0.2, 0.2),
) -> Float[Array, " units"]:
    r"""How much every unit matters, as a mix of five measures.

    For a unit with parameters :math:`x` and descent direction :math:`d`, both as one vector:

    .. math::
        \|x\|, \qquad \frac{\|x\|}{\dim x}, \qquad 1 + \frac{\langle x, d \rangle}{\|x\| \|d\|}, \qquad
        |\langle x, d \rangle|, \qquad \tfrac12 \langle x, d \rangle^2

    Each is divided by its Euclidean norm over all units of all groups, so that the length of ``d`` has no effect.

    Args:
        params: the network's parameters.
        directions: ``d``, such that ``-d`` is where parameters go: the gradient, or Adam's direction.
        groups: the layers' units.
        weights: of the five measures (paper: 0.2 each).

    Returns:
        The saliencies, group after group.

    Raises:
        ValueError: a group names a leaf that does not exist or has another size.

    References:
        Chen et al., *HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning*,
        arXiv 2409.09085.
    """
    x, d = by_path(params), by_path(directions)
    check_groups(groups, x)
    measured = [_inner_products(x, d, group) for group in groups]
    if not measured:
        return jnp.zeros([0], jnp.float32)
    xx, dd, xd, entries = (jnp.concatenate(parts) for parts in zip(*measured, strict=True))
    length, product = jnp.sqrt(xx), _length_product(xx, dd)
    cosine = jnp.where(product > 0, xd / jnp.where(product > 0, product, 1.0), 0.0)
    # The squares of a short direction would be rounded to zero.
    xd = unit_vectors(xd)
    measures = (length, length / entries, 1 + cosine, jnp.abs(xd), jnp.square(xd))
    return sum(weight * unit_vectors(measure) for weight, measure in zip(weights, measures, strict=True))


class HessoState(NamedTuple):
    """State of :func:`hesso`.

    Attributes:
        count: steps taken.
        redundant: units that are being shrunk.
        pruned: units that are zero.
        inner_state: state of the wrapped optimizer.
    """

    count: Int[Array, ""]
    redundant: Bool[Array, " units"]
    pruned: Bool[Array, " units"]
    inner_state: optax.OptState


@checked
def hesso(
    inner: optax.GradientTransformation,
    groups: Groups,
    *,
    pruning_steps: ScalarLike,
    target_sparsity: ScalarLike = 0.5,
    start: ScalarLike = 0,
    periods: ScalarLike = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, which on the way prunes a given part of the units.

    Of ``G`` units :math:`K = \lfloor \rho G \rfloor` are pruned, an equal part in each of the periods of
    :math:`D` steps. On the first step of a period those with the lowest :func:`saliency` become redundant. On its steps
    :math:`t = 1, 2, \dots` all parameters move as the inner optimizer says, and then redundant units shrink:

    .. math:: x \leftarrow \frac{D - t - 1}{D - t} \, (x + \Delta x)

    which is linear, and exactly zero on step ``D - 1``. They stay zero. A layer's best unit is never redundant, so no
    layer becomes empty, and ``K`` is at most ``G`` less the number of groups. Weight decay belongs into ``inner``: what
    is chained behind would move units that have just become zero.

    >>> import optax
    >>> from jaxreg.optim import Group, hesso
    >>> units = Group((((0, "kernel"), -1), ((0, "bias"), 0), ((1, "kernel"), 0)), size=64)
    >>> optimizer = hesso(optax.adam(1e-3), [units], target_sparsity=0.8, start=500, pruning_steps=500)

    Args:
        inner: the optimizer, with its learning rate.
        groups: the layers' units, or a function from parameters to them. A tree without leaves has none.
        pruning_steps: steps over which units are pruned, at least 1: ``D`` times the number of periods.
        target_sparsity: ``rho`` in [0, 1], the part of the units that is pruned (paper: 0.3 to 0.9).
        start: steps before the first period, at least 0.
        periods: number of periods, at least 1.

    Returns:
        The wrapped optimizer; ``update`` needs ``params``. Extra arguments are passed on to ``inner``.

    Raises:
        ValueError: a hyperparameter is outside its range, ``update`` was not given ``params``, or a group names a leaf
            that does not exist or has another size.

    References:
        Chen et al., *HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning*,
        arXiv 2409.09085.
    """
    _check(pruning_steps=pruning_steps, target_sparsity=target_sparsity, start=start)
    check_range("periods", periods, "[1, inf)")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        nobody = _nobody(_resolve(groups, params))
        return HessoState(jnp.zeros([], jnp.int32), nobody, nobody, inner.init(params))

    def update(updates, state, params=None, **extra_args):
        check_params(params)
        units = _resolve(groups, params)
        descent, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        count = optax.safe_increment(state.count)
        length = jnp.maximum(pruning_steps // periods, 1)
        period, t = (count - start - 1) // length, (count - start - 1) % length + 1
        pruning = (period >= 0) & (period < periods)
        number = _number(target_sparsity, units)
        number = jnp.where(period == periods - 1, number - (periods - 1) * (number // periods), number // periods)

        def choose():
            pruned = state.pruned | state.redundant
            return _lowest(_saliency_of(params, descent, units), number, units, pruned), pruned

        redundant, pruned = jax.lax.cond(
            pruning & (t == 1) & (count > start), choose, lambda: (state.redundant, state.pruned)
        )
        shrink = jnp.where(pruning, _shrink(t, length), 0.0)
        factors = jnp.where(pruned, 0.0, jnp.where(redundant, shrink, 1.0))
        return _shrunk(descent, params, factors, units), HessoState(count, redundant, pruned, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


class HessoCricState(NamedTuple):
    """State of :func:`hesso_cric`.

    Attributes:
        count: steps taken.
        cycle: number of the present trial cycle, from 1.
        final_step: steps since the trials ended, 0 until then.
        violating: units that are shrunk in this cycle.
        trial: units that looked redundant during it.
        historical: units that were shrunk in any cycle so far.
        saliency: sum of all saliencies so far.
        samples: how many were summed.
        redundant: units that are being shrunk, or are zero, after the trials.
        restored: parameters at the start of the trials.
        inner_state: state of the wrapped optimizer.
    """

    count: Int[Array, ""]
    cycle: Int[Array, ""]
    final_step: Int[Array, ""]
    violating: Bool[Array, " units"]
    trial: Bool[Array, " units"]
    historical: Bool[Array, " units"]
    saliency: Float[Array, " units"]
    samples: Int[Array, ""]
    redundant: Bool[Array, " units"]
    restored: PyTree
    inner_state: optax.OptState


@checked
def hesso_cric(
    inner: optax.GradientTransformation,
    groups: Groups,
    *,
    sampling_steps: ScalarLike,
    pruning_steps: ScalarLike,
    target_sparsity: ScalarLike = 0.5,
    start: ScalarLike = 0,
    max_cycles: ScalarLike = 10,
    tolerance: ScalarLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""HESSO after corrective redundant identification cycles (CRIC).

    After ``start`` steps, cycles of ``sampling_steps`` begin. The first cycle's *violators* are the ``K`` units of the
    lowest :func:`saliency`. They are shrunk as in :func:`hesso` while the other parameters train; every step adds its
    saliencies to a sum and its lowest ``K`` units to a trial set. The cycle's last step restores the parameters
    (not the inner optimizer's state). The next violators are the trial set's units that have not been violators before.
    When they are ``tolerance`` or fewer, or ``max_cycles`` are over, the ``K`` units with the lowest mean saliency are
    pruned within ``pruning_steps`` as in a single period of :func:`hesso`.

    The authors' code also adds to the scores how the loss reacts when layers are cut by trial; that is not done here.

    Args:
        inner: the optimizer, with its learning rate.
        groups: the layers' units, or a function from parameters to them. A tree without leaves has none.
        sampling_steps: steps of one cycle, at least 1.
        pruning_steps: steps over which units are pruned in the end, at least 1.
        target_sparsity: ``rho`` in [0, 1], the part of the units that is pruned.
        start: steps before the first cycle, at least 0.
        max_cycles: at least 1 (authors' code: 10). All is over after at most
            ``start + max_cycles * sampling_steps + pruning_steps`` steps.
        tolerance: number of new violators at which the cycles end, at least 0.

    Returns:
        The wrapped optimizer; ``update`` needs ``params``. Its state holds one copy of the parameters.

    Raises:
        ValueError: a hyperparameter is outside its range, ``update`` was not given ``params``, or a group names a leaf
            that does not exist or has another size.

    References:
        Chen et al., *HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning*,
        arXiv 2409.09085.
    """
    _check(pruning_steps=pruning_steps, target_sparsity=target_sparsity, start=start)
    check_range("sampling_steps", sampling_steps, "[1, inf)")
    check_range("max_cycles", max_cycles, "[1, inf)")
    check_range("tolerance", tolerance, "[0, inf)")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        nobody = _nobody(_resolve(groups, params))
        zero = jnp.zeros([], jnp.int32)
        return HessoCricState(
            count=zero,
            cycle=zero,
            final_step=zero,
            violating=nobody,
            trial=nobody,
            historical=nobody,
            saliency=jnp.zeros(nobody.shape, jnp.float32),
            samples=zero,
            redundant=nobody,
            restored=jax.tree.map(jnp.zeros_like, params),
            inner_state=inner.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        check_params(params)
        units = _resolve(groups, params)
        descent, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        count = optax.safe_increment(state.count)
        j = (count - start - 1) % sampling_steps + 1
        sampling = (count > start) & (state.final_step == 0)
        number = _number(target_sparsity, units)
        restored = jax.tree.map(lambda r, p: jnp.where(count == start + 1, p, r), state.restored, params)

        def sample():
            scores = _saliency_of(params, descent, units).astype(jnp.float32)
            total, samples = state.saliency + scores, state.samples + 1
            lowest = _lowest(scores, number, units)
            first = j == 1
            cycle = state.cycle + first
            new = jnp.where(cycle == 1, lowest, state.trial & ~state.historical)
            over = first & ((jnp.sum(new) <= tolerance) | (cycle > max_cycles))
            violating = jnp.where(first, new, state.violating)
            historical = state.historical | violating
            trial = (state.trial | lowest) & ~historical
            redundant = jnp.where(over, _lowest(total / samples, number, units), state.redundant)
            return cycle, over.astype(jnp.int32), violating, trial, historical, total, samples, redundant

        def wait():
            final_step = jnp.where(state.final_step > 0, optax.safe_increment(state.final_step), 0)
            return (state.cycle, final_step, *state[3:9])

        cycle, final_step, violating, trial, historical, total, samples, redundant = jax.lax.cond(
            sampling, sample, wait
        )
        ended = final_step > 0
        trying = jnp.where(violating, _shrink(j, sampling_steps), 1.0)
        pruning = jnp.where(redundant, _shrink(final_step, pruning_steps), 1.0)
        factors = jnp.where(ended, pruning, jnp.where(sampling, trying, 1.0))
        back = sampling & ~ended & (j == sampling_steps)
        moved = _shrunk(descent, params, factors, units)
        moved = jax.tree.map(lambda u, r, p: jnp.where(back, (r - p).astype(u.dtype), u), moved, restored, params)
        return moved, HessoCricState(
            count, cycle, final_step, violating, trial, historical, total, samples, redundant, restored, inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _length_product(xx, dd):
    # Not the root of the product, which would underflow.
    return jnp.sqrt(xx) * jnp.sqrt(dd)


def _inner_products(x, d, group):
    """For every unit <x, x>, <d, d>, <x, d> and the number of entries."""
    sums, entries = jnp.zeros([3, group.size], jnp.float32), 0
    for path, axis in group.members:
        a, b = at_least_float32(x[path]), at_least_float32(d[path])
        others = tuple(other for other in range(a.ndim) if other != axis % a.ndim)

        def products(a, b, others=others):
            return jnp.stack([jnp.sum(u * v, axis=others) for u, v in ((a, a), (b, b), (a, b))])

        sums = sums + with_any_sharding(products, a, NamedSharding(jax.typeof(a).sharding.mesh, P()))(a, b)
        entries += a.size // group.size
    return *sums, jnp.full([group.size], float(entries), sums.dtype)


def _saliency_of(params, descent, units):
    return saliency(params, jax.tree.map(jnp.negative, descent), units)


def _lowest(scores, number, groups, excluded=None):
    """The units of the lowest scores, but for the best one of each group, and those excluded."""
    excluded = jnp.zeros(scores.shape, bool) if excluded is None else excluded
    scores = jnp.where(excluded, jnp.inf, scores)
    start, kept = 0, []
    for group in groups:
        part = jnp.where(excluded[start : start + group.size], -jnp.inf, scores[start : start + group.size])
        kept.append(jnp.arange(group.size) == jnp.argmax(part))
        start += group.size
    scores = jnp.where(jnp.concatenate(kept), jnp.inf, scores) if kept else scores
    return jnp.argsort(jnp.argsort(scores)) < number


def _number(target_sparsity, groups):
    """How many units are pruned. A thousandth more is no unit, but makes up for rounding."""
    total = sum(group.size for group in groups)
    return jnp.minimum(jnp.floor(target_sparsity * total + 1e-3), total - len(groups)).astype(jnp.int32)


def _shrink(t, length):
    return jnp.maximum(length - t - 1, 0) / jnp.maximum(length - t, 1)


def _shrunk(descent, params, factors, groups):
    """Updates after which parameters are factor times what they would have been."""
    leaves = by_path(params)
    shares = {}
    start = 0
    for group in groups:
        part = factors[start : start + group.size]
        start += group.size
        for path, axis in group.members:
            shape = np.ones(leaves[path].ndim, int)
            shape[axis] = group.size
            shares[path] = shares.get(path, 1.0) * part.reshape(shape)

    def shrink(path, u, x):
        factor = shares.get(keys_of(path))
        if factor is None:
            return u
        # Where the factor is zero so is the parameter, exactly, and whatever the update was.
        moved = factor * u - (1 - factor) * x
        return jnp.where(factor == 0, -x, moved).astype(u.dtype)

    return jax.tree.map_with_path(shrink, descent, params)


def by_path(tree):
    """Leaves by the keys of their paths."""
    return {keys_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def keys_of(path):
    """The keys of a path as they are written in Python: of dicts, sequences and attributes."""
    return tuple(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path)


def _resolve(groups, params):
    if not jax.tree.leaves(params):
        return ()
    found = tuple(groups(params) if callable(groups) else groups)
    check_groups(found, by_path(params))
    return found


def _nobody(groups):
    return jnp.zeros([sum(group.size for group in groups)], bool)


def check_groups(groups, leaves):
    """Raises unless every member of the groups is among the leaves, by path, and has their size."""
    for group in groups:
        for path, axis in group.members:
            if path not in leaves:
                raise ValueError(f"groups: there is no leaf {path}; there are {sorted(leaves, key=str)}")
            shape = leaves[path].shape
            if not -len(shape) <= axis < len(shape) or shape[axis] != group.size:
                raise ValueError(f"groups: leaf {path} of shape {shape} has no {group.size} units along axis {axis}")


def _check(*, pruning_steps, target_sparsity, start):
    check_range("pruning_steps", pruning_steps, "[1, inf)")
    check_range("target_sparsity", target_sparsity, "[0, 1]")
    check_range("start", start, "[0, inf)")
