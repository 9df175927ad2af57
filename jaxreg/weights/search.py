r"""Evolutionary search over the coefficients of a combination of checkpoints.

The best sum of a run's checkpoints is not an average: coefficients are negative, and beyond one. They are few, so an
evolutionary search finds them with any measure of quality, differentiable or not. With ``theta_1`` the oldest
checkpoint,

.. math:: \theta(a) = \theta_1 + \sum_{i=2}^K a_i (\theta_i - \theta_1), \qquad a_1 = 1 - \sum_{i=2}^K a_i

so the search moves ``a_2`` to ``a_K`` freely, and the coefficients always sum to one.

:func:`lcsc_search` is the whole search in one call, under ``jit``. Where fitness is measured outside of JAX, the same
search is driven step by step::

    state = lcsc_init(key, population, measure(population))
    for _ in range(40):
        children, state = lcsc_ask(state)
        state = lcsc_tell(state, children, measure(children))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, ScalarLike, checked
from jaxreg.validation import check_range
from jaxreg.weights.average import ema_coefficients, linear_combination


class LCSCState(NamedTuple):
    """State of the search.

    Attributes:
        population: coefficients, in order of fitness, the best first.
        fitness: of each, lower is better; infinite in empty places.
        key: source of the randomness to come.
    """

    population: Float[Array, "size k"]
    fitness: Float[Array, "size"]
    key: PRNGKeyArray


class LCSCResult(NamedTuple):
    """What the search found.

    Attributes:
        coefficients: the best ever evaluated, for :func:`jaxreg.weights.linear_combination`.
        fitness: its fitness. It is the best of many on the same sample: report what is measured on a new one.
        history: the best fitness at the start and after each epoch.
    """

    coefficients: Float[Array, "k"]
    fitness: Float[Array, ""]
    history: Float[Array, "epochs+1"]


@checked
def lcsc_population(
    k: int, *, rates: int = 24, fastest: ScalarLike = 0.8, slowest: ScalarLike = 0.01
) -> Float[Array, "rates k"]:
    """Where the search starts: averages over the window, from the last checkpoint to the uniform one.

    Args:
        k: how many checkpoints, at least 2.
        rates: how many averages, at least 3.
        fastest: the largest rate ``1 - gamma`` between the two ends.
        slowest: the smallest, > 0. The others are spaced evenly in their logarithm.

    Returns:
        Coefficients ``[rates, k]`` in the window form of :func:`jaxreg.weights.ema_coefficients`.

    Raises:
        ValueError: an argument is outside its range.
    """
    check_range("k", k, "[2, inf)")
    check_range("rates", rates, "[3, inf)")
    check_range("fastest", fastest, "(0, 1]")
    check_range("slowest", slowest, "(0, 1]")
    between = jnp.exp(jnp.linspace(jnp.log(fastest), jnp.log(slowest), rates - 2))
    gammas = 1 - jnp.concatenate([jnp.ones(1), between, jnp.zeros(1)])
    return jax.vmap(lambda gamma: ema_coefficients(k, gamma, normalise=True))(gammas)


@checked
def lcsc_init(
    key: PRNGKeyArray,
    population_init: Float[Array, "initial k"],
    fitness: Float[Array, "initial"],
    *,
    population_size: int = 64,
) -> LCSCState:
    """The state of a search after its initial population was evaluated.

    Args:
        key: source of randomness.
        population_init: coefficients that each sum to one, such as :func:`lcsc_population`.
        fitness: their fitness, lower is better; NaN counts as infinite.
        population_size: how many to remember, at least as many as the initial ones.

    Returns:
        The state.

    Raises:
        ValueError: ``population_size`` is too small.
    """
    initial, k = population_init.shape
    check_range("population_size", population_size, f"[{initial}, inf)")
    population = jnp.zeros([population_size, k]).at[:initial].set(population_init)
    values = jnp.full([population_size], jnp.inf).at[:initial].set(_comparable(fitness))
    return LCSCState(*_sorted(population, values), key)


@checked
def lcsc_ask(
    state: LCSCState,
    *,
    children: int = 32,
    parent_pool: int = 16,
    mutation_std: ScalarLike = 0.03,
    mutation_prob: ScalarLike = 0.5,
    max_norm: ScalarLike | None = None,
) -> tuple[Float[Array, "children k"], LCSCState]:
    r"""Coefficients to evaluate next.

    Each child takes each of :math:`a_2, \dots, a_K` from one of two different parents, drawn from the best, with equal
    probability; then each is mutated with a given probability, by adding normal noise.

    Args:
        state: of the search.
        children: how many, at least 1.
        parent_pool: how many of the best may be parents, at least 2; only those with a finite fitness are.
        mutation_std: >= 0, standard deviation of the mutations (0.02 to 0.05 work alike, 0.1 worse).
        mutation_prob: in [0, 1], of each coefficient to mutate.
        max_norm: > 0; a child whose free coefficients have a larger Euclidean norm is scaled down to it. No bound if
            None.

    Returns:
        The children, which each sum to one, and the state to pass to :func:`lcsc_tell`.

    Raises:
        ValueError: an argument is outside its range.
    """
    check_range("children", children, "[1, inf)")
    check_range("parent_pool", parent_pool, f"[2, {len(state.population)}]")
    check_range("mutation_std", mutation_std, "[0, inf)")
    check_range("mutation_prob", mutation_prob, "[0, 1]")
    key, key_parents, key_cross, key_which, key_noise = jax.random.split(state.key, 5)
    # Places that are still empty are no parents, nor is what is as bad.
    usable = jnp.clip(jnp.sum(state.fitness < jnp.inf), 1, parent_pool)
    first, second = _distinct_pairs(key_parents, children, usable)
    free = state.population[:, 1:]
    shape = children, free.shape[1]
    child = jnp.where(jax.random.bernoulli(key_cross, 0.5, shape), free[first], free[second])
    mutated = jax.random.bernoulli(key_which, mutation_prob, shape)
    child = child + jnp.where(mutated, mutation_std * jax.random.normal(key_noise, shape), 0.0)
    if max_norm is not None:
        check_range("max_norm", max_norm, "(0, inf)")
        norm = jnp.linalg.norm(child, axis=1, keepdims=True)
        child = child * (max_norm / jnp.maximum(norm, max_norm))
    # The first coefficient takes what is left: rescaling all would move the others.
    child = jnp.concatenate([1 - jnp.sum(child, axis=1, keepdims=True), child], axis=1)
    return child, state._replace(key=key)


@checked
def lcsc_tell(state: LCSCState, children: Float[Array, "children k"], fitness: Float[Array, "children"]) -> LCSCState:
    """Adds evaluated children to the population, in place of its worst.

    Args:
        state: from :func:`lcsc_ask`.
        children: from :func:`lcsc_ask`.
        fitness: their fitness, lower is better; NaN counts as infinite.

    Returns:
        The state with the best of the population and the children.
    """
    population = jnp.concatenate([state.population, children])
    population, values = _sorted(population, jnp.concatenate([state.fitness, _comparable(fitness)]))
    size = len(state.population)
    return LCSCState(population[:size], values[:size], state.key)


@checked
def lcsc_search(
    key: PRNGKeyArray,
    checkpoints: PyTree,
    fitness_fn: Callable[[Any], Any],
    *,
    population_init: Float[Array, "initial k"],
    num_epochs: int = 40,
    children_per_epoch: int = 32,
    parent_pool: int = 16,
    mutation_std: ScalarLike = 0.03,
    mutation_prob: ScalarLike = 0.5,
    max_norm: ScalarLike | None = None,
    population_size: int = 64,
    batch_size: int | None = None,
) -> LCSCResult:
    r"""Searches for the sum of checkpoints with the best quality.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.weights import lcsc_population, lcsc_search
    >>> checkpoints = jax.random.normal(jax.random.key(0), [8, 20])
    >>> best = 1.5 * checkpoints[7] - 0.5 * checkpoints[2]
    >>> fitness_fn = lambda params: jnp.sum((params - best) ** 2)
    >>> result = lcsc_search(jax.random.key(1), checkpoints, fitness_fn, population_init=lcsc_population(8))
    >>> bool(result.history[-1] < 0.1 * result.history[0])
    True

    Args:
        key: source of randomness.
        checkpoints: raw weights (no averages) from one run at equal intervals, as a stack, oldest first. The library's
            sizes are 16 to 32; the paper has 100 to 500.
        fitness_fn: from parameters to a scalar, lower is better; must be traceable. It has to use the same noise at
            every call, or their order is chance.
        population_init: coefficients that each sum to one, such as :func:`lcsc_population`, at least ``parent_pool``.
        num_epochs: rounds of search; half of them give half of the gain.
        children_per_epoch: evaluations in each.
        parent_pool: see :func:`lcsc_ask`, as are the next three.
        mutation_std: standard deviation of the mutations.
        mutation_prob: probability of each coefficient to mutate.
        max_norm: bound on the free coefficients.
        population_size: see :func:`lcsc_init`.
        batch_size: how many to evaluate at once. One after the other if None, which is fastest on a CPU.

    Returns:
        The best coefficients ever evaluated.

    Raises:
        ValueError: an argument is outside its range.

    References:
        Liu et al., *Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better*, ICLR 2025,
        arXiv 2404.02241. Its search was not published; sizes and rates here are our choice.
    """
    check_range("num_epochs", num_epochs, "[0, inf)")
    check_range("children_per_epoch", children_per_epoch, "[1, inf)")
    if len(population_init) < parent_pool:
        raise ValueError(
            f"population_init must have at least parent_pool={parent_pool} rows, got {len(population_init)}"
        )

    def evaluate(population):
        fitness = jax.lax.map(
            lambda coefficients: fitness_fn(linear_combination(checkpoints, coefficients)),
            population,
            batch_size=batch_size,
        )
        return at_least_float32(fitness)

    def epoch(state, _):
        children, state = lcsc_ask(
            state,
            children=children_per_epoch,
            parent_pool=parent_pool,
            mutation_std=mutation_std,
            mutation_prob=mutation_prob,
            max_norm=max_norm,
        )
        state = lcsc_tell(state, children, evaluate(children))
        return state, state.fitness[0]

    population_init = jnp.asarray(population_init, jnp.float32)
    state = lcsc_init(key, population_init, evaluate(population_init), population_size=population_size)
    start = state.fitness[:1]
    state, history = jax.lax.scan(epoch, state, length=num_epochs)
    return LCSCResult(state.population[0], state.fitness[0], jnp.concatenate([start, history]))


def _comparable(fitness):
    fitness = at_least_float32(fitness)
    return jnp.where(jnp.isnan(fitness), jnp.inf, fitness)


def _sorted(population, fitness):
    order = jnp.argsort(fitness)
    return population[order], fitness[order]


def _distinct_pairs(key, count, pool):
    key_first, key_shift = jax.random.split(key)
    first = jax.random.randint(key_first, [count], 0, pool)
    return first, (first + jax.random.randint(key_shift, [count], 1, pool)) % pool
