"""Co-teaching's choices against sorting in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.losses import co_teaching_mask, forget_schedule

choose = jax.jit(lambda a, b, rate: co_teaching_mask(a, b, forget_rate=rate))


def test_each_network_gets_what_the_other_finds_easy():
    easy_first, easy_last = np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 8.0, 7.0, 6.0])
    mask_a, mask_b = co_teaching_mask(easy_first, easy_last, forget_rate=0.5)
    np.testing.assert_array_equal(mask_a, [False, False, True, True])
    np.testing.assert_array_equal(mask_b, [True, True, False, False])


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 10), (0.2, 8), (0.25, 7), (0.4, 6), (0.9, 1)])
def test_the_smallest_losses_are_kept(rate, kept):
    losses = np.random.default_rng(0).normal(size=(2, 10)).astype(np.float32)
    masks = choose(*losses, rate)
    for mask, other in zip(masks, losses[::-1], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(np.argsort(other)[:kept]))


def test_ties_keep_the_number_and_broken_losses_come_last():
    masks = choose(jnp.zeros(10), jnp.array([jnp.nan, *range(9)], jnp.float32), 0.4)
    np.testing.assert_array_equal(masks[1], np.arange(10) < 6)
    np.testing.assert_array_equal(masks[0], (np.arange(10) > 0) & (np.arange(10) < 7))


def test_the_rate_rises_linearly_and_stays():
    rates = jax.vmap(lambda step: forget_schedule(step, rate=0.4, ramp=10))(jnp.array([0, 5, 10, 100]))
    np.testing.assert_allclose(rates, [0.0, 0.2, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(forget_schedule(0, rate=0.4, ramp=0), 0.4, rtol=1e-6)


def test_a_bad_rate_is_named():
    with pytest.raises(ValueError, match=r"forget_rate must be in \[0, 1\), got 1"):
        co_teaching_mask(np.ones(2), np.ones(2), forget_rate=1.0)
