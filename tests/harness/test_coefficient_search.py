"""Searches whose optimum is known: the distance of a sum of points to a target."""

import jax
import numpy as np
import pytest

from experiments.harness.coefficient_search import (
    METHODS,
    Effort,
    check_effort,
    count_evaluations,
    evaluate_averages,
)

K = 6
EFFORT = Effort(epochs=6, children=8)
POINTS = np.random.default_rng(0).normal(size=[K, 20])


class Distance:
    """To a target; remembers how many sums it was asked for."""

    def __init__(self, target):
        self.target, self.count = target, 0

    def __call__(self, population):
        self.count += len(population)
        return np.sum((np.asarray(population) @ POINTS - self.target) ** 2, axis=1)


def search(method, target, gammas=None, effort=EFFORT):
    evaluate = Distance(target)
    averages = evaluate_averages(evaluate, K, *([] if gammas is None else [gammas]))
    return METHODS[method](evaluate, averages, effort, jax.random.key(0)), averages, evaluate


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_sum_to_one_and_are_as_good_as_is_said(method):
    found, averages, evaluate = search(method, POINTS[-1] + 0.5 * (POINTS[-1] - POINTS[0]))
    np.testing.assert_allclose(found.coefficients.sum(), 1, atol=1e-5)
    assert found.fitness == pytest.approx(Distance(evaluate.target)(found.coefficients[None])[0], rel=1e-4)
    assert found.history[-1] == found.fitness
    assert (np.diff(found.history) <= 0).all()
    assert found.evaluations == evaluate.count
    assert evaluate.count == count_evaluations(method, K, len(averages.fitness), EFFORT)


def test_the_ends_of_the_averages_are_the_last_and_the_uniform():
    _, averages, _ = search("uniform", POINTS[-1])
    assert averages.gammas[0] == 0
    assert averages.fitness[0] == 0
    np.testing.assert_allclose(averages.coefficients[-1], np.full(K, 1 / K), rtol=1e-6)
    np.testing.assert_allclose(averages.fitness[-1], np.sum((POINTS.mean(0) - POINTS[-1]) ** 2), rtol=1e-5)


def test_ema_finds_the_decay():
    weights = 0.7 ** np.arange(K - 1, -1, -1)
    target = weights / weights.sum() @ POINTS
    found, averages, _ = search("ema", target, gammas=(0.3, 0.7, 0.9))
    assert averages.gammas[averages.best] == 0.7
    assert found.fitness < 1e-9


def test_the_greedy_soup_takes_what_does_not_hurt():
    found, _, _ = search("soup", POINTS[[1, 4]].mean(0))
    np.testing.assert_allclose(found.coefficients, [0, 0.5, 0, 0, 0.5, 0])
    assert found.fitness < 1e-9


def test_the_evolutionary_search_leaves_the_simplex_and_beats_every_average():
    target = 1.5 * POINTS[-1] - 0.5 * POINTS[0]
    found, averages, _ = search("lcsc", target, effort=Effort(epochs=40, children=32))
    assert found.fitness < 0.3 * averages.fitness.min()
    assert found.coefficients.min() < 0
    assert found.coefficients.max() > 1


def test_nan_is_worse_than_anything():
    def evaluate(population):
        return np.where(np.asarray(population)[:, 0] > 0.1, np.nan, np.asarray(population)[:, 0])

    averages = evaluate_averages(evaluate, K)
    for method in ("soup", "lcsc", "random"):
        found = METHODS[method](evaluate, averages, Effort(epochs=1, children=4), jax.random.key(0))
        assert np.isfinite(found.fitness)
        assert found.coefficients[0] <= 0.1


@pytest.mark.parametrize(
    ("effort", "message"),
    [(Effort(epochs=-1), "epochs"), (Effort(children=0), "children"), (Effort(mutation_std=-1.0), "mutation_std")],
)
def test_bad_efforts_are_named(effort, message):
    with pytest.raises(ValueError, match=f"^{message} must be in "):
        check_effort(effort)
