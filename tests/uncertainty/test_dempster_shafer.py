"""Dempster's rule against the paper's numbers, its algebra, and the enumeration of products of masses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.losses import exponential_evidence
from jaxreg.uncertainty import Opinion, dempster_combine, engaged_logits, engagement_weights, opinion

COMBINE = jax.jit(dempster_combine)
LOGITS = jnp.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])


def random_opinions(seed, shape=(5,), classes=4):
    masses = np.random.default_rng(seed).dirichlet(np.ones(classes + 1), shape)
    return Opinion(jnp.asarray(masses[..., :-1]), jnp.asarray(masses[..., -1]))


def combined_by_enumeration(one, other):
    """Focal sets are the single classes and the whole; products of masses go to the intersection."""
    classes = one[0].shape[-1]
    sets = [frozenset([k]) for k in range(classes)] + [frozenset(range(classes))]
    masses = {s: 0.0 for s in sets}
    conflict = 0.0
    for a, mass_a in zip(sets, [*one[0], one[1]], strict=True):
        for b, mass_b in zip(sets, [*other[0], other[1]], strict=True):
            if a & b:
                masses[a & b] += float(mass_a) * float(mass_b)
            else:
                conflict += float(mass_a) * float(mass_b)
    return np.array([masses[s] for s in sets]) / (1 - conflict), conflict


def test_numbers_of_two_contradicting_experts():
    beliefs, uncertainties = opinion(jnp.exp(LOGITS))
    np.testing.assert_allclose(beliefs[0], [0.523774, 0.192686, 0.070885], atol=1e-6)
    np.testing.assert_allclose(uncertainties, 0.212655, atol=1e-6)
    _, conflict = combined_by_enumeration(*zip(beliefs, uncertainties, strict=True))
    assert conflict == pytest.approx(0.413040, abs=1e-6)
    together = dempster_combine(beliefs[0], uncertainties[0], beliefs[1], uncertainties[1])
    np.testing.assert_allclose(together.uncertainty, 0.077045, atol=1e-6)


def test_combination_is_the_products_of_masses():
    for seed in range(4):
        one, other = random_opinions(seed, ()), random_opinions(seed + 100, ())
        belief, uncertainty = COMBINE(*one, *other)
        np.testing.assert_allclose([*belief, uncertainty], combined_by_enumeration(one, other)[0], rtol=2e-6)


def test_combination_is_commutative_associative_and_sums_to_one():
    a, b, c = (random_opinions(seed) for seed in range(3))
    for x, y in ((COMBINE(*a, *b), COMBINE(*b, *a)), (COMBINE(*COMBINE(*a, *b), *c), COMBINE(*a, *COMBINE(*b, *c)))):
        np.testing.assert_allclose(x.belief, y.belief, rtol=1e-5)
        np.testing.assert_allclose(x.uncertainty, y.uncertainty, rtol=1e-5)
        np.testing.assert_allclose(x.belief.sum(-1) + x.uncertainty, 1.0, rtol=1e-5)


def test_who_knows_nothing_changes_nothing():
    one, nothing = random_opinions(0), opinion(jnp.zeros([5, 4]))
    np.testing.assert_array_equal(nothing.uncertainty, 1.0)
    together = COMBINE(*one, *nothing)
    np.testing.assert_allclose(together.belief, one.belief, rtol=1e-6)
    np.testing.assert_allclose(together.uncertainty, one.uncertainty, rtol=1e-6)


def test_contradiction_of_the_surest_experts_stays_finite():
    """exp(30) of evidence each, for different classes: by symmetry half of the belief goes to either."""
    one, other = opinion(exponential_evidence(jnp.diag(jnp.array([60.0, 60.0, 0.0]))[:2] - 30.0))
    sure, sure_too = Opinion(one[0], other[0]), Opinion(one[1], other[1])
    together = dempster_combine(*sure, *sure_too)
    np.testing.assert_allclose(together.belief, [0.5, 0.5, 0.0], rtol=1e-5, atol=1e-10)
    total = dempster_combine(jnp.array([1.0, 0.0]), jnp.zeros([]), jnp.array([0.0, 1.0]), jnp.zeros([]))
    np.testing.assert_array_equal(total.belief, 0.0)


class TestEngagement:
    def test_of_two_experts_is_the_uncertainty_of_dempsters_rule(self):
        weights = engagement_weights(LOGITS[:, None])
        np.testing.assert_allclose(weights[:, 0], [1.0, 0.212655, 0.077045], atol=1e-6)

    def test_of_three_follows_the_recursion(self):
        logits = jax.random.normal(jax.random.key(0), [3, 6, 4])
        beliefs, uncertainties = (np.asarray(x, np.float64) for x in opinion(jnp.exp(logits)))
        expected = [np.ones(6)]
        for m in range(3):
            conflict = 0.0
            if m:
                one, other = beliefs[m - 1], beliefs[m]
                conflict = one.sum(-1) * other.sum(-1) - (one * other).sum(-1)
            expected.append(expected[-1] * uncertainties[m] / (1 - conflict))
        np.testing.assert_allclose(jax.jit(engagement_weights)(logits), expected, rtol=1e-5)

    def test_has_no_gradient(self):
        gradient = jax.grad(lambda z: engagement_weights(z).sum())(LOGITS[:, None])
        np.testing.assert_array_equal(gradient, 0.0)


class TestEngagedLogits:
    def test_who_is_needed_most_counts_most(self):
        logits = jax.random.normal(jax.random.key(1), [2, 5, 3])
        weights = jnp.stack([jnp.ones(5), jnp.linspace(0, 1, 5), jnp.zeros(5)])
        share = 1 / (1 + np.exp((np.linspace(0, 1, 5) - 1) / 0.2))
        expected = share[:, None] * logits[0] + (1 - share[:, None]) * logits[1]
        np.testing.assert_allclose(engaged_logits(logits, weights), expected, rtol=1e-5, atol=1e-6)

    def test_temperature_is_positive(self):
        combine = functools.partial(engaged_logits, jnp.ones([2, 3]), jnp.ones(3))
        with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\), got 0"):
            combine(temperature=0)
