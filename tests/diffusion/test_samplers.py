"""Switching weights within a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.diffusion import switch_params

DYN, CON = ({"a": np.full(3, value, np.float32), "b": (np.full((), value, np.float32),)} for value in (1.0, 2.0))


@pytest.mark.parametrize(("t", "value"), [(0, 2.0), (500, 2.0), (501, 1.0), (999, 1.0)])
def test_the_switch_belongs_to_the_late_steps(t, value):
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, value), switch_params(t, DYN, CON))
    traced = jax.jit(lambda t: switch_params(t, DYN, CON))(jnp.float32(t))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, value), traced)


def test_a_sampler_that_switches_between_equal_models_is_that_of_one():
    key = jax.random.key(0)
    weights = {"w": jax.random.normal(key, [4, 4])}

    def sample(params_at):
        def step(x, t):
            return x - 1e-3 * jnp.tanh(x @ params_at(t)["w"]), None

        return jax.lax.scan(step, jnp.ones([2, 4]), jnp.arange(999, 0, -10))[0]

    switching = sample(lambda t: switch_params(t, weights, weights, switch=333))
    np.testing.assert_array_equal(switching, sample(lambda t: weights))


def test_a_bad_switch_is_named():
    with pytest.raises(ValueError, match=r"switch must be in \[0, inf\), got -1"):
        switch_params(3, DYN, CON, switch=-1)
