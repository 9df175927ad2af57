"""Optimistic mirror descent against its recursion by hand, multiplicative weights, NumPy and SciPy's minimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxreg.data import sea_losses
from jaxreg.metrics import static_regret
from jaxreg.optim import dynamic_ensemble, optimistic_md

GRADIENTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def play(learner, x0, gradients):
    """Points and states, round by round."""

    def step(state, gradient):
        state_after = learner.update(state, gradient)
        return state_after, (learner.predict(state), state_after)

    return jax.jit(lambda g: jax.lax.scan(step, learner.init(x0), g)[1])(jnp.asarray(gradients))


def test_without_a_domain_and_with_a_constant_step_it_takes_two_steps_forward_and_one_back():
    """x_{t+1} = x_t - 2 eta g_t + eta g_{t-1}."""
    points, _ = play(optimistic_md(step=0.1), jnp.ones(3), GRADIENTS)
    x, before = np.ones(3), np.zeros(3)
    for t, gradient in enumerate(GRADIENTS):
        np.testing.assert_allclose(points[t], x, rtol=1e-4, atol=1e-5)
        x, before = x - 0.2 * gradient + 0.1 * before, gradient


def test_adaptive_steps_by_numpy():
    d, g, smooth, radius = 2.0, 1.5, 0.3, 1.0
    learner = optimistic_md(diameter=d, grad_bound=g, smoothness=smooth, radius=radius)
    points, states = play(learner, jnp.zeros(3), GRADIENTS)

    def project(x):
        return x / max(1.0, np.linalg.norm(x) / radius)

    anchor, last, variation = np.zeros(3), np.zeros(3), 0.0
    for t, gradient in enumerate(GRADIENTS.astype(np.float64)):
        eta = d / np.sqrt(10 * d**2 * smooth**2 + 4 * g**2 + variation)
        np.testing.assert_allclose(points[t], project(anchor - eta * last), rtol=1e-4, atol=1e-5)
        anchor = project(anchor - eta * gradient)
        variation += np.sum((gradient - last) ** 2) if t else 0.0
        last = gradient
        np.testing.assert_allclose(states.variation[t], variation, rtol=1e-5)


def test_constant_gradients_have_no_variation():
    _, states = play(optimistic_md(diameter=2.0, grad_bound=1.0), jnp.zeros(3), np.ones((9, 3), np.float32))
    np.testing.assert_array_equal(states.variation, np.zeros(9))


def test_strongly_convex_steps_by_hand():
    points, _ = play(optimistic_md(step="strongly_convex", strong_convexity=4.0), jnp.zeros(1), [[1.0], [2.0], [3.0]])
    # eta = 1/2, 1/4, 1/6; anchors 0, -1/2, -1; expected gradients 0, 1, 2.
    np.testing.assert_allclose(points[:, 0], [0.0, -0.5 - 0.25, -1.0 - 2 / 6], rtol=1e-6)


def test_entropy_is_optimistic_multiplicative_weights():
    points, states = play(optimistic_md(geometry="entropy", step=0.7), jnp.full(3, 1 / 3), GRADIENTS)
    for t in range(len(GRADIENTS)):
        expected = GRADIENTS[:t].sum(0) + (GRADIENTS[t - 1] if t else 0.0)
        weights = np.exp(-0.7 * expected.astype(np.float64))
        np.testing.assert_allclose(points[t], weights / weights.sum(), rtol=1e-4)
    learner = optimistic_md(geometry="entropy", diameter=1.0, grad_bound=1.0)
    _, states = play(learner, jnp.full(3, 1 / 3), GRADIENTS)
    np.testing.assert_allclose(states.variation[-1], np.sum(np.abs(np.diff(GRADIENTS, axis=0)).max(1) ** 2), rtol=1e-5)


class TestNewton:
    settings = dict(geometry="newton", diameter=2.0, grad_bound=0.5, exp_concavity=0.8)
    beta = 0.5 * min(1 / (4 * 0.5 * 2.0), 0.8)

    def test_metric_sums_outer_products(self):
        _, states = play(optimistic_md(**self.settings), jnp.zeros(3), GRADIENTS)
        metric = (1 + self.beta / 2 * 0.25) * np.eye(3)
        for t, gradient in enumerate(GRADIENTS):
            metric = metric + self.beta / 2 * np.outer(gradient, gradient)
            np.testing.assert_allclose(states.metric[t], metric, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("radius", [None, 0.6])
    def test_points_minimize_what_they_should(self, radius):
        points, states = play(optimistic_md(**self.settings, radius=radius), jnp.zeros(3), 0.3 * GRADIENTS)
        t = len(GRADIENTS) - 1
        anchor, metric, guess = (
            np.asarray(s[t - 1], np.float64) for s in (states.anchor, states.metric, states.gradient)
        )

        def objective(x):
            return guess @ x + 0.5 * (x - anchor) @ metric @ (x - anchor)

        ball = [] if radius is None else [{"type": "ineq", "fun": lambda x: radius**2 - x @ x}]
        found = scipy.optimize.minimize(
            objective, np.zeros(3), method="SLSQP", constraints=ball, options={"ftol": 1e-12}
        )
        np.testing.assert_allclose(points[t], found.x, atol=2e-4)
        if radius is not None:
            assert np.linalg.norm(points, axis=1).max() <= radius * (1 + 1e-6)


def test_predictable_losses_have_constant_regret():
    """After the first round the learner knows them, and walks to the best point at its own pace."""
    regrets = []
    for rounds in (100, 1000):
        losses = sea_losses(jax.random.key(0), rounds, 4, flip_every=10**6).means
        points, _ = play(optimistic_md(diameter=2.0, grad_bound=1.0, radius=1.0), jnp.zeros(4), losses)
        regrets.append(float(static_regret(jnp.sum(points * losses, axis=1), losses @ -losses[0][:, None])))
    np.testing.assert_allclose(regrets, [1.0, 1.0], atol=1e-3)  # one round at 0, then at the best point


class TestEnsemble:
    def test_one_round_horizon_is_optimistic_descent(self):
        """A single expert, of step size D / (2 G)."""
        settings = dict(diameter=2.0, grad_bound=4.0, radius=1.0)
        points, _ = play(dynamic_ensemble(horizon=1, **settings), jnp.zeros(3), GRADIENTS)
        alone, _ = play(optimistic_md(step=0.25, radius=1.0), jnp.zeros(3), GRADIENTS)
        np.testing.assert_allclose(points, alone, rtol=1e-5, atol=1e-6)

    def test_by_numpy(self):
        d, g, smooth, horizon = 2.0, 3.0, 0.5, 16
        learner = dynamic_ensemble(horizon=horizon, diameter=d, grad_bound=g, smoothness=smooth, radius=1.0)
        points, _ = play(learner, jnp.zeros(3), GRADIENTS)
        steps = np.minimum(d / (2 * g * 4) * 2.0 ** np.arange(3), 1 / (4 * smooth))

        def project(x):
            return x / np.maximum(1.0, np.linalg.norm(x, axis=1, keepdims=True))

        anchors, played, last = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
        total, surprise = np.zeros(3), 0.0
        for t, gradient in enumerate(GRADIENTS.astype(np.float64)):
            x = project(anchors - steps[:, None] * last)
            movement = 2 * smooth * np.sum((x - played) ** 2, axis=1)
            rate = np.sqrt(np.log(3) / ((g * d) ** 2 + surprise))
            weights = np.exp(-rate * (total + x @ last + movement))
            np.testing.assert_allclose(points[t], weights / weights.sum() @ x, rtol=1e-3, atol=1e-5)
            total += x @ gradient + movement
            surprise += np.abs(x @ (gradient - last)).max() ** 2
            anchors, played, last = project(anchors - steps[:, None] * gradient), x, gradient


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimistic_md(diameter=2.0, grad_bound=1.0, radius=1.0),
        lambda: optimistic_md(step="strongly_convex", strong_convexity=0.5),
        lambda: optimistic_md(geometry="newton", diameter=2.0, grad_bound=1.0, exp_concavity=0.5, radius=1.0),
        lambda: optimistic_md(geometry="entropy", diameter=2.0, grad_bound=1.0),
        lambda: dynamic_ensemble(horizon=8, diameter=2.0, grad_bound=1.0, smoothness=0.5),
    ],
    ids=["adaptive", "strongly convex", "newton", "entropy", "ensemble"],
)
def test_points_and_state_of_float32_stay_so_in_the_mode_of_64_bits(make):
    with jax.enable_x64(True):
        points, states = play(make(), jnp.full(3, 1 / 3, jnp.float32), GRADIENTS)
    assert points.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(states)} == {"float32", "int32"}


def test_learners_can_be_vmapped_over_their_constants():
    def last(diameter, grad_bound):
        learner = optimistic_md(diameter=diameter, grad_bound=grad_bound, radius=diameter / 2)
        return play(learner, jnp.zeros(3), GRADIENTS)[0][-1]

    together = jax.vmap(last)(jnp.array([1.0, 2.0]), jnp.array([0.5, 3.0]))
    np.testing.assert_allclose(together, [last(1.0, 0.5), last(2.0, 3.0)], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "geometry 'euclidean' with step 'adaptive' needs diameter, grad_bound"),
        (dict(step="strongly_convex"), "needs strong_convexity"),
        (dict(geometry="newton", diameter=1.0), "needs grad_bound, exp_concavity"),
        (dict(step=0.0), r"step must be in \(0, inf\), got 0"),
        (dict(step=0.1, radius=-1.0), r"radius must be in \(0, inf\), got -1"),
        (dict(diameter=1.0, grad_bound=0.0), r"grad_bound must be in \(0, inf\), got 0"),
        (dict(diameter=1.0, grad_bound=1.0, smoothness=-1.0), r"smoothness must be in \[0, inf\), got -1"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        optimistic_md(**settings)
    with pytest.raises(ValueError, match=r"horizon must be in \[1, inf\), got 0"):
        dynamic_ensemble(horizon=0, diameter=1.0, grad_bound=1.0)
