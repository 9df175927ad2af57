"""Searching coefficients against least squares, where the best ones are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.weights import (
    lcsc_ask,
    lcsc_init,
    lcsc_population,
    lcsc_search,
    lcsc_tell,
    linear_combination,
)

K = 16
THETA = jax.random.normal(jax.random.key(0), [K, 40])
FREE = 0.1 * jax.random.normal(jax.random.key(4), [K - 1])
TARGET = THETA[0] + FREE @ (THETA[1:] - THETA[0])


def squared_distance(params, target=TARGET):
    return jnp.sum(jnp.square(params - target))


class TestSearch:
    def test_it_approaches_a_point_in_the_affine_hull(self):
        search = jax.jit(lambda key: lcsc_search(key, THETA, squared_distance, population_init=lcsc_population(K)))
        result = search(jax.random.key(2))
        assert result.fitness < 0.015 * result.history[0]
        assert (jnp.diff(result.history) <= 0).all()
        assert len(result.history) == 41
        np.testing.assert_allclose(
            squared_distance(linear_combination(THETA, result.coefficients)), result.fitness, rtol=1e-5
        )
        np.testing.assert_allclose(result.coefficients.sum(), 1.0, atol=1e-5)

    def test_it_stays_above_least_squares(self):
        """The target is off the hull; NumPy knows its projection."""
        target = np.asarray(TARGET + jax.random.normal(jax.random.key(3), [40]), np.float64)
        base, edges = np.asarray(THETA[0], np.float64), np.asarray(THETA[1:] - THETA[0], np.float64)
        free = np.linalg.lstsq(edges.T, target - base, rcond=None)[0]
        bound = np.sum((base + free @ edges - target) ** 2)
        result = lcsc_search(
            jax.random.key(0),
            THETA,
            lambda params: squared_distance(params, jnp.asarray(target, jnp.float32)),
            population_init=lcsc_population(K),
            batch_size=8,
        )
        assert bound <= result.fitness < bound + 0.1 * (result.history[0] - bound)

    def test_it_is_never_worse_than_its_start(self):
        """Fitness prefers the last checkpoint, which is in the initial population."""
        result = lcsc_search(
            jax.random.key(0),
            THETA,
            lambda params: squared_distance(params, THETA[-1]),
            population_init=lcsc_population(K),
            num_epochs=2,
        )
        assert result.fitness == 0.0
        np.testing.assert_array_equal(result.coefficients, jnp.eye(K)[-1])

    def test_a_population_smaller_than_the_parents_is_refused(self):
        with pytest.raises(ValueError, match="population_init must have at least parent_pool=16 rows, got 4"):
            lcsc_search(
                jax.random.key(0), THETA, squared_distance, population_init=lcsc_population(K, rates=4), num_epochs=1
            )


class TestSteps:
    def state(self, **options):
        population = lcsc_population(K)
        return lcsc_init(jax.random.key(0), population, jnp.arange(24.0), **options)

    def test_driven_step_by_step_it_is_the_same_search(self):
        population, epochs = lcsc_population(K), 3
        measure = jax.vmap(lambda a: squared_distance(linear_combination(THETA, a)))
        state = lcsc_init(jax.random.key(5), population, measure(population))
        for _ in range(epochs):
            children, state = lcsc_ask(state)
            state = lcsc_tell(state, children, measure(children))
        result = lcsc_search(jax.random.key(5), THETA, squared_distance, population_init=population, num_epochs=epochs)
        np.testing.assert_allclose(state.population[0], result.coefficients, rtol=1e-5, atol=1e-7)

    def test_children_take_every_coefficient_from_one_of_two_parents(self):
        children, _ = lcsc_ask(self.state(), children=200, parent_pool=2, mutation_std=0.0)
        parents = np.asarray(lcsc_population(K))[:2, 1:]
        from_first = np.asarray(children)[:, 1:] == parents[0]
        assert (from_first | (np.asarray(children)[:, 1:] == parents[1])).all()
        np.testing.assert_allclose(from_first[:, parents[0] != parents[1]].mean(), 0.5, atol=0.03)

    def test_parents_are_the_best_and_always_two(self):
        """Parents that are one-hot: a child without mutation has a part of each, or none."""
        population = jnp.eye(9)[1:]
        state = lcsc_init(jax.random.key(0), population, jnp.arange(8.0)[::-1])
        children, _ = lcsc_ask(state, children=400, parent_pool=3, mutation_std=0.0)
        used = np.asarray(children)[:, 1:] != 0
        assert not used[:, :5].any()
        assert used[:, 5:].any(axis=0).all()
        # Each coefficient is 1 for one parent of two, if that is where it is taken from: a quarter has both.
        np.testing.assert_allclose((used.sum(1) == 2).mean(), 0.25, atol=0.07)

    @pytest.mark.parametrize("unusable", [np.inf, np.nan])
    def test_empty_places_and_what_diverged_are_no_parents(self, unusable):
        population = jnp.full([6, K], 1 / K).at[4:].set(-7.0)
        state = lcsc_init(jax.random.key(0), population, jnp.array([3.0, 2.0, 1.0, 0.0, unusable, unusable]))
        children, _ = lcsc_ask(state, mutation_std=0.0)
        np.testing.assert_allclose(children, 1 / K, rtol=1e-5)
        one = lcsc_init(jax.random.key(0), population[:2], jnp.array([unusable, 1.0]))
        np.testing.assert_allclose(lcsc_ask(one, mutation_std=0.0)[0], 1 / K, rtol=1e-5)

    def test_mutations(self):
        population = jnp.tile(jnp.eye(K)[:1], [24, 1])
        state = lcsc_init(jax.random.key(0), population, jnp.zeros(24))
        children, _ = lcsc_ask(state, children=2000, mutation_std=0.2, mutation_prob=0.3)
        changes = np.asarray(children)[:, 1:]
        np.testing.assert_allclose((changes != 0).mean(), 0.3, atol=0.01)
        np.testing.assert_allclose(changes[changes != 0].std(), 0.2, rtol=0.03)
        np.testing.assert_allclose(children.sum(axis=1), 1.0, atol=1e-5)

    def test_the_norm_can_be_bounded(self):
        children, _ = lcsc_ask(self.state(), children=50, mutation_std=3.0, mutation_prob=1.0, max_norm=0.7)
        np.testing.assert_allclose(jnp.linalg.norm(children[:, 1:], axis=1), 0.7, rtol=1e-5)
        np.testing.assert_allclose(children.sum(axis=1), 1.0, atol=1e-5)

    def test_the_worst_are_replaced_and_the_best_never_lost(self):
        state = self.state(population_size=24)
        children = jnp.ones([3, K]) / K
        after = lcsc_tell(state, children, jnp.array([-1.0, 100.0, jnp.nan]))
        np.testing.assert_array_equal(after.fitness, [-1.0, *range(23)])
        np.testing.assert_array_equal(after.population[0], children[0])
        np.testing.assert_array_equal(after.population[1:], state.population[:-1])

    def test_the_initial_population_goes_from_the_last_checkpoint_to_the_uniform_average(self):
        population = np.asarray(lcsc_population(5, rates=6))
        np.testing.assert_allclose(population[0], [0, 0, 0, 0, 1])
        np.testing.assert_allclose(population[-1], [0.2] * 5, rtol=1e-6)
        np.testing.assert_allclose(population[1, -1] / population[1, -2], 1 / 0.2, rtol=1e-4)
        np.testing.assert_allclose(population[4, -1] / population[4, -2], 1 / 0.99, rtol=1e-4)
        np.testing.assert_allclose(population.sum(axis=1), 1.0, rtol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"parent_pool": 1}, "parent_pool"), ({"mutation_prob": 2.0}, "mutation_prob"), ({"children": 0}, "children")],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=f"^{message} must be in"):
            lcsc_ask(self.state(), **options)
