"""Attacks against the exact answers for linear models, and against projected gradient ascent in plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxreg.robustness import fgsm, pgd, project_to_ball

KEY = jax.random.key(0)
WEIGHTS = np.array([0.5, -2.0, 0.0, 1.0], np.float32)
INPUTS = np.array([[0.5, 0.5, 0.5, 0.5], [0.05, 0.1, 0.9, 0.98]], np.float32)
LABELS = np.array([0, 2])
STEEPEST = {"linf": np.sign(WEIGHTS), "l2": WEIGHTS / np.linalg.norm(WEIGHTS)}


def score(w, x):
    return x.reshape(len(x), -1) @ w


def identity(outputs, targets):
    return outputs


def linear_pgd(w, x, *, epsilon=0.3, low=-9.0, high=9.0, norm="linf", random_start="uniform", steps=40):
    """One program for all radii and bounds."""
    return _linear_pgd(w, x, epsilon, low, high, norm, random_start, steps)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _linear_pgd(w, x, epsilon, low, high, norm, random_start, steps):
    options = dict(norm=norm, random_start=random_start, steps=steps, step_size=0.2, bounds=(low, high))
    return pgd(score, w, x, None, KEY, epsilon=epsilon, loss_fn=identity, **options)


def linear_fgsm(w, x, *, norm="linf", low=-9.0, high=9.0):
    return _linear_fgsm(w, x, low, high, norm)


@functools.partial(jax.jit, static_argnums=4)
def _linear_fgsm(w, x, low, high, norm):
    return fgsm(score, w, x, None, epsilon=0.3, norm=norm, loss_fn=identity, bounds=(low, high))


@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestLinearModels:
    def test_both_attacks_find_the_edge_of_the_ball(self, norm):
        expected = INPUTS + 0.3 * STEEPEST[norm]
        np.testing.assert_allclose(linear_fgsm(WEIGHTS, INPUTS, norm=norm), expected, atol=1e-6)
        # Nothing pulls a random start back along a weight of zero but the l2 ball.
        moved = [0, 1, 3] if norm == "linf" else slice(None)
        np.testing.assert_allclose(linear_pgd(WEIGHTS, INPUTS, norm=norm)[:, moved], expected[:, moved], atol=1e-4)

    def test_radius_zero_leaves_the_inputs(self, norm):
        np.testing.assert_array_equal(linear_pgd(WEIGHTS, INPUTS, epsilon=0.0, norm=norm), INPUTS)

    def test_an_output_that_is_not_a_number_leaves_the_inputs(self, norm):
        np.testing.assert_array_equal(linear_pgd(np.nan * WEIGHTS, INPUTS, norm=norm), INPUTS)

    def test_bounds_hold(self, norm):
        found = linear_pgd(WEIGHTS, INPUTS, low=0.0, high=1.0, norm=norm)
        change = np.asarray(found) - INPUTS
        assert (np.linalg.norm(change, ord={"linf": np.inf, "l2": 2}[norm], axis=-1) <= 0.3 + 1e-6).all()
        assert found.min() >= 0
        assert found.max() <= 1
        if norm == "linf":
            np.testing.assert_allclose(found[:, [0, 1, 3]], np.clip(INPUTS + 0.3 * STEEPEST[norm], 0, 1)[:, [0, 1, 3]])

    def test_tiny_gradients_still_tell_the_way_and_none_tells_to_stay(self, norm):
        found = linear_fgsm(1e-30 * WEIGHTS, INPUTS, norm=norm)
        np.testing.assert_allclose(found, INPUTS + 0.3 * STEEPEST[norm], atol=1e-6)
        np.testing.assert_array_equal(linear_fgsm(0 * WEIGHTS, INPUTS, norm=norm), INPUTS)


class TestFgsm:
    def test_bounds_may_differ_between_features(self):
        low, high = np.array([0.0, 0.4, 0.0, 0.0], np.float32), np.array([1.0, 1.0, 1.0, 0.6], np.float32)
        found = linear_fgsm(WEIGHTS, INPUTS[:1], low=low, high=high)
        np.testing.assert_allclose(found, [[0.8, 0.4, 0.5, 0.6]], atol=1e-6)

    def test_cross_entropy_of_two_classes_moves_along_the_difference_of_weights(self):
        w = np.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.0]], np.float32)
        attack = jax.jit(lambda x, labels: fgsm(lambda w, x: x @ w, w, x, labels, epsilon=0.5))
        found = attack(np.zeros([2, 3], np.float32), np.array([0, 1]))
        towards_one = np.sign(w[:, 1] - w[:, 0])
        np.testing.assert_allclose(found, 0.5 * np.stack([towards_one, -towards_one]))

    def test_length_is_taken_over_all_features_of_an_example(self):
        found = linear_fgsm(WEIGHTS, INPUTS.reshape(2, 2, 2), norm="l2")
        np.testing.assert_allclose(found, (INPUTS + 0.3 * STEEPEST["l2"]).reshape(2, 2, 2), atol=1e-6)

    def test_half_precision_inputs_stay_half(self):
        assert linear_fgsm(WEIGHTS, jnp.asarray(INPUTS, jnp.bfloat16)).dtype == jnp.bfloat16


class Network:
    """One hidden layer, whose cross-entropy and its gradient are also written in NumPy."""

    params = tuple(np.random.default_rng(0).normal(0, 2, shape).astype(np.float32) for shape in [(4, 6), (6, 3)])

    @staticmethod
    def apply(params, x):
        return jnp.tanh(x @ params[0]) @ params[1]

    def losses(self, x):
        return -log_softmax(np.tanh(x @ self.params[0]) @ self.params[1], -1)[np.arange(len(x)), LABELS]

    def gradient(self, x):
        hidden = np.tanh(x @ self.params[0])
        errors = softmax(hidden @ self.params[1], -1) - np.eye(3)[LABELS]
        return (errors @ self.params[1].T * (1 - hidden**2)) @ self.params[0].T


NETWORK = Network()


def ascend(key, norm, *, epsilon, size, steps):
    """One restart in NumPy: all its points, the start first."""
    order = np.inf if norm == "linf" else 2
    if norm == "linf":
        x = INPUTS + epsilon * jax.random.uniform(key, INPUTS.shape, INPUTS.dtype, -1.0, 1.0)
    else:
        key_direction, key_radius = jax.random.split(key)
        direction = np.asarray(jax.random.normal(key_direction, INPUTS.shape))
        radius = np.asarray(jax.random.uniform(key_radius, [len(INPUTS)])) ** (1 / INPUTS.shape[1])
        x = INPUTS + epsilon * radius[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    for _ in range(steps + 1):
        change = np.asarray(x) - INPUTS
        length = np.linalg.norm(change, ord=order, axis=1, keepdims=True)
        inside = np.clip(change, -epsilon, epsilon) if norm == "linf" else change * np.minimum(1, epsilon / length)
        x = np.clip(INPUTS + inside, 0, 1)
        yield x
        gradient = NETWORK.gradient(x)
        x = x + size * (np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient, axis=1)[:, None])


class TestPgd:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_keeps_the_worst_point_of_all_restarts(self, norm):
        """A step this long overshoots, so that the last point is often not the worst."""
        options = dict(epsilon=0.4, steps=4)
        settings = dict(norm=norm, bounds=(0.0, 1.0), restarts=3, step_size=0.5, **options)
        found = jax.jit(lambda x: pgd(Network.apply, NETWORK.params, x, LABELS, KEY, **settings))(INPUTS)
        runs = [list(ascend(key, norm, size=0.5, **options)) for key in jax.random.split(KEY, 3)]
        points = np.stack(runs).reshape(15, *INPUTS.shape)
        losses = np.stack([NETWORK.losses(x) for x in points])
        worst = losses.argmax(0)
        assert (worst % 5 < 4).any()
        np.testing.assert_allclose(found, points[worst, np.arange(len(INPUTS))], atol=1e-5)

    def test_targets_may_be_any_tree_and_starts_near_the_input(self):
        """At the input a distance from the clean outputs has no gradient, near it it has. Keys and radii are mapped."""

        def distance(outputs, targets):
            return jnp.sum(jnp.square(outputs - targets["clean"]), axis=-1)

        targets = {"clean": Network.apply(NETWORK.params, INPUTS)}

        def attack(key, epsilon, start):
            options = dict(epsilon=epsilon, step_size=0.05, loss_fn=distance, random_start=start)
            return pgd(Network.apply, NETWORK.params, INPUTS, targets, key, **options)

        np.testing.assert_array_equal(jax.jit(lambda key: attack(key, 0.1, None))(KEY), INPUTS)
        keys, radii = jax.random.split(KEY), jnp.array([0.1, 0.0])
        found = jax.jit(jax.vmap(lambda key, epsilon: attack(key, epsilon, "gaussian")))(keys, radii)
        assert (distance(Network.apply(NETWORK.params, found[0]), targets) > 0.01).all()
        np.testing.assert_array_equal(found[1], INPUTS)

    def test_no_gradient_flows(self):
        gradients = jax.jit(jax.grad(lambda *arguments: jnp.sum(linear_pgd(*arguments, steps=1)), argnums=(0, 1)))
        for gradient in gradients(WEIGHTS, INPUTS):
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient))

    def test_starts_fill_the_ball(self):
        """Radii of a uniform draw from a ball of d dimensions have median 2^(-1/d), entries of a cube are uniform."""
        zeros, flat = np.zeros([4000, 3], np.float32), np.zeros([3], np.float32)
        ball = linear_pgd(flat, zeros, epsilon=2.0, norm="l2", steps=1)
        np.testing.assert_allclose(np.median(np.linalg.norm(ball, axis=-1)), 2 * 0.5 ** (1 / 3), rtol=0.02)
        cube = np.asarray(linear_pgd(flat, zeros, epsilon=2.0, steps=1))
        np.testing.assert_allclose([cube.mean(), cube.std()], [0, 2 / np.sqrt(3)], atol=0.03)
        near = np.asarray(linear_pgd(flat, zeros, epsilon=2.0, random_start="gaussian", steps=1))
        np.testing.assert_allclose(near.std(), 0.001, rtol=0.03)


class TestProjection:
    def test_l2_by_hand(self):
        moved = project_to_ball(np.array([[3.0, 4.0], [0.3, 0.4]]), np.zeros([2, 2]), epsilon=1.0, norm="l2")
        np.testing.assert_allclose(moved, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)

    def test_linf_by_hand(self):
        moved = project_to_ball(np.array([[3.0, 0.5]]), np.array([[1.0, 0.7]]), epsilon=1.0, bounds=(0.0, 1.5))
        np.testing.assert_allclose(moved, [[1.5, 0.5]], rtol=1e-6)

    def test_gradient_is_finite_at_the_centre(self):
        gradient = jax.jit(jax.grad(lambda x: project_to_ball(x, np.zeros([1, 2]), epsilon=1.0, norm="l2").sum()))
        np.testing.assert_array_equal(gradient(jnp.zeros([1, 2])), np.ones([1, 2]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": -0.1}, r"epsilon must be in \[0, inf\), got -0.1"),
        ({"step_size": 0.0}, r"step_size must be in \(0, inf\), got 0.0"),
        ({"steps": 0}, r"steps must be in \[1, inf\), got 0"),
        ({"restarts": 0}, r"restarts must be in \[1, inf\), got 0"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be in ascending order, got \(1.0, 0.0\)"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    settings = {"epsilon": 0.1, "step_size": 0.1, "loss_fn": identity, **wrong}
    with pytest.raises(ValueError, match=message):
        pgd(score, WEIGHTS, INPUTS, None, KEY, **settings)


@pytest.mark.parametrize("loss_fn", [lambda outputs, _: outputs, lambda outputs, _: outputs.sum()])
def test_there_is_one_loss_for_each_example(loss_fn):
    def outputs(weights, x):
        return jnp.stack([x.reshape(len(x), -1).sum(-1)] * 2, -1)

    for attack in (
        lambda **settings: fgsm(outputs, WEIGHTS, INPUTS, None, **settings),
        lambda **settings: pgd(outputs, WEIGHTS, INPUTS, None, KEY, step_size=0.1, **settings),
    ):
        with pytest.raises(ValueError, match=rf"must return one loss per example, shape \({len(INPUTS)},\), got"):
            attack(epsilon=0.1, loss_fn=loss_fn)
