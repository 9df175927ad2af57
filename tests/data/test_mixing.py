"""Mixup against its equation and the moments of the Beta distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxreg.data import mix, mixup, policy_blend, policy_interval, sample_policy

INPUTS = jax.random.normal(jax.random.key(1), [6, 4, 3])


JITTED = jax.jit(mixup, static_argnames="keep_larger")


def weights(alpha, *, keep_larger=False):
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.vmap(lambda key: JITTED(key, jnp.zeros([2, 1]), alpha=alpha, keep_larger=keep_larger).weight)
    return np.asarray(draw(keys))


def test_inputs_are_averaged_with_their_partners():
    mixed = JITTED(jax.random.key(0), INPUTS)
    w, x = float(mixed.weight), np.asarray(INPUTS)
    np.testing.assert_allclose(mixed.inputs, w * x + (1 - w) * x[np.asarray(mixed.partner)], rtol=1e-5, atol=1e-6)


def test_partners_are_a_random_permutation():
    draw = jax.vmap(lambda key: JITTED(key, INPUTS).partner)
    partners = np.asarray(draw(jax.random.split(jax.random.key(0), 3000)))
    np.testing.assert_array_equal(np.sort(partners, -1), np.broadcast_to(np.arange(6), partners.shape))
    frequency = np.array([[np.mean(partners[:, i] == j) for j in range(6)] for i in range(6)])
    np.testing.assert_allclose(frequency, 1 / 6, atol=4.5 * np.sqrt(5 / 36 / 3000))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha):
    assert stats.kstest(weights(alpha), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_larger_share_can_be_kept():
    either, larger = weights(1.0), weights(1.0, keep_larger=True)
    np.testing.assert_array_equal(larger, np.maximum(either, 1 - either))


def test_the_key_decides():
    first, again, other = (JITTED(jax.random.key(k), INPUTS) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.inputs, other.inputs)


def test_mix_by_hand():
    values = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    ours = mix(values, jnp.array([1, 2, 0]), 0.75)
    np.testing.assert_allclose(ours, [[0.75, 0.25], [0.125, 0.875], [0.625, 0.375]], rtol=1e-6)


def test_every_example_may_have_a_weight_of_its_own():
    values = jnp.arange(6.0).reshape(3, 1, 2)
    ours = mix(values, jnp.array([2, 0, 1]), jnp.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(ours[:, 0], [[0, 1], [1, 2], [2, 3]])


def test_half_precision_inputs_stay_half_precision():
    mixed = JITTED(jax.random.key(0), INPUTS.astype(jnp.bfloat16))
    assert mixed.inputs.dtype == jnp.bfloat16
    assert mixed.weight.dtype == jnp.float32
    reference = JITTED(jax.random.key(0), INPUTS.astype(jnp.bfloat16).astype(jnp.float32)).inputs
    np.testing.assert_allclose(mixed.inputs.astype(jnp.float32), reference, rtol=2**-8)


def test_bad_hyperparameters_are_named():
    with pytest.raises(ValueError, match=r"alpha must be in \(0, inf\), got 0"):
        mixup(jax.random.key(0), INPUTS, alpha=0.0)
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\], got 1.5"):
        mix(INPUTS, jnp.arange(6), 1.5)


class TestPolicy:
    """The weights that AdaMixUp's policy network allows."""

    def test_logits_of_zero_allow_the_middle_third(self):
        low, width = policy_interval(jnp.zeros([2, 3]))
        np.testing.assert_allclose(low, [1 / 3] * 2, rtol=1e-6)
        np.testing.assert_allclose(width, [1 / 3] * 2, rtol=1e-6)

    def test_intervals_lie_within_zero_and_one(self):
        logits = 3 * np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        low, width = policy_interval(logits)
        shares = special.softmax(logits, axis=-1)
        np.testing.assert_allclose(low, shares[:, 0], rtol=1e-5)
        np.testing.assert_allclose(low + width, shares[:, 0] + shares[:, 1], rtol=1e-5)

    def test_weights_are_uniform_in_their_interval(self):
        logits = jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.5, 0.3])), [4000, 3])
        weights = sample_policy(jax.random.key(0), policy_interval(logits))
        assert stats.kstest(np.asarray(weights), stats.uniform(0.2, 0.5).cdf).pvalue > 1e-3

    def test_weights_are_differentiable_by_hand(self):
        """w = a + u d: the slope is 1 in a and u in d."""
        interval = policy_interval(jnp.array([[0.3, -0.2, 0.5]]))
        gradient = jax.grad(lambda interval: sample_policy(jax.random.key(1), interval)[0])(interval)
        u = (sample_policy(jax.random.key(1), interval)[0] - interval.low[0]) / interval.width[0]
        np.testing.assert_allclose(gradient.low, [1.0])
        np.testing.assert_allclose(gradient.width, [u], rtol=1e-5)

    def test_blends_are_truncated_normals_times_the_pair(self):
        """Of a pair (2, 0) half a blend is a truncated normal itself; both together are at most 2 in size."""
        x = jnp.array([[2.0], [0.0]]) * jnp.ones([2, 3000])
        blend = np.asarray(policy_blend(jax.random.key(2), x, jnp.array([1, 0])))
        for row in blend:
            assert stats.kstest(row, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3
        assert abs(np.corrcoef(blend)[0, 1]) < 4.5 / np.sqrt(3000)
