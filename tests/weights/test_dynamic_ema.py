"""The average with dynamic weights against numbers worked by hand and optax's running average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.weights import dynamic_ema_init, dynamic_ema_update, dynamic_ema_weights

update = jax.jit(dynamic_ema_update)
weights = jax.jit(dynamic_ema_weights)


def started(start, gradient):
    """The state after a first step that has moved nothing."""
    start, gradient = jnp.asarray(start), jnp.asarray(gradient)
    return update(dynamic_ema_init(start), start, gradient)[1]


def test_by_hand():
    state = started([1.0, 2.0], [1.0, -1.0])
    params, gradient = jnp.array([4.0, -2.0]), jnp.array([3.0, 2.0])
    # |g| = 5, |theta - ema| = 3 + 4, |g - g'| = 2 + 3: 2 (1 + 5) / (7 * 5).
    a = 12 / 35
    chosen, valid = weights(state, params, gradient)
    np.testing.assert_allclose(chosen, a, rtol=1e-6)
    assert valid
    averaged, state = update(state, params, gradient)
    np.testing.assert_allclose(averaged, [1 + 3 * a, 2 - 4 * a], rtol=1e-6)
    np.testing.assert_array_equal(state.prev_grads, gradient)
    assert state.count == 2


@pytest.mark.parametrize(
    ("params", "gradient"),
    [
        ([1.0, 2.0], [3.0, 2.0]),  # not moved
        ([4.0, -2.0], [1.0, -1.0]),  # the same gradient
        ([1.1, 2.0], [3.0, 2.0]),  # 12 / (0.1 * 5) is above one
    ],
)
def test_the_fallback_stands_in_without_a_nan(params, gradient):
    state = started([1.0, 2.0], [1.0, -1.0])
    params = jnp.array(params)
    chosen, valid = weights(state, params, jnp.array(gradient))
    np.testing.assert_allclose(chosen, 0.01)
    assert not valid
    averaged, _ = update(state, params, jnp.array(gradient))
    np.testing.assert_allclose(averaged, state.ema + 0.01 * (params - state.ema), rtol=1e-6)


def test_the_first_step_has_no_earlier_gradient():
    chosen, valid = weights(dynamic_ema_init(jnp.zeros(2)), 100 * jnp.ones(2), 100 * jnp.ones(2))
    np.testing.assert_allclose(chosen, 0.01)
    assert not valid


def test_on_the_fallback_alone_it_is_an_average_of_fixed_decay():
    """With so large a scale no quotient is below one."""
    trajectory = jax.random.normal(jax.random.key(0), [20, 3])
    state, reference = dynamic_ema_init(jnp.zeros(3)), optax.ema(0.99, debias=False)
    reference_state = reference.init(jnp.zeros(3))
    for params in trajectory:
        averaged, state = update(state, params, params, scale=1e9)
        expected, reference_state = reference.update(params, reference_state)
        np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(0.01, 100))
def test_averages_lie_between_the_old_ones_and_the_parameters(seed, size):
    rng = np.random.default_rng(seed)
    start, params, before, gradient = (np.float32(size * rng.normal(size=5)) for _ in range(4))
    averaged, _ = update(started(start, before), jnp.asarray(params), jnp.asarray(gradient))
    slack = 1e-5 * size
    assert (averaged >= np.minimum(start, params) - slack).all()
    assert (averaged <= np.maximum(start, params) + slack).all()


def test_every_leaf_has_a_weight_of_its_own():
    params = {"kernel": jnp.ones([50, 50], jnp.bfloat16), "bias": jnp.ones(2, jnp.bfloat16), "count": jnp.array(3)}
    gradients = jax.tree.map(lambda leaf: 0.01 * jnp.ones(leaf.shape), params)
    _, state = update(dynamic_ema_init(params), params, gradients)
    moved = jax.tree.map(lambda leaf: leaf + 2 if leaf.ndim else jnp.array(7), params)
    turned = jax.tree.map(lambda gradient: -gradient, gradients)
    chosen, valid = weights(state, moved, turned)
    np.testing.assert_allclose(chosen["kernel"], 2 * 26 / (5000 * 50), rtol=1e-4)
    assert {name: bool(value) for name, value in valid.items()} == {"kernel": True, "bias": False, "count": False}
    averaged, state = update(state, moved, turned)
    assert jax.tree.map(jnp.result_type, averaged) == jax.tree.map(jnp.result_type, params)
    assert state.ema["kernel"].dtype == jnp.float32
    assert averaged["count"] == 7


def test_counters_may_have_the_gradients_that_jax_gives_them():
    params = {"w": jnp.array([1.0, 2.0]), "count": jnp.array(3)}
    gradients = jax.grad(lambda params: jnp.sum(jnp.square(params["w"])), allow_int=True)(params)
    averaged, state = dynamic_ema_update(dynamic_ema_init(params), params, gradients)
    np.testing.assert_allclose(state.prev_grads["w"], [2.0, 4.0])
    assert averaged["count"] == 3
    assert state.prev_grads["count"].dtype == params["count"].dtype


def test_it_scans():
    def step(state, n):
        averaged, state = dynamic_ema_update(state, {"w": n * jnp.ones(30)}, {"w": jnp.sin(n * jnp.ones(30))})
        return state, averaged

    state, averages = jax.lax.scan(step, dynamic_ema_init({"w": jnp.zeros(30)}), jnp.arange(1.0, 9.0))
    assert state.count == 8
    assert (np.diff(averages["w"], axis=0) > 0).all()


@pytest.mark.parametrize(("name", "value"), [("fallback", 1.5), ("scale", 0.0)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in .*, got {value}"):
        dynamic_ema_update(dynamic_ema_init(jnp.ones(2)), jnp.ones(2), jnp.ones(2), **{name: value})
