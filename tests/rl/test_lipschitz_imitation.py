"""Imitation under a Lipschitz constraint: closed loops computed by NumPy, and the bounds in simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.penalties import neighbor_edges
from jaxreg.rl import (
    closed_loop_regret,
    covering_radius,
    imitation_error_bound,
    imitation_lagrangian,
    linear_state_bound,
    rollout,
)

A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.005], [0.1]])
K = np.array([[0.9, 1.6]])
RNG = np.random.default_rng(0)


def dynamics(x, u):
    return jnp.asarray(A, jnp.float32) @ x + jnp.asarray(B, jnp.float32) @ u


def expert(x):
    return -jnp.asarray(K, jnp.float32) @ x


def cost(x, u):
    return x @ x + u @ u


def simulate(gain, x, disturbances):
    states, actions = [x], []
    for delta in disturbances:
        actions.append(-gain @ (states[-1] + delta))
        states.append(A @ states[-1] + B @ actions[-1])
    return np.array(states), np.array(actions)


X0, DISTURBANCES = np.array([1.0, -0.5]), 0.1 * RNG.normal(size=(30, 2))


def test_rollout_is_the_disturbed_closed_loop():
    states, actions = simulate(K, X0, DISTURBANCES)
    ours = rollout(dynamics, expert, jnp.asarray(X0), jnp.asarray(DISTURBANCES))
    np.testing.assert_allclose(ours.states, states, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.actions, actions, rtol=1e-4, atol=1e-5)


def test_regret_is_the_difference_of_mean_costs():
    def mean_cost(gain, disturbances):
        states, actions = simulate(gain, X0, disturbances)
        return (np.square(states[:-1]).sum() + np.square(actions).sum()) / len(actions)

    def policy(x):
        return 0.5 * expert(x)

    ours = closed_loop_regret(dynamics, policy, expert, cost, jnp.asarray(X0), jnp.asarray(DISTURBANCES))
    expected = mean_cost(0.5 * K, DISTURBANCES) - mean_cost(K, 0 * DISTURBANCES)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    own = closed_loop_regret(dynamics, expert, expert, cost, jnp.asarray(X0), jnp.zeros([30, 2]))
    assert float(own) == 0.0


def test_lagrangian_by_hand():
    """A policy w x on two points at distance 2, whose outputs are 6 apart: v = 36 - 4 alpha^2 on either edge."""
    states, actions = jnp.array([[0.0], [2.0]]), jnp.array([[1.0], [4.0]])
    edges, multipliers = neighbor_edges(states, neighbors=1), jnp.array([0.5, 0.25])

    def value(w, multipliers):
        return imitation_lagrangian(lambda w, x: w * x, w, states, actions, edges, multipliers, bound=2.0)

    (total, violation), gradient = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(3.0, multipliers)
    np.testing.assert_allclose(violation, [20.0, 20.0])
    np.testing.assert_allclose(total, (1 + 4) / 2 + 0.75 * 20)
    # d/dw: of the error 2 (6 - 4) 2 / 2, of each violation 2 w 4; the multipliers are constants.
    np.testing.assert_allclose(gradient[0], 4 + 0.75 * 24)
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_error_bound_holds_and_is_reached():
    """Demonstrations of |x| at -1, 0 and 1, copied by a function that falls between them as fast as it may."""
    states, region = jnp.array([[-1.0], [0.0], [1.0]]), jnp.linspace(-1, 1, 401)[:, None]
    radius = covering_radius(states, region)
    np.testing.assert_allclose(radius, 0.5, atol=1e-6)
    steepness = 2.0
    copied = jnp.abs(states) - 0.1
    policy = jnp.max(copied - steepness * jnp.abs(region - states.T)[:, :, None], axis=1)
    errors = jnp.abs(policy - jnp.abs(region))
    bound = imitation_error_bound(0.1, bound=steepness, expert_lipschitz=1.0, radius=radius)
    np.testing.assert_allclose(bound, 0.1 + 3 * 0.5, rtol=1e-6)
    assert float(errors.max()) <= float(bound)
    # Next to a demonstration at 0 the copy falls and the expert rises: there the bound with the true distance is met.
    near = int(jnp.argmin(jnp.abs(region[:, 0] - 0.25)))
    np.testing.assert_allclose(errors[near], 0.1 + 3 * 0.25, atol=1e-5)


def test_linear_bound_holds_in_simulation_and_is_of_the_right_size():
    """A policy that errs by e at most and is disturbed by z at most, both as badly as a sign can have it."""
    closed = A - B @ K
    rate = 0.96
    powers = [np.linalg.norm(np.linalg.matrix_power(closed, t), 2) / rate**t for t in range(300)]
    overshoot = max(powers)
    assert np.argmax(powers) < 250  # the bound M r^t is one for all times
    e, z, alpha = 0.2, 0.1, np.linalg.norm(K)
    bound = linear_state_bound(
        e, bound=alpha, disturbance=z, input_norm=np.linalg.norm(B), overshoot=overshoot, rate=rate
    )
    worst_direction = z * K[0] / alpha
    states = [X0]
    for _ in range(400):
        push = np.sign(states[-1][0] + 1e-9)
        action = -K @ (states[-1] - push * worst_direction) + push * e
        states.append(A @ states[-1] + B @ action)
    late = np.linalg.norm(states[200:], axis=1).max()
    assert 0.05 * float(bound) < late <= float(bound)


def test_a_policy_of_other_outputs_is_refused():
    states, actions, edges = jnp.zeros([5, 2]), jnp.zeros([5, 3]), jnp.array([[0, 1]])
    with pytest.raises(ValueError, match=r"apply_fn\(params, states\) must have shape \[5, 3\], got \[5, 1\]"):
        imitation_lagrangian(lambda _, x: x[:, :1], None, states, actions, edges, jnp.zeros(1), bound=1.0)


def test_a_half_precision_start_takes_disturbances_of_single():
    trajectory = rollout(lambda x, u: x + u, lambda x: -0.5 * x, jnp.ones(2, jnp.bfloat16), jnp.zeros([3, 2]))
    np.testing.assert_allclose(trajectory.states[:, 0], 0.5 ** np.arange(4))
