"""AdaMixUp's objective against its networks' losses, written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_expit, log_softmax

from jaxreg.data import policy_blend
from jaxreg.losses import adamixup_loss, intrusion_loss

X, UNSEEN = jax.random.normal(jax.random.key(0), [6, 4]), jax.random.normal(jax.random.key(1), [5, 4])
TARGETS = jax.nn.one_hot(jnp.array([0, 2, 1, 1, 2, 0]), 3)
KEY = jax.random.key(2)
PARAMS = {
    "classifier": jax.random.normal(jax.random.key(3), [4, 3]),
    "discriminator": jax.random.normal(jax.random.key(4), [4]),
    "policy": jax.random.normal(jax.random.key(5), [4, 3]),
}
loss = functools.partial(
    adamixup_loss,
    lambda params, x: x @ params["classifier"],
    lambda params, x: x @ params["discriminator"],
    lambda params, x: x @ params["policy"],
)
value_and_gradient = jax.jit(jax.value_and_grad(loss))


class TestIntrusionLoss:
    def test_scores_of_zero_tell_nothing(self):
        np.testing.assert_allclose(intrusion_loss(jnp.zeros(6), jnp.zeros(3)), np.log(2), rtol=1e-6)

    def test_every_example_counts_alike(self):
        real, mixed = np.array([2.0, -1.0, 0.5]), np.array([0.3, -4.0])
        expected = -(log_expit(real).sum() + log_expit(-mixed).sum()) / 5
        np.testing.assert_allclose(intrusion_loss(*map(jnp.float32, (real, mixed))), expected, rtol=1e-6)

    def test_finite_where_scores_are_extreme(self):
        ours = jax.value_and_grad(intrusion_loss)(jnp.array([-1e4, 1e4], jnp.bfloat16), jnp.array([1e4], jnp.bfloat16))
        np.testing.assert_allclose(ours[0], 2e4 / 3, rtol=1e-2)
        np.testing.assert_allclose(ours[1].astype(jnp.float32), [-1 / 3, 0], rtol=1e-2)


def test_objective_written_out():
    """With a policy that ignores its input and allows one weight only, nothing but the partners is random."""
    narrow = {**PARAMS, "policy": jnp.zeros([4, 3])}
    classifier, discriminator = (np.asarray(PARAMS[name], np.float64) for name in ("classifier", "discriminator"))
    seen = {}

    def policy_fn(params, blend):
        seen["blend"] = blend
        return jnp.tile(jnp.log(jnp.array([0.7, 1e-9, 0.3])), (6, 1))

    ours = adamixup_loss(
        lambda params, x: x @ params["classifier"],
        lambda params, x: x @ params["discriminator"],
        policy_fn,
        narrow,
        X,
        TARGETS,
        UNSEEN,
        KEY,
        intrusion_weight=0.5,
    )
    key_partner, key_blend, _ = jax.random.split(KEY, 3)
    partner = np.asarray(jax.random.permutation(key_partner, 6))
    np.testing.assert_array_equal(seen["blend"], policy_blend(key_blend, X, jnp.asarray(partner)))
    x, t = np.asarray(X, np.float64), np.asarray(TARGETS, np.float64)
    mixed, mixed_targets = 0.7 * x + 0.3 * x[partner], 0.7 * t + 0.3 * t[partner]

    def cross_entropy(x, t):
        return -(t * log_softmax(x @ classifier, -1)).sum(-1).mean()

    real = np.concatenate([x, UNSEEN]) @ discriminator
    intrusion = -(log_expit(real).sum() + log_expit(-mixed @ discriminator).sum()) / 17
    expected = 0.5 * (cross_entropy(x, t) + cross_entropy(mixed, mixed_targets)) + 0.5 * intrusion
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_all_three_networks_learn():
    """Also the policy, through the weights; without the discriminator only the classifier moves it."""
    _, gradients = value_and_gradient(PARAMS, X, TARGETS, UNSEEN, KEY, intrusion_weight=1.0)
    assert all(np.abs(gradient).max() > 1e-3 for gradient in jax.tree.leaves(gradients))
    _, gradients = value_and_gradient(PARAMS, X, TARGETS, UNSEEN, KEY, intrusion_weight=0.0)
    np.testing.assert_array_equal(gradients["discriminator"], np.zeros(4))
    assert np.abs(gradients["policy"]).max() > 1e-3


def test_policy_gradient_against_differences():
    _, gradients = value_and_gradient(PARAMS, X, TARGETS, UNSEEN, KEY, intrusion_weight=1.0)
    direction = jax.random.normal(jax.random.key(6), [4, 3])

    def moved(distance):
        params = {**PARAMS, "policy": PARAMS["policy"] + distance * direction}
        return value_and_gradient(params, X, TARGETS, UNSEEN, KEY, intrusion_weight=1.0)[0]

    np.testing.assert_allclose(jnp.vdot(gradients["policy"], direction), (moved(1e-2) - moved(-1e-2)) / 2e-2, rtol=1e-2)


def test_a_blind_discriminator_adds_a_constant():
    blind = {**PARAMS, "discriminator": jnp.zeros(4)}
    with_intrusion, without = (
        value_and_gradient(blind, X, TARGETS, UNSEEN, KEY, intrusion_weight=weight)[0] for weight in (1.0, 0.0)
    )
    np.testing.assert_allclose(with_intrusion - without, np.log(2), rtol=1e-5)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"^intrusion_weight must be in \[0, inf\), got -1.0"):
        loss(PARAMS, X, TARGETS, UNSEEN, KEY, intrusion_weight=-1.0)


def test_classes_are_those_of_the_targets():
    with pytest.raises(ValueError, match=r"classifier_fn must return logits of the 2 classes of targets, got"):
        loss(PARAMS, X, TARGETS[:, :2], UNSEEN, KEY)
