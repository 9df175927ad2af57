"""The archives of CycleQD against NumPy, where a model's parameters are its qualities."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.weights import (
    aggregate_archive,
    cycleqd_init,
    cycleqd_step,
    elite_probabilities,
    merge_task_vectors,
    mutate_along_basis,
    svd_basis,
)

BASE = {"quality": jnp.array([0.1, 0.1, 0.1])}


def own_quality(params):
    return params["quality"]


init = jax.jit(cycleqd_init, static_argnums=2, static_argnames="bins")
step = jax.jit(cycleqd_step, static_argnums=2, static_argnames=("mutation", "sampling"))


def archives(qualities, low=0.0, high=1.0):
    bounds = {name: jnp.broadcast_to(jnp.asarray(bound), 3) for name, bound in (("low", low), ("high", high))}
    return init({"quality": jnp.array(qualities)}, BASE, own_quality, bins=5, **bounds)


def numpy_cells(quality, bins=5, low=0.0, high=1.0):
    """Of each archive: bins closed on the right, what is outside goes to the ends."""
    edges = np.linspace(low, high, bins + 1, dtype=np.float32)
    ids = np.clip(np.digitize(np.float32(quality), edges, right=True) - 1, 0, bins - 1)
    return [tuple(np.delete(ids, task)) for task in range(3)]


EXPERTS = [[0.9, 0.2, 0.2], [0.6, 0.8, 0.4], [0.2, -3.0, 7.0]]  # on edges, and beyond the grid


class TestArchives:
    def test_every_expert_enters_every_archive_at_the_bins_of_its_other_qualities(self):
        state = archives(EXPERTS)
        occupied = np.asarray(state.occupied).reshape(3, 5, 5)
        expected = np.zeros([3, 5, 5], bool)
        for expert in EXPERTS:
            for task, cell in enumerate(numpy_cells(expert)):
                expected[task][cell] = True
                at = np.ravel_multi_index(cell, (5, 5))
                np.testing.assert_allclose(state.metrics[task, at], expert, rtol=1e-6)
                np.testing.assert_allclose(state.elites["quality"][task, at], np.array(expert) - 0.1, rtol=1e-6)
        np.testing.assert_array_equal(occupied, expected)

    def test_the_grid_may_differ_between_tasks(self):
        state = archives([[0.5, 0.5, 0.5]] * 3, low=np.float32([0, 0.4, -1]), high=np.float32([1, 0.6, 0.75]))
        cells = np.argwhere(np.asarray(state.occupied).reshape(3, 5, 5))
        np.testing.assert_array_equal(cells, [[0, 2, 4], [1, 2, 4], [2, 2, 2]])

    def test_in_a_cell_the_better_stays_whoever_comes_first(self):
        better, worse = [0.35, 0.55, 0.75], [0.3, 0.59, 0.75]
        for experts in ([better, worse, worse], [worse, better, worse]):
            state = archives(experts)
            cell = np.ravel_multi_index(numpy_cells(better)[0], (5, 5))
            np.testing.assert_allclose(state.metrics[0, cell], better, rtol=1e-6)
            cell = np.ravel_multi_index(numpy_cells(worse)[1], (5, 5))
            np.testing.assert_allclose(state.metrics[1, cell], worse, rtol=1e-6)

    def test_models_without_a_number_for_a_quality_stay_outside(self):
        state = archives([[0.5, np.nan, 0.5], [0.2, 0.7, 0.2], [0.9, 0.2, 0.2]])
        without = archives([[0.2, 0.7, 0.2], [0.9, 0.2, 0.2], [0.9, 0.2, 0.2]])
        jax.tree.map(np.testing.assert_array_equal, state._replace(basis=()), without._replace(basis=()))

    def test_one_expert_is_refused(self):
        with pytest.raises(ValueError, match=r"the number of experts must be in .*, got 1"):
            cycleqd_init({"q": jnp.ones([1, 1])}, {"q": jnp.ones(1)}, lambda p: p["q"], low=0.0, high=1.0)

    def test_experts_that_are_no_stack_are_refused(self):
        with pytest.raises(ValueError, match=r"^experts\['q'\] must have shape \[tasks, 2\], got \[2\]"):
            cycleqd_init({"q": jnp.ones(2)}, {"q": jnp.ones(2)}, lambda p: p["q"], low=0.0, high=1.0)


class TestGenerations:
    def test_without_randomness_the_child_is_the_mean_of_two_models(self):
        state = archives(EXPERTS[:2] + EXPERTS[:1])  # two different ones
        after = step(state, jax.random.key(0), own_quality, task=1, crossover_std=0.0, mutation_rate=0.0)
        child = np.mean(EXPERTS[:2], axis=0)
        for task, cell in enumerate(numpy_cells(child)):
            at = np.ravel_multi_index(cell, (5, 5))
            np.testing.assert_allclose(after.metrics[task, at], child, rtol=1e-6)
        changed = np.asarray(after.metrics != state.metrics).any(-1)
        np.testing.assert_array_equal(changed.sum(1), 1)

    def test_an_only_model_is_its_own_partner(self):
        state = archives([EXPERTS[0]] * 3)
        after = step(state, jax.random.key(0), own_quality, task=0, crossover_std=0.0, mutation_rate=0.0)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), after, state)

    def test_quality_never_falls_and_models_match_their_qualities(self):
        def generation(state, number):
            key = jax.random.fold_in(jax.random.key(3), number)
            options = dict(task=number % 3, mutation="gaussian", mutation_rate=0.2, sampling="uniform")
            state = cycleqd_step(state, key, own_quality, **options)
            return state, state.metrics

        state, history = jax.jit(lambda state: jax.lax.scan(generation, state, jnp.arange(60)))(archives(EXPERTS))
        own = np.diagonal(np.asarray(history), axis1=1, axis2=3)
        assert (own[1:] >= own[:-1]).all()
        assert (own[-1] > own[0]).any()
        occupied = np.asarray(state.occupied)
        assert occupied.sum() > 20
        models = np.asarray(state.elites["quality"])[occupied] + 0.1
        np.testing.assert_allclose(models, np.asarray(state.metrics)[occupied], rtol=1e-5, atol=1e-6)

    def test_a_negative_rate_is_refused(self):
        state = archives(EXPERTS)
        for name in ("crossover_std", "mutation_rate"):
            with pytest.raises(ValueError, match=rf"^{name} must be in \[0, inf\), got -1.0$"):
                cycleqd_step(state, jax.random.key(0), own_quality, task=0, **{name: -1.0})


def test_parents_are_likelier_the_better_they_are():
    state = archives(EXPERTS)
    occupied = np.flatnonzero(state.occupied[1])
    rows, columns = np.unravel_index(occupied, (5, 5))
    expected = np.ones(len(occupied))
    for values in (np.asarray(state.metrics)[1, occupied, 1], rows, columns):
        expected *= 0.5 + 0.8 * (values - values.min()) / np.ptp(values)
    ours = elite_probabilities(state, 1)
    np.testing.assert_allclose(ours[occupied], expected / expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(ours.sum(), 1.0, rtol=1e-5)


def test_models_that_are_alike_in_all_are_equally_likely():
    ours = elite_probabilities(archives([EXPERTS[0]] * 3), 0)
    np.testing.assert_array_equal(np.sort(ours)[-2:], [0.0, 1.0])


def test_crossover_weights_are_normal_and_sum_to_one():
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: merge_task_vectors(key, jnp.eye(2)[0], jnp.eye(2)[1], std=0.02)))
    shares = draw(keys)
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-6)
    share = shares[:, 0]
    # To first order w_1 / (w_1 + w_2) is 1/2 + (w_1 - w_2) / 4.
    np.testing.assert_allclose([share.mean(), share.std()], [0.5, 0.02 * np.sqrt(2) / 4], rtol=0.05)


@jax.jit
def jit_mutate(vector, expert, rate):
    return mutate_along_basis(jax.random.key(0), vector, svd_basis(expert), rate=rate)


class TestMutation:
    RNG = np.random.default_rng(0)
    EXPERT = {
        "kernel": (RNG.normal(size=(8, 2)) @ RNG.normal(size=(2, 6))).astype(np.float32),
        "conv": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "bias": RNG.normal(size=6).astype(np.float32),
        "count": np.array(3),
    }

    def test_it_takes_parts_of_the_experts_singular_components(self):
        zero = jax.tree.map(np.zeros_like, self.EXPERT)
        change = jit_mutate(zero, self.EXPERT, 0.1)
        for name in ("kernel", "conv"):
            matrix = self.EXPERT[name].reshape(-1, self.EXPERT[name].shape[-1])
            u, s, vh = np.linalg.svd(matrix, full_matrices=False)
            rank = np.sum(s > 1e-4)
            assert rank == {"kernel": 2, "conv": 4}[name]
            inner = u[:, :rank].T @ np.asarray(change[name]).reshape(matrix.shape) @ vh[:rank].T
            parts = np.diag(inner) / s[:rank]
            np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-5)
            assert (parts > 0).all()
            assert (parts < 0.1).all()
            assert np.ptp(parts) > 1e-3
            residual = np.asarray(change[name]).reshape(matrix.shape) - u[:, :rank] @ inner @ vh[:rank]
            assert np.abs(residual).max() < 1e-5
        np.testing.assert_array_equal(change["bias"], 0.0)
        assert change["count"] == 0

    def test_rate_zero_changes_nothing(self):
        changed = jit_mutate(self.EXPERT, self.EXPERT, 0.0)
        jax.tree.map(np.testing.assert_array_equal, changed, self.EXPERT)


def test_children_of_float32_stay_so_in_float64_mode():
    expert = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    experts = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), expert)

    def eval_fn(params):
        return jnp.stack([params["w"].sum(), -params["b"].sum()])

    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error")  # for float64 that is cut off where it is put into the archives
        basis = svd_basis(expert)
        child = merge_task_vectors(jax.random.key(0), expert, expert)
        child = mutate_along_basis(jax.random.key(1), child, basis, rate=jnp.asarray(0.1))
        assert {leaf.dtype for leaf in jax.tree.leaves(child)} == {np.dtype(np.float32)}
        state = cycleqd_init(experts, jax.tree.map(np.zeros_like, expert), eval_fn, bins=2, low=0.0, high=9.0)
        for mutation in ("svd", "gaussian"):
            state = cycleqd_step(
                state, jax.random.key(2), eval_fn, task=0, mutation=mutation, mutation_rate=jnp.asarray(0.1)
            )
    assert state.elites["w"].dtype == np.float32


def test_the_best_of_every_archive_are_merged_by_their_qualities():
    state = archives([[0.9, 0.2, 0.2], [0.3, 0.5, 0.4], [0.2, 0.1, 0.7]])
    weights = np.exp([0.9, 0.5, 0.7]) / np.exp([0.9, 0.5, 0.7]).sum()
    expected = weights @ np.array([[0.9, 0.2, 0.2], [0.3, 0.5, 0.4], [0.2, 0.1, 0.7]])
    np.testing.assert_allclose(aggregate_archive(state)["quality"], expected, rtol=1e-5)


def test_a_search_of_networks_mutates_their_matrices_along_the_experts():
    """A linear map whose targets are beyond the experts: crossover alone does not get there."""
    rng = np.random.default_rng(1)
    base = {"w": jnp.zeros([4, 3]), "b": jnp.zeros(3, jnp.bfloat16), "count": jnp.array(5)}
    direction = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    experts = {"w": direction, "b": jnp.zeros([2, 3], jnp.bfloat16), "count": jnp.array([6, 7])}

    def eval_fn(params):
        return -jnp.linalg.norm(params["w"] - 1.5 * direction, axis=(1, 2))

    @jax.jit
    def search(rate):
        def generation(state, number):
            return cycleqd_step(state, jax.random.key(number), eval_fn, task=number % 2, mutation_rate=rate), None

        start = cycleqd_init(experts, base, eval_fn, bins=6, low=-6.0, high=0.0)
        state, _ = jax.lax.scan(generation, start, jnp.arange(150))
        return start.metrics.max((0, 1)), state.metrics.max((0, 1)), aggregate_archive(state)

    start, merged, _ = search(0.0)
    np.testing.assert_allclose(merged, start, atol=0.05)
    start, found, params = search(0.1)
    assert (found > start + 0.15).all()
    assert jax.tree.map(jnp.result_type, params) == jax.tree.map(jnp.result_type, base)
    assert params["count"] == 5
