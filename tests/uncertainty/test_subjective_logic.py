"""Opinions of subjective logic against hand-computed numbers and the enumeration of all sets of classes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.uncertainty import flexible_decision, plausibility, singleton_opinion

OPINION = jax.jit(singleton_opinion)


def masses(plausibilities):
    """The mass of every set of classes, by enumeration."""
    found = {}
    for chosen in itertools.product([False, True], repeat=len(plausibilities)):
        factors = [p if inside else 1 - p for p, inside in zip(plausibilities, chosen, strict=True)]
        found[chosen] = np.prod(factors)
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1, width=16), min_size=4, max_size=4))
def test_opinion_is_the_sum_over_all_sets(plausibilities):
    of_set = masses(plausibilities)
    assert sum(of_set.values()) == pytest.approx(1.0)
    belief, confusion, ignorance = OPINION(jnp.array(plausibilities))
    alone = [of_set[tuple(k == j for j in range(4))] for k in range(4)]
    np.testing.assert_allclose(belief, alone, atol=1e-6)
    np.testing.assert_allclose(ignorance, of_set[(False,) * 4], atol=1e-6)
    np.testing.assert_allclose(confusion, sum(m for s, m in of_set.items() if sum(s) >= 2), atol=1e-6)


def test_evidence_for_two_classes_is_confusion():
    belief, confusion, ignorance = singleton_opinion(plausibility(jnp.array([9.0, 9.0, 0.0])))
    np.testing.assert_allclose(belief, [0.09, 0.09, 0.0], rtol=1e-5)
    np.testing.assert_allclose([confusion, ignorance], [0.81, 0.01], rtol=1e-5)


def test_no_evidence_is_ignorance_and_infinite_evidence_belief():
    evidence = jnp.array([[0.0, 0.0, 0.0], [jnp.inf, 0.0, 0.0], [jnp.inf, 0.0, jnp.inf]])
    belief, confusion, ignorance = singleton_opinion(plausibility(evidence))
    np.testing.assert_array_equal(belief, [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(ignorance, [1, 0, 0])
    np.testing.assert_array_equal(confusion, [0, 0, 1])


def test_classes_have_no_order():
    p = jax.random.uniform(jax.random.key(0), [5, 4])
    order = jnp.array([2, 0, 3, 1])
    ours, permuted = OPINION(p), OPINION(p[:, order])
    np.testing.assert_allclose(permuted.belief, ours.belief[:, order], rtol=1e-5)
    np.testing.assert_allclose(permuted[1:], ours[1:], atol=1e-6)


def test_many_classes_lose_no_digits():
    """A thousand classes, each implausible: I = (1 - p)^K, and b_k = I p / (1 - p)."""
    p, classes = 2.0**-12, 1000
    belief, _, ignorance = singleton_opinion(jnp.full(classes, p))
    np.testing.assert_allclose(ignorance, (1 - p) ** classes, rtol=1e-5)
    np.testing.assert_allclose(belief, (1 - p) ** (classes - 1) * p, rtol=1e-5)


def test_gradients_are_finite_at_certainty():
    gradient = jax.grad(lambda p: sum(jnp.sum(x) for x in singleton_opinion(p)))(jnp.array([1.0, 0.0, 1.0]))
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda e: plausibility(e).sum())(jnp.array([0.0, jnp.inf]))).all()


def test_prior_weight_is_the_evidence_of_half_plausibility():
    np.testing.assert_allclose(plausibility(jnp.array([2.0, 0.0, 6.0]), prior_weight=2.0), [0.5, 0.0, 0.75])
    with pytest.raises(ValueError, match=r"prior_weight must be in \(0, inf\), got 0"):
        plausibility(jnp.ones(2), prior_weight=0)


class TestFlexibleDecision:
    evidence = jnp.array([[9.0, 9.0, 0.0], [0.1, 0.1, 0.0], [9.0, 0.0, 0.2], [1.0, 1.0, 1.0]])

    def decide(self, **options):
        p = plausibility(self.evidence)
        return flexible_decision(*singleton_opinion(p), p, **options).astype(int)

    def test_one_class_several_or_none(self):
        expected = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
        # The last is C = 1/2, which is not above one half: the first of equal beliefs.
        np.testing.assert_array_equal(self.decide(), expected)
        np.testing.assert_array_equal(self.decide(combine=0.4)[3], [1, 1, 1])

    def test_conflict_among_many_of_which_none_is_plausible_is_no_ignorance(self):
        p = jnp.full(10, 0.3).at[4].set(0.31)
        opinion = singleton_opinion(p)
        assert opinion.confusion > 0.5 > opinion.ignorance
        np.testing.assert_array_equal(flexible_decision(*opinion, p), np.arange(10) == 4)

    def test_never_rejecting_or_combining_is_the_argmax(self):
        np.testing.assert_array_equal(self.decide(reject=1.0, combine=1.0), np.eye(3)[[0, 0, 0, 0]])

    @pytest.mark.parametrize("name", ["reject", "combine"])
    def test_thresholds_are_shares(self, name):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got 1.5"):
            self.decide(**{name: 1.5})
