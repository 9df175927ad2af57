"""Trajectory matching against momentum written out in NumPy, differences and numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxreg.data import balance_factor, inner_loop, matching_loss, perturb_weights

RNG = np.random.default_rng(0)
SYNTHETIC = RNG.normal(size=(3, 2, 4)).astype(np.float32)
W = RNG.normal(size=(4, 3)).astype(np.float32)


def linear(w, x):
    return x @ w


student = jax.jit(lambda s, rate, scale: inner_loop(linear, W, s, rate, steps=3, loss_scale=scale))


def test_students_descend_with_momentum():
    x, y = SYNTHETIC.reshape(-1, 4).astype(np.float64), np.eye(3)[[0, 0, 1, 1, 2, 2]]
    w, v, path = W.astype(np.float64), 0, [W]
    for _ in range(3):
        v = 0.9 * v + 1.3 * x.T @ (softmax(x @ w, -1) - y) / 6
        w = w - 0.2 * v
        path.append(w)
    np.testing.assert_allclose(student(SYNTHETIC, 0.2, 1.3), np.stack(path), rtol=1e-5, atol=1e-6)


def test_students_in_half_precision_stay_so_whatever_is_traced():
    path = jax.jit(
        lambda *rates: inner_loop(linear, W.astype(jnp.bfloat16), SYNTHETIC, *rates[:1], steps=3, momentum=rates[1])
    )(np.float32(0.2), np.float32(0.9))
    assert path.dtype == jnp.bfloat16
    np.testing.assert_allclose(path.astype(np.float32), student(SYNTHETIC, 0.2, 1.0), atol=2e-2)


def test_gradients_reach_examples_and_learning_rate():
    """Against central differences, through all steps."""
    target = RNG.normal(size=(1, 4, 3)).astype(np.float32)

    @jax.jit
    def loss(s, rate):
        return matching_loss(W, target, student(s, rate, 1.0), checkpoints=[3])

    gradients = jax.grad(loss, argnums=(0, 1))(SYNTHETIC, 0.2)
    direction = RNG.normal(size=SYNTHETIC.shape).astype(np.float32)
    ends = [loss(SYNTHETIC + side * 1e-2 * direction, 0.2) for side in (1, -1)]
    np.testing.assert_allclose(np.vdot(gradients[0], direction), (ends[0] - ends[1]) / 2e-2, rtol=1e-2)
    ends = [loss(SYNTHETIC, 0.2 + side * 1e-2) for side in (1, -1)]
    np.testing.assert_allclose(gradients[1], (ends[0] - ends[1]) / 2e-2, rtol=1e-2)
    assert np.abs(gradients[0]).max() > 1e-4


class TestMatchingLoss:
    START = {"a": jnp.zeros(2), "b": jnp.ones([1, 2])}
    TARGETS = {"a": jnp.array([[3.0, 0.0], [3.0, 4.0]]), "b": jnp.ones([2, 1, 2])}

    def path(self, *positions):
        return {"a": jnp.array(positions, jnp.float32), "b": jnp.ones([len(positions), 1, 2])}

    def test_a_student_that_stays_costs_one_for_every_target(self):
        path = self.path((0, 0), (0, 0), (0, 0))
        np.testing.assert_allclose(matching_loss(self.START, self.TARGETS, path, checkpoints=(1, 2)), 2.0, rtol=1e-6)

    def test_a_student_that_arrives_costs_nothing(self):
        path = self.path((0, 0), (3, 0), (9, 9), (3, 4))
        assert float(matching_loss(self.START, self.TARGETS, path, checkpoints=(1, 3))) == 0

    def test_by_hand(self):
        """1 of 3 away from the first target, 5 of 5 (at the start) from the second."""
        path = self.path((0, 0), (2, 0))
        ours = matching_loss(self.START, self.TARGETS, path, checkpoints=(1, 0))
        np.testing.assert_allclose(ours, 1 / 9 + 1, rtol=1e-6)

    def test_only_the_student_has_gradients(self):
        gradients = jax.grad(matching_loss, argnums=(0, 1))(
            self.START, self.TARGETS, self.path((0, 0), (2, 1)), checkpoints=(0, 1)
        )
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))

    @pytest.mark.parametrize("checkpoints", [(1,), (0, 2), (-1, 0)])
    def test_wrong_checkpoints_are_refused(self, checkpoints):
        with pytest.raises(ValueError, match=r"^checkpoints must be"):
            matching_loss(self.START, self.TARGETS, self.path((0, 0), (1, 1)), checkpoints=checkpoints)


@pytest.mark.parametrize(
    ("start", "value"), [(12.5, np.log(8) / np.log(5)), (25, np.log(20.5) / np.log(5)), (0, np.log(5) / np.log(20.5))]
)
def test_balance(start, value):
    np.testing.assert_allclose(balance_factor(start, max_start=25), value, rtol=1e-5)


perturbed = jax.jit(perturb_weights)


class TestPerturbation:
    PARAMS = {"a": jnp.asarray(RNG.normal(size=(40, 50)), jnp.float32), "b": jnp.ones(3000), "c": jnp.zeros(4)}

    def test_without_alpha_nothing_changes(self):
        same = perturbed(jax.random.key(0), self.PARAMS, alpha=0.0)
        jax.tree.map(np.testing.assert_array_equal, same, self.PARAMS)

    def test_relative_changes_have_the_length_alpha(self):
        moved = perturbed(jax.random.key(0), self.PARAMS, alpha=0.3)
        for name in ("a", "b"):
            change = np.asarray(moved[name] / self.PARAMS[name] - 1)
            np.testing.assert_allclose(np.linalg.norm(change), 0.3, rtol=1e-2)
            assert abs((np.abs(change) < 1e-7).mean() - 0.5) < 0.1
        np.testing.assert_array_equal(moved["c"], np.zeros(4))

    def test_negative_alphas_are_refused(self):
        with pytest.raises(ValueError, match=r"^alpha must be in \[0, inf\), got -1"):
            perturb_weights(jax.random.key(0), self.PARAMS, alpha=-1)
