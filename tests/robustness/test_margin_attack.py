"""The attack on margins, where the largest change is known."""

import jax
import numpy as np
import pytest

from jaxreg.losses import margin_change
from jaxreg.robustness import margin_pgd

RNG = np.random.default_rng(0)


def linear(w, x):
    return x @ w


def test_two_classes_move_by_the_radius_times_the_sum_of_weights():
    """The only margin is linear, and may grow as well as shrink."""
    w, x = RNG.normal(size=(4, 2)).astype(np.float32), RNG.uniform(size=(8, 4)).astype(np.float32)
    labels = np.arange(8) % 2
    attack = jax.jit(lambda x: margin_pgd(linear, w, x, labels, jax.random.key(0), epsilon=0.1, step_size=0.05))
    found = np.asarray(attack(x))
    change = margin_change(found @ w, x @ w, labels)
    np.testing.assert_allclose(change, np.full(8, 0.1 * np.abs(w[:, 1] - w[:, 0]).sum()), rtol=1e-4)
    sides = np.sign((found - x) @ (w[:, 1] - w[:, 0]))
    assert set(sides) == {-1, 1}


def test_more_classes_reach_a_corner_from_which_no_step_leads_away():
    """A norm is convex: it is largest at a corner, towards which its gradient there points."""
    w, x = RNG.normal(size=(4, 5)).astype(np.float32), RNG.uniform(0.3, 0.7, size=(8, 4)).astype(np.float32)
    labels = np.arange(8) % 5
    options = dict(epsilon=0.1, step_size=0.1, steps=20, bounds=(0.0, 1.0))
    found = np.asarray(jax.jit(lambda x: margin_pgd(linear, w, x, labels, jax.random.key(1), **options))(x))
    np.testing.assert_allclose(np.abs(found - x), 0.1, atol=1e-6)
    for change, label in zip(found - x, labels, strict=True):
        margins = w[:, [label]] - w
        np.testing.assert_array_equal(np.sign(margins @ margins.T @ change), np.sign(change))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"steps must be in \[1, inf\), got 0"):
        margin_pgd(
            linear, np.eye(2), np.zeros([1, 2]), np.array([0]), jax.random.key(0), epsilon=0.1, step_size=0.1, steps=0
        )
