"""MDCS against cross-entropy, balanced softmax and divergences computed with SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from jaxreg.losses import consistency_self_distillation, diversity_loss, mdcs

WEAK, STRONG = 2 * np.random.default_rng(0).normal(size=(2, 3, 8, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])
COUNTS = np.array([100, 50, 10, 2])
EXPONENTS = np.array([-0.5, 1.0, 2.5])
DIVERSITY = jax.jit(diversity_loss)
CONSISTENCY = jax.jit(consistency_self_distillation)


def cross_entropy(logits):
    return -np.take_along_axis(log_softmax(logits.astype(np.float64), -1), LABELS[None, :, None], -1)[..., 0]


def adjusted(logits):
    return logits + np.log(COUNTS.astype(np.float64) ** EXPONENTS[:, None, None])


def reference_consistency(weak, strong, temperature):
    weak, strong = adjusted(weak), adjusted(strong)
    divergence = rel_entr(softmax(weak / temperature, -1), softmax(strong / temperature, -1)).sum(-1)
    right = weak.argmax(-1) == LABELS
    return np.array([row[which].mean() for row, which in zip(divergence, right, strict=True)])


class TestDiversityLoss:
    def test_without_exponents_it_is_cross_entropy(self):
        losses = DIVERSITY(WEAK, LABELS, COUNTS, exponents=jnp.zeros(3))
        np.testing.assert_allclose(losses, cross_entropy(WEAK), rtol=1e-5)

    def test_exponent_one_is_balanced_softmax(self):
        """A softmax whose terms are multiplied by the frequencies, of which only the proportions count."""
        weighted = COUNTS * np.exp(WEAK.astype(np.float64))
        chosen = np.take_along_axis(weighted, LABELS[None, :, None], -1)[..., 0]
        for counts in (COUNTS, 10 * COUNTS):
            losses = DIVERSITY(WEAK, LABELS, counts, exponents=jnp.ones(3))
            np.testing.assert_allclose(losses, -np.log(chosen / weighted.sum(-1)), rtol=1e-5)

    def test_every_expert_has_its_exponent(self):
        losses = diversity_loss(WEAK, LABELS, COUNTS)
        np.testing.assert_allclose(losses, cross_entropy(adjusted(WEAK)), rtol=1e-5)

    def test_powers_of_large_counts_do_not_overflow(self):
        losses = DIVERSITY(WEAK, LABELS, np.array([2**31 - 1, 0, 1, 2]), exponents=jnp.full(3, 9.0))
        assert np.isfinite(losses).all()

    def test_one_exponent_for_each_expert(self):
        with pytest.raises(ValueError, match=r"exponents must have one number for each of the 3 experts, got \(1.0,\)"):
            diversity_loss(WEAK, LABELS, COUNTS, exponents=(1.0,))


class TestConsistency:
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_is_the_mean_divergence_where_the_teacher_is_right(self, temperature):
        expected = reference_consistency(WEAK, STRONG, temperature)
        ours = CONSISTENCY(WEAK, STRONG, LABELS, COUNTS, temperature=temperature)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)

    def test_of_a_view_with_itself_is_zero(self):
        np.testing.assert_allclose(CONSISTENCY(WEAK, WEAK, LABELS, COUNTS, temperature=1.0), 0.0, atol=1e-6)

    def test_is_zero_where_the_teacher_is_always_wrong(self):
        wrong = 100 * np.broadcast_to(np.eye(4, dtype=np.float32)[(LABELS + 1) % 4], WEAK.shape)
        np.testing.assert_array_equal(CONSISTENCY(wrong, STRONG, LABELS, COUNTS, temperature=1.0), 0.0)

    def test_teaches_in_one_direction(self):
        gradient = jax.jit(jax.grad(lambda w, s: consistency_self_distillation(w, s, LABELS, COUNTS).sum(), (0, 1)))
        to_weak, to_strong = gradient(WEAK, STRONG)
        np.testing.assert_array_equal(to_weak, 0.0)
        right = adjusted(WEAK).argmax(-1) == LABELS
        pull = (softmax(adjusted(STRONG), -1) - softmax(adjusted(WEAK), -1)) / right.sum(1)[:, None, None]
        np.testing.assert_allclose(to_strong, np.where(right[..., None], pull, 0.0), atol=1e-6)


class TestMdcs:
    @pytest.mark.parametrize(("epoch", "ramp"), [(0, 0.0), (5, 0.25), (100, 1.0)])
    def test_is_the_sum_of_its_parts(self, epoch, ramp):
        both = np.concatenate([adjusted(WEAK), adjusted(STRONG)], axis=1)
        labels = np.tile(LABELS, 2)
        log_p = np.take_along_axis(log_softmax(both, -1), labels[None, :, None], -1)
        expected = -log_p.mean(1).sum() + 0.6 * ramp * reference_consistency(WEAK, STRONG, 1.0).sum()
        np.testing.assert_allclose(MDCS(WEAK, STRONG, LABELS, COUNTS, epoch=epoch), expected, rtol=1e-5)


MDCS = jax.jit(mdcs)
