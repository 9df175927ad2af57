"""Combinations of checkpoints against NumPy and running averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxreg.weights import (
    checkpoint_buffer_init,
    checkpoint_buffer_stack,
    checkpoint_buffer_update,
    ema_coefficients,
    linear_combination,
)


def checkpoints(k=5):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "kernel": jax.random.normal(keys[0], [k, 4, 8]),
        "scale": jax.random.normal(keys[1], [k]),
        "half": jax.random.normal(keys[2], [k, 3], jnp.bfloat16),
        "count": jnp.arange(k, dtype=jnp.int32) * 10,
    }


class TestLinearCombination:
    def test_it_is_the_weighted_sum(self):
        stack, a = checkpoints(), np.array([2.0, -1.5, 0.0, 0.25, 0.25], np.float32)
        combined = jax.jit(linear_combination)(stack, a)
        for name in ("kernel", "scale"):
            expected = sum(a[i] * np.asarray(stack[name][i], np.float64) for i in range(5))
            np.testing.assert_allclose(combined[name], expected, rtol=1e-5, atol=1e-6)
        wide = a @ np.asarray(stack["half"], np.float32)
        np.testing.assert_array_equal(combined["half"], jnp.asarray(wide).astype(jnp.bfloat16))
        assert combined["count"] == 40

    def test_a_one_hot_vector_returns_its_checkpoint_bit_for_bit(self):
        stack = checkpoints()
        for which, one_hot in enumerate(jnp.eye(5)):
            combined = linear_combination(stack, one_hot)
            for name in ("kernel", "scale", "half"):
                np.testing.assert_array_equal(combined[name], stack[name][which])

    def test_a_population_at_once(self):
        stack, population = checkpoints(), jax.random.normal(jax.random.key(1), [7, 5])
        together = linear_combination(stack, population)
        mapped = jax.vmap(functools.partial(linear_combination, stack))(population)
        assert jax.tree.map(jnp.shape, together) == jax.tree.map(jnp.shape, mapped)
        np.testing.assert_allclose(together["kernel"], mapped["kernel"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(together["count"], np.full(7, 40))

    def test_one_contraction_per_leaf(self):
        stack = {"a": jnp.ones([5, 3]), "b": jnp.ones([5, 2, 2])}
        program = str(jax.make_jaxpr(linear_combination)(stack, jnp.ones([7, 5])))
        assert program.count("dot_general") == 2

    def test_sharded_leaves_stay_sharded(self):
        mesh = Mesh(np.array(jax.devices()), ("model",))
        stack, a = checkpoints(), jnp.array([0.5, -0.5, 0.0, 0.25, 0.75])
        over = NamedSharding(mesh, PartitionSpec(None, None, "model"))
        sharded = {**stack, "kernel": jax.device_put(stack["kernel"], over)}
        combined = jax.jit(linear_combination)(sharded, a)
        assert combined["kernel"].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "model")), 2)
        np.testing.assert_allclose(combined["kernel"], linear_combination(stack, a)["kernel"], rtol=1e-6, atol=1e-6)

    def test_stacks_of_another_size_are_named(self):
        with pytest.raises(ValueError, match=r"leading axis of 4, got shape \(5, 3\)"):
            linear_combination({"w": jnp.ones([5, 3])}, jnp.ones(4))


class TestEmaCoefficients:
    @pytest.mark.parametrize(("gamma", "interval"), [(0.0, 1), (0.7, 1), (0.99, 20), (1.0, 3)])
    def test_they_are_those_of_the_running_average(self, gamma, interval):
        theta = np.random.default_rng(0).normal(size=[6, 4])
        average = theta[0]
        for row in theta[1:]:
            average = gamma**interval * average + (1 - gamma**interval) * row
        ours = ema_coefficients(6, gamma, interval=interval)
        np.testing.assert_allclose(ours @ theta, average, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.sum(), 1.0, rtol=1e-6)

    def test_over_a_window(self):
        np.testing.assert_allclose(ema_coefficients(3, 0.5, normalise=True), [1 / 7, 2 / 7, 4 / 7], rtol=1e-6)
        np.testing.assert_allclose(ema_coefficients(4, 0.0, normalise=True), [0, 0, 0, 1])
        np.testing.assert_allclose(ema_coefficients(4, 1.0, normalise=True), [0.25] * 4)

    def test_refused(self):
        with pytest.raises(ValueError, match=r"^gamma must be in \[0, 1\], got 1.5$"):
            ema_coefficients(3, 1.5)


class TestCheckpointBuffer:
    def test_it_keeps_the_last_checkpoints_in_order(self):
        def step(buffer, n):
            params = {"w": n * jnp.ones(2), "steps": n}
            return checkpoint_buffer_update(buffer, params, n, interval=3), ()

        empty = checkpoint_buffer_init({"w": jnp.ones(2), "steps": jnp.int32(0)}, 4)
        buffer, _ = jax.lax.scan(step, empty, jnp.arange(1, 21))
        stack = checkpoint_buffer_stack(buffer)
        np.testing.assert_array_equal(stack["steps"], [9, 12, 15, 18])
        np.testing.assert_array_equal(stack["w"], np.repeat([[9.0], [12], [15], [18]], 2, axis=1))
        assert buffer.count == 6

    def test_what_is_not_filled_yet_comes_first(self):
        buffer = checkpoint_buffer_init(jnp.float32(0), 3)
        for value in (5.0, 6.0):
            buffer = checkpoint_buffer_update(buffer, jnp.float32(value), 0)
        np.testing.assert_array_equal(checkpoint_buffer_stack(buffer), [0, 5, 6])
