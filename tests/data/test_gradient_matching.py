"""Condensation by gradients against gradients in closed form: those of a linear softmax model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxreg.data import dc_loss, dcc_loss, dcc_schedule, match_distance, replay_union

CLASSES, FEATURES = 3, 4
RNG = np.random.default_rng(0)
SYNTHETIC = RNG.normal(size=(CLASSES, 2, FEATURES)).astype(np.float32)
REAL = RNG.normal(size=(CLASSES, 5, FEATURES)).astype(np.float32)
PARAMS = {"kernel": RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32), "bias": np.zeros(CLASSES, np.float32)}


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


class_wise = jax.jit(jax.value_and_grad(lambda s, t, params: dc_loss(linear, params, s, t)))
together = jax.jit(jax.value_and_grad(lambda s, t, params: dcc_loss(linear, params, s, t)))


def kernel_gradient(examples, classes):
    """x (p - y)^T averaged, in float64."""
    x = examples.reshape(-1, FEATURES).astype(np.float64)
    y = np.eye(CLASSES)[np.repeat(classes, examples.shape[1])]
    return x.T @ (softmax(x @ PARAMS["kernel"], -1) - y) / len(x)


def cosine_distance(a, b):
    return sum(1 - a[:, j] @ b[:, j] / (np.linalg.norm(a[:, j]) * np.linalg.norm(b[:, j])) for j in range(a.shape[1]))


class TestDistance:
    KERNELS = {"a": jnp.array([[1.0, 0.0], [2.0, 3.0]]), "b": jnp.array(RNG.normal(size=(3, 3, 2, 5)), jnp.float32)}

    def test_equal_directions_are_at_distance_zero(self):
        twice = jax.tree.map(lambda x: 2 * x, self.KERNELS)
        np.testing.assert_allclose(match_distance(self.KERNELS, twice), 0, atol=1e-5)

    def test_opposite_directions_are_at_distance_two_for_every_unit(self):
        opposite = jax.tree.map(jnp.negative, self.KERNELS)
        np.testing.assert_allclose(match_distance(self.KERNELS, opposite), 2 * (2 + 5), rtol=1e-5)

    def test_units_are_columns(self):
        """(1, 2) and (2, 1) have the cosine 4/5; (0, 3) and (1, 0) are orthogonal."""
        other = jnp.array([[2.0, 1.0], [1.0, 0.0]])
        np.testing.assert_allclose(match_distance(self.KERNELS["a"], other), 0.2 + 1, rtol=1e-5)

    def test_vectors_are_left_out(self):
        assert float(match_distance({"bias": jnp.ones(3)}, {"bias": -jnp.ones(3)})) == 0

    def test_units_without_gradient_count_as_one(self):
        value, gradient = jax.value_and_grad(match_distance)(jnp.zeros([3, 2]), jnp.ones([3, 2]))
        assert float(value) == 2
        assert np.isfinite(gradient).all()


class TestObjectives:
    def test_class_wise_matching(self):
        expected = sum(
            cosine_distance(kernel_gradient(SYNTHETIC[[c]], [c]), kernel_gradient(REAL[[c]], [c]))
            for c in range(CLASSES)
        )
        np.testing.assert_allclose(class_wise(SYNTHETIC, REAL, PARAMS)[0], expected, rtol=1e-4)

    def test_matching_all_classes_together(self):
        every = range(CLASSES)
        expected = cosine_distance(kernel_gradient(SYNTHETIC, every), kernel_gradient(REAL, every))
        np.testing.assert_allclose(together(SYNTHETIC, REAL, PARAMS)[0], expected, rtol=1e-4)

    def test_for_one_class_both_are_the_same(self):
        @jax.jit
        def both(synthetic, real):
            return [objective(linear, PARAMS, synthetic, real) for objective in (dc_loss, dcc_loss)]

        np.testing.assert_allclose(*both(SYNTHETIC[:1], REAL[:1]), rtol=1e-6)

    def test_a_signal_that_classes_share_cancels_in_all_together(self):
        """At zero weights p is 1/C: what is the same in every class is multiplied by the mean of p - y, which is 0."""
        zero = jax.tree.map(np.zeros_like, PARAMS)
        shared = np.tile(REAL[:1], (CLASSES, 1, 1))

        def gradient(examples):
            def loss(params):
                log_p = jax.nn.log_softmax(linear(params, examples))
                return -jnp.mean(jnp.stack([log_p[c, :, c] for c in range(CLASSES)]))

            return jax.grad(loss)(zero)["kernel"]

        np.testing.assert_allclose(gradient(shared), 0, atol=1e-6)
        # Hence adding it to every example, real or synthetic, changes the class-wise distance but not this one.
        shift = 10 * REAL[0, 0]
        for objective, changed in [(together, False), (class_wise, True)]:
            before, after = (objective(SYNTHETIC + s, REAL + s, zero)[0] for s in (0 * shift, shift))
            assert (abs(float(before - after)) > 0.1) == changed

    def test_gradients_reach_the_synthetic_examples_only(self):
        direction = RNG.normal(size=SYNTHETIC.shape).astype(np.float32)
        for objective in (class_wise, together):
            gradient = objective(SYNTHETIC, REAL, PARAMS)[1]
            ends = [float(objective(SYNTHETIC + side * 1e-2 * direction, REAL, PARAMS)[0]) for side in (1, -1)]
            np.testing.assert_allclose(np.vdot(gradient, direction), (ends[0] - ends[1]) / 2e-2, rtol=2e-2)
        real_gradient = jax.jit(jax.grad(lambda t: dcc_loss(linear, PARAMS, SYNTHETIC, t)))(REAL)
        np.testing.assert_array_equal(real_gradient, np.zeros_like(REAL))


@pytest.mark.parametrize(
    ("outer", "inner", "contrastive"), [(0, 0, False), (249, 9, False), (249, 10, True), (250, 0, True)]
)
def test_schedule(outer, inner, contrastive):
    assert bool(dcc_schedule(outer, inner)) == contrastive
    assert bool(jax.jit(dcc_schedule)(jnp.array(outer), jnp.array(inner))) == contrastive


@pytest.mark.parametrize("name", ["outer_warmup", "inner_warmup"])
def test_negative_warmups_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, inf\), got -1"):
        dcc_schedule(0, 0, **{name: -1})


def test_replay_adds_condensed_examples_of_earlier_tasks():
    x, y, weights = replay_union(REAL[2], np.full(5, 2), SYNTHETIC, np.array([True, True, False]))
    np.testing.assert_array_equal(x[:5], REAL[2])
    np.testing.assert_array_equal(x[5:], SYNTHETIC.reshape(6, FEATURES))
    np.testing.assert_array_equal(y, [2] * 5 + [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(weights, [1] * 5 + [1, 1, 1, 1, 0, 0])
