"""RankMixup's losses against numbers worked by hand and a transcription in NumPy that sorts one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxreg.losses import mixup_ranking, mndcg

ranking = jax.jit(mixup_ranking)
gain_loss = jax.jit(mndcg)
RAW = jnp.array([3.0, -1.0, 0.5])


def logits_of(confidence, *, classes=3):
    """Logits of which the softmax has this largest entry, the others being equal."""
    confidence = np.asarray(confidence)
    odds = np.log(confidence * (classes - 1) / (1 - confidence))
    return jnp.asarray(np.stack([odds, *[np.zeros_like(odds)] * (classes - 1)], axis=-1), jnp.float32)


def targets_of(shares):
    return jnp.stack([shares, 1 - jnp.asarray(shares), jnp.zeros(len(shares))], axis=-1)


class TestRanking:
    @pytest.mark.parametrize(
        ("highest", "margin", "value"), [(1.5, 2.0, 0.5), (0.9, 2.0, 0.0), (3.0, 0.0, 0.0), (4.0, 1.0, 2.0)]
    )
    def test_by_hand(self, highest, margin, value):
        mixed = jnp.array([0.2, highest, -3.0])
        ours = ranking(RAW, mixed, jnp.array([0.6, 0.4, 0.0]), margin=margin)
        np.testing.assert_allclose(ours, value, atol=1e-6)

    @pytest.mark.parametrize("total", [1.0, 0.99999994, 1.0000001])
    def test_mixtures_within_a_class_are_not_ranked(self, total):
        """In float32 0.3 + 0.7 may miss 1."""
        assert float(ranking(RAW, RAW + 5, jnp.array([0.0, total, 0.0]))) == 0

    def test_gradient_by_hand(self):
        """The winner of the mixture is pushed down, that of the raw example up, and nothing else."""
        mixed, targets = jnp.array([0.0, 2.0, 1.0]), jnp.array([0.0, 0.5, 0.5])
        raw_gradient, mixed_gradient = jax.grad(mixup_ranking, argnums=(0, 1))(RAW, mixed, targets)
        np.testing.assert_array_equal(raw_gradient, [-1, 0, 0])
        np.testing.assert_array_equal(mixed_gradient, [0, 1, 0])


class TestGain:
    def test_by_hand(self):
        """D = .9 + .8/log2(3) + .6/2 + .7/log2(5) = 2.006217 and I = 2.133175."""
        ours = gain_loss(logits_of(0.9), logits_of([0.8, 0.6, 0.7]), targets_of(jnp.array([0.9, 0.7, 0.5])))
        np.testing.assert_allclose(ours, 0.059516, atol=1e-6)

    def test_the_order_of_the_mixtures_does_not_matter(self):
        """Pairs of confidence and share are sorted by share; the same pairs in another order are the same loss."""
        shuffled = gain_loss(logits_of(0.9), logits_of([0.7, 0.8, 0.6]), targets_of(jnp.array([0.5, 0.9, 0.7])))
        np.testing.assert_allclose(shuffled, 0.059516, atol=1e-6)

    def test_confidences_equal_to_the_shares_cost_nothing(self):
        ours = gain_loss(logits_of(1 - 1e-7), logits_of([0.55, 0.9, 0.7]), targets_of(jnp.array([0.55, 0.9, 0.7])))
        np.testing.assert_allclose(ours, 0.0, atol=1e-6)

    def test_too_much_confidence_costs_as_well(self):
        """D = 1 + 1/log2(3), I = 1 + .5/log2(3): the ratio is I/D, and the gradient lowers the mixture's confidence."""
        raw, mixed, targets = logits_of(1 - 1e-7), logits_of([1 - 1e-4]), targets_of(jnp.array([0.5]))
        value, gradient = jax.value_and_grad(mndcg, argnums=1)(raw, mixed, targets)
        expected = 1 - (1 + 0.5 / np.log2(3)) / (1 + 0.9999 / np.log2(3))
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        assert gradient[0, 0] > 0

    def test_a_batch_against_numpy(self):
        rng = np.random.default_rng(0)
        raw, mixed = 2 * rng.normal(size=(4, 5)), 2 * rng.normal(size=(4, 3, 5))
        targets = rng.dirichlet(np.full(5, 0.3), (4, 3))

        def one(raw, mixed, targets):
            pairs = sorted(zip(targets.max(-1), softmax(mixed, -1).max(-1), strict=True), reverse=True)
            discounts = np.log2(np.arange(2, 6))
            ideal = (np.array([1.0, *(share for share, _ in pairs)]) / discounts).sum()
            gain = (np.array([softmax(raw).max(), *(c for _, c in pairs)]) / discounts).sum()
            return 1 - min(gain / ideal, ideal / gain)

        ours = gain_loss(*(jnp.asarray(x, jnp.float32) for x in (raw, mixed, targets)))
        np.testing.assert_allclose(ours, [one(*row) for row in zip(raw, mixed, targets, strict=True)], atol=2e-6)
        assert ((ours >= 0) & (ours < 1)).all()
