"""Which weighted sum of checkpoints is best, by any measure of quality.

Every method is given ``evaluate``, from coefficients ``[P, K]`` to the fitness of each sum, lower is better; and the
averages it may start from, which are evaluated whatever the method.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxreg.typing import Float, PRNGKeyArray
from jaxreg.validation import check_range
from jaxreg.weights import ema_coefficients, lcsc_ask, lcsc_init, lcsc_tell

Evaluate = Callable[[Float[np.ndarray, "population k"]], Float[np.ndarray, "population"]]

GAMMAS = tuple((1 - np.geomspace(0.8, 0.01, 22)).tolist())
"""Decays of the moving averages."""

PARENTS = 16
"""Of :func:`jaxreg.weights.lcsc_ask`; there must be as many averages to start from."""


class Found(NamedTuple):
    """What a method came to.

    Attributes:
        coefficients: the best.
        fitness: theirs, on the search data.
        history: the best fitness after each round.
        evaluations: how many sums were evaluated, those of the averages included.
    """

    coefficients: Float[np.ndarray, "k"]
    fitness: float
    history: list[float]
    evaluations: int


class Averages(NamedTuple):
    """Averages over the window, as :func:`jaxreg.weights.ema_coefficients` has them.

    Attributes:
        gammas: their decays from one checkpoint to the next: first 0, the last checkpoint; last 1, the uniform average.
        coefficients: one row each.
        fitness: of each.
    """

    gammas: tuple[float, ...]
    coefficients: Float[np.ndarray, "rates k"]
    fitness: Float[np.ndarray, "rates"]

    @property
    def best(self) -> int:
        """Which moving average is best, the two ends left aside."""
        return 1 + int(np.argmin(self.fitness[1:-1]))


class Effort(NamedTuple):
    """How long to search.

    Attributes:
        epochs: rounds.
        children: evaluations in each.
        mutation_std: of :func:`jaxreg.weights.lcsc_ask`.
    """

    epochs: int = 20
    children: int = 16
    mutation_std: float = 0.03


def evaluate_averages(evaluate: Evaluate, k: int, gammas: Sequence[float] = GAMMAS) -> Averages:
    """Evaluates moving averages of ``k`` checkpoints, the last checkpoint and the uniform average."""
    gammas = (0.0, *gammas, 1.0)
    rows = np.stack([np.asarray(ema_coefficients(k, gamma, normalise=True)) for gamma in gammas])
    return Averages(gammas, rows, _comparable(evaluate(rows)))


def uniform(evaluate: Evaluate, averages: Averages, effort: Effort, key: PRNGKeyArray) -> Found:
    """The mean of all checkpoints."""
    return _of(averages, len(averages.fitness) - 1)


def ema(evaluate: Evaluate, averages: Averages, effort: Effort, key: PRNGKeyArray) -> Found:
    """The best moving average over the window."""
    return _of(averages, averages.best)


def soup(evaluate: Evaluate, averages: Averages, effort: Effort, key: PRNGKeyArray) -> Found:
    """Greedy soup: the mean of those checkpoints that, from the best to the worst, do not make it worse.

    References:
        Wortsman et al., *Model soups: averaging weights of multiple fine-tuned models improves accuracy without
        increasing inference time*, ICML 2022, arXiv 2203.05482.
    """
    k = averages.coefficients.shape[1]
    alone = _comparable(evaluate(np.eye(k)))
    order = np.argsort(alone, kind="stable")
    chosen, fitness = np.eye(k)[order[0]], float(alone[order[0]])
    history = [fitness]
    for candidate in order[1:]:
        more = np.where(np.arange(k) == candidate, 1.0, chosen)
        value = float(_comparable(evaluate((more / more.sum())[None]))[0])
        if value <= fitness:
            chosen, fitness = more, value
        history.append(fitness)
    return Found(chosen / chosen.sum(), fitness, history, len(averages.fitness) + 2 * k - 1)


def lcsc(evaluate: Evaluate, averages: Averages, effort: Effort, key: PRNGKeyArray) -> Found:
    """The evolutionary search of :mod:`jaxreg.weights.search`, from the averages on."""
    state = lcsc_init(key, averages.coefficients, averages.fitness)
    history = [float(state.fitness[0])]
    for _ in range(effort.epochs):
        children, state = lcsc_ask(
            state, children=effort.children, parent_pool=PARENTS, mutation_std=effort.mutation_std
        )
        state = lcsc_tell(state, children, _comparable(evaluate(np.asarray(children))))
        history.append(float(state.fitness[0]))
    evaluations = len(averages.fitness) + effort.epochs * effort.children
    return Found(np.asarray(state.population[0]), history[-1], history, evaluations)


def random(evaluate: Evaluate, averages: Averages, effort: Effort, key: PRNGKeyArray) -> Found:
    """As many evaluations as :func:`lcsc` has, of normal changes of all sizes to the best average."""
    chosen, fitness = averages.coefficients[np.argmin(averages.fitness)], float(averages.fitness.min())
    start, history = chosen, [fitness]
    for epoch in range(effort.epochs):
        key_scale, key_noise = jax.random.split(jax.random.fold_in(key, epoch))
        scale = 0.005 * 60 ** jax.random.uniform(key_scale, [effort.children, 1])
        free = start[1:] + scale * jax.random.normal(key_noise, [effort.children, len(start) - 1])
        drawn = np.concatenate([1 - free.sum(1, keepdims=True), free], axis=1)
        values = _comparable(evaluate(drawn))
        if values.min() < fitness:
            chosen, fitness = drawn[values.argmin()], float(values.min())
        history.append(fitness)
    return Found(chosen, fitness, history, len(averages.fitness) + effort.epochs * effort.children)


METHODS = {"uniform": uniform, "ema": ema, "soup": soup, "lcsc": lcsc, "random": random}


def count_evaluations(method: str, k: int, averages: int, effort: Effort) -> int:
    """How many sums of ``k`` checkpoints a method evaluates, averages included."""
    more = {"soup": 2 * k - 1, "lcsc": effort.epochs * effort.children, "random": effort.epochs * effort.children}
    return averages + more.get(method, 0)


def check_effort(effort: Effort) -> None:
    """Raises unless one can search so long.

    Raises:
        ValueError: a number is outside its range.
    """
    check_range("epochs", effort.epochs, "[0, inf)")
    check_range("children", effort.children, "[1, inf)")
    check_range("mutation_std", effort.mutation_std, "[0, inf)")


def _of(averages, which):
    fitness = float(averages.fitness[which])
    return Found(averages.coefficients[which], fitness, [fitness], len(averages.fitness))


def _comparable(fitness):
    fitness = np.asarray(fitness, np.float32)
    return np.where(np.isnan(fitness), np.inf, fitness)
