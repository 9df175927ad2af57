"""Learning a feedback policy from an expert's actions, no steeper than it has to be.

A policy that follows noisy demonstrations exactly changes fast between them, and answers small errors of measurement
with large actions. Bounding its Lipschitz constant gives up some of the fit for robustness of the closed loop. The
constraint is put on neighbouring demonstrations, with multipliers (:mod:`jaxreg.penalties`)::

    def loss(params, multipliers):
        value, violation = imitation_lagrangian(
            policy, params, states, actions, edges, multipliers, bound=bound
        )
        return value, dual_ascent(multipliers, violation, learning_rate=0.01)

Dynamics are functions ``(state, action) -> state``, policies ``state -> action``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.penalties import pairwise_lipschitz_violation
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, PyTree, ScalarLike, checked
from jaxreg.validation import check_range, check_same_shapes


class Trajectory(NamedTuple):
    """Result of :func:`rollout`.

    Attributes:
        states: from the first to the one after the last action.
        actions: one for each state but the last.
    """

    states: Float[Array, "horizon+1 states"]
    actions: Float[Array, "horizon actions"]


@checked
def imitation_lagrangian(
    apply_fn: Callable[[Any, Any], Any],
    params: PyTree,
    states: Float[Array, "items states"],
    actions: Float[Array, "items actions"],
    edges: Int[Array, "edges 2"],
    multipliers: Float[Array, "edges"],
    *,
    bound: ScalarLike,
) -> tuple[Float[Array, ""], Float[Array, "edges"]]:
    r"""Imitation of an expert under a Lipschitz constraint, as a Lagrangian.

    .. math:: \frac1N \sum_i \|\pi_\theta(x_i) - u_i\|^2 + \sum_{(i, j)} \lambda_{ij} v_{ij}

    with the violations :math:`v` of :func:`jaxreg.penalties.pairwise_lipschitz_violation`. Descend it in the parameters
    and ascend in the multipliers (:func:`jaxreg.penalties.dual_ascent`).

    Args:
        apply_fn: ``pi``, from parameters and states to actions.
        params: ``theta``.
        states: ``x`` of the demonstrations.
        actions: ``u``, what the expert did there.
        edges: pairs of demonstrations that are constrained (:func:`jaxreg.penalties.neighbor_edges`).
        multipliers: ``lambda >= 0``. No gradient flows through them.
        bound: ``alpha >= 0``, the Lipschitz constant allowed; about that of the expert.

    Returns:
        The Lagrangian, at least float32, and the violation of each edge.

    Raises:
        ValueError: ``bound`` is negative, or the policy's outputs have not the shape of ``actions``.

    References:
        Al Makdah et al., *Learning Lipschitz Feedback Policies from Expert Demonstrations: Closed-Loop Guarantees,
        Generalization and Robustness*, 2022, arXiv 2103.16629.
    """
    outputs = apply_fn(params, states)
    check_same_shapes("apply_fn(params, states)", outputs, actions)
    violation = pairwise_lipschitz_violation(outputs, states, edges, bound=bound)
    error = jnp.sum(jnp.square(at_least_float32(outputs) - actions), axis=-1)
    return jnp.mean(error) + jnp.sum(jax.lax.stop_gradient(multipliers) * violation), violation


@checked
def rollout(
    dynamics: Callable[[Any, Any], Any],
    policy: Callable[[Any], Any],
    initial_state: Float[Array, "states"],
    disturbances: Float[Array, "horizon states"],
) -> Trajectory:
    r"""Runs a policy in its closed loop, on disturbed measurements.

    .. math:: u_t = \pi(x_t + \delta_t), \qquad x_{t + 1} = f(x_t, u_t)

    Args:
        dynamics: ``f``.
        policy: ``pi``.
        initial_state: ``x_0``.
        disturbances: ``delta``, of the measurements; zero for the nominal loop.

    Returns:
        States and actions, the states in the wider dtype of the two.

    References:
        Al Makdah et al., *Learning Lipschitz Feedback Policies from Expert Demonstrations: Closed-Loop Guarantees,
        Generalization and Robustness*, 2022, arXiv 2103.16629.
    """

    def step(state, disturbance):
        action = policy(state + disturbance)
        return dynamics(state, action), (state, action)

    dtype = jnp.result_type(initial_state, disturbances)
    start, disturbances = (jnp.asarray(x, dtype) for x in (initial_state, disturbances))
    last, (states, actions) = jax.lax.scan(step, start, disturbances)
    return Trajectory(jnp.concatenate([states, last[None]]), actions)


@checked
def closed_loop_regret(
    dynamics: Callable[[Any, Any], Any],
    policy: Callable[[Any], Any],
    expert: Callable[[Any], Any],
    cost: Callable[[Any, Any], Any],
    initial_state: Float[Array, "states"],
    disturbances: Float[Array, "horizon states"],
) -> Float[Array, ""]:
    r"""How much more a policy costs in its own closed loop than the expert in his.

    .. math:: \frac1T \sum_{t < T} \bigl(c(x_t, u_t) - c(x^*_t, u^*_t)\bigr)

    Args:
        dynamics: as for :func:`rollout`.
        policy: the one that is judged, on disturbed measurements.
        expert: from the same state, undisturbed.
        cost: ``c(state, action)``, a number.
        initial_state: ``x_0``.
        disturbances: of the measurements of the policy; zero for the nominal regret.

    Returns:
        The regret a step; negative if the policy is cheaper.

    References:
        Al Makdah et al., *Learning Lipschitz Feedback Policies from Expert Demonstrations: Closed-Loop Guarantees,
        Generalization and Robustness*, 2022, arXiv 2103.16629.
    """

    def mean_cost(policy, disturbances):
        states, actions = rollout(dynamics, policy, initial_state, disturbances)
        return jnp.mean(jax.vmap(cost)(states[:-1], actions))

    return mean_cost(policy, disturbances) - mean_cost(expert, jnp.zeros_like(disturbances))


@checked
def covering_radius(states: Float[Array, "items states"], region: Float[Array, "points states"]) -> Float[Array, ""]:
    """How far a point of a region can be from the nearest demonstration.

    Args:
        states: of the demonstrations.
        region: points that stand for the region.

    Returns:
        The largest Euclidean distance of a point from the demonstration nearest to it.
    """
    differences = at_least_float32(region)[:, None] - states
    return jnp.max(jnp.min(jnp.linalg.norm(differences, axis=-1), axis=1))


@checked
def imitation_error_bound(
    in_sample_error: ScalarLike, *, bound: ScalarLike, expert_lipschitz: ScalarLike, radius: ScalarLike
) -> Float[Array, ""]:
    r"""How far the actions of a Lipschitz policy can be from the expert's, anywhere in the region.

    .. math:: \|\pi(x) - \pi^*(x)\| \le e + (\alpha + L^*)\, r

    Args:
        in_sample_error: ``e >= 0``, the largest error at a demonstration.
        bound: ``alpha >= 0``, Lipschitz constant of the policy.
        expert_lipschitz: ``L* >= 0``, that of the expert.
        radius: ``r >= 0``, of :func:`covering_radius`.

    Returns:
        The bound.

    Raises:
        ValueError: a number is negative.

    References:
        Al Makdah et al., *Learning Lipschitz Feedback Policies from Expert Demonstrations: Closed-Loop Guarantees,
        Generalization and Robustness*, 2022, arXiv 2103.16629.
    """
    check_range("in_sample_error", in_sample_error, "[0, inf)")
    check_range("bound", bound, "[0, inf)")
    check_range("expert_lipschitz", expert_lipschitz, "[0, inf)")
    check_range("radius", radius, "[0, inf)")
    return jnp.asarray(in_sample_error + (bound + expert_lipschitz) * radius, jnp.float32)


@checked
def linear_state_bound(
    action_error: ScalarLike,
    *,
    bound: ScalarLike,
    disturbance: ScalarLike,
    input_norm: ScalarLike,
    overshoot: ScalarLike,
    rate: ScalarLike,
) -> Float[Array, ""]:
    r"""How far a linear system stays from rest in the end, controlled by an imitation on disturbed measurements.

    .. math:: \limsup_t \|x_t\| \le \frac{M \|B\| (e + \alpha z)}{1 - r}

    for :math:`x_{t + 1} = A x_t + B u_t` and an expert :math:`u = -K x` with :math:`\|(A - B K)^t\| \le M r^t`.

    Args:
        action_error: ``e >= 0``, distance of the policy's actions from the expert's.
        bound: ``alpha >= 0``, Lipschitz constant of the policy.
        disturbance: ``z >= 0``, largest error of a measurement.
        input_norm: ``||B|| >= 0``.
        overshoot: ``M >= 1``.
        rate: ``r`` in [0, 1).

    Returns:
        The bound.

    Raises:
        ValueError: a number is outside its range.

    References:
        Derived for the linear case; after Al Makdah et al., *Learning Lipschitz Feedback Policies from Expert
        Demonstrations: Closed-Loop Guarantees, Generalization and Robustness*, 2022, arXiv 2103.16629.
    """
    check_range("action_error", action_error, "[0, inf)")
    check_range("bound", bound, "[0, inf)")
    check_range("disturbance", disturbance, "[0, inf)")
    check_range("input_norm", input_norm, "[0, inf)")
    check_range("overshoot", overshoot, "[1, inf)")
    check_range("rate", rate, "[0, 1)")
    return jnp.asarray(overshoot * input_norm * (action_error + bound * disturbance) / (1 - rate), jnp.float32)
