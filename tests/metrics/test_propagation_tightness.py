"""Propagation tightness against corners of boxes, published values and Monte Carlo."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import initial_tightness, linear_tightness, propagation_tightness, sign_condition
from jaxreg.robustness import interval_bounds

RNG = np.random.default_rng(0)


def normal(*shapes):
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


WEIGHTS = normal((3, 6), (6, 5), (5, 4))
EPSILON = RNG.uniform(0.1, 1.0, (7, 3)).astype(np.float32)


def test_it_is_the_exact_width_over_that_of_interval_bounds():
    """The exact width from all corners of the box, the other from interval bounds of the linear network."""
    corners = np.array(list(itertools.product([-1, 1], repeat=3)), np.float32)
    outputs = np.einsum("cj,bj,jo->cbo", corners, EPSILON, WEIGHTS[0] @ WEIGHTS[1] @ WEIGHTS[2])
    bounds = interval_bounds(lambda x: x @ WEIGHTS[0] @ WEIGHTS[1] @ WEIGHTS[2], -EPSILON, EPSILON)
    expected = np.ptp(outputs, axis=0) / (bounds.upper - bounds.lower)
    found = propagation_tightness(WEIGHTS, EPSILON)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found > 0).all()
    assert (found <= 1).all()


def test_labels_turn_outputs_into_margins():
    labels = np.array([0, 3, 2, 1, 0, 1, 2])
    found = propagation_tightness(WEIGHTS, EPSILON, labels=labels)
    assert found.shape == (7, 3)
    for i, y in enumerate(labels):
        for column, k in enumerate([(y + 1) % 4, (y + 2) % 4, (y + 3) % 4]):
            margin = [*WEIGHTS[:2], WEIGHTS[2][:, [y]] - WEIGHTS[2][:, [k]]]
            np.testing.assert_allclose(found[i, column], propagation_tightness(margin, EPSILON[[i]])[0, 0], rtol=1e-4)


def test_inactive_units_leave_a_smaller_network():
    masks = [np.array([[1, 1, 0, 1, 0, 0]]), np.array([[False, True, True, False, True]])]
    kept = [np.flatnonzero(mask[0]) for mask in masks]
    smaller = [WEIGHTS[0][:, kept[0]], WEIGHTS[1][np.ix_(*kept)], WEIGHTS[2][kept[1]]]
    np.testing.assert_allclose(
        propagation_tightness(WEIGHTS, EPSILON[:1], masks=masks),
        propagation_tightness(smaller, EPSILON[:1]),
        rtol=1e-4,
    )
    nothing = [np.zeros([1, 6]), np.ones([1, 5])]
    np.testing.assert_array_equal(propagation_tightness(WEIGHTS, EPSILON[:1], masks=nothing), np.ones([1, 4]))


def test_scale_and_signs_do_not_loosen_bounds():
    tightness = linear_tightness(WEIGHTS)
    assert 0.05 < tightness < 0.95
    np.testing.assert_allclose(linear_tightness([2 * WEIGHTS[0], -0.1 * WEIGHTS[1], WEIGHTS[2]]), tightness, rtol=1e-5)
    np.testing.assert_allclose(linear_tightness([np.abs(kernel) for kernel in WEIGHTS]), 1.0, rtol=1e-6)
    np.testing.assert_allclose(linear_tightness(WEIGHTS[:1]), 1.0, rtol=1e-6)


def test_initial_tightness():
    """Published values, the limit of large widths, and ratios of mean widths of drawn networks."""
    widths = [1, 4, 16, 64, 256]
    published = [1, 0.589049, 0.308474, 0.156054, 0.078256]
    np.testing.assert_allclose([initial_tightness(d) for d in widths], published, atol=2e-6)
    np.testing.assert_allclose(initial_tightness(1e6), np.sqrt(np.pi / 2e6), rtol=1e-5)
    for d, expected in zip(widths[:4], published, strict=False):
        first, second = RNG.normal(size=(300, 20, d)), RNG.normal(size=(300, d, 20))
        ratio = np.abs(first @ second).mean() / (np.abs(first) @ np.abs(second)).mean()
        np.testing.assert_allclose(ratio, expected, rtol=0.04)


def test_bounds_of_two_layers_are_exact_where_all_paths_have_one_sign():
    first, second = np.array([[1.0, -2.0], [3.0, 1.0]]), np.array([[1.0, 1.0, -1.0], [-1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(sign_condition(first, second), [[True, False, True], [False, True, True]])
    by_enumeration = first[:, :, None] * second
    one_sign = (by_enumeration >= 0).all(1) | (by_enumeration <= 0).all(1)
    np.testing.assert_array_equal(sign_condition(first, second), one_sign)
    exact = propagation_tightness([first, second], np.ones([1, 2]))[0] >= 1 - 1e-6
    np.testing.assert_array_equal(exact, one_sign.all(0))


def test_it_can_be_jitted_and_differentiated():
    gradient = jax.jit(jax.grad(lambda weights: jnp.mean(propagation_tightness(weights, EPSILON))))(WEIGHTS)
    # It does not depend on the scale of a layer, so its gradient is orthogonal to the layer.
    for slope, kernel in zip(gradient, WEIGHTS, strict=True):
        np.testing.assert_allclose(jnp.sum(slope * kernel), 0.0, atol=1e-5)
        assert jnp.abs(slope).max() > 1e-3


@pytest.mark.parametrize(
    ("weights", "masks", "message"),
    [
        ([], None, "weights must have at least one matrix, got none"),
        (WEIGHTS, [np.ones([1, 6])], r"masks must be one less than weights \(3\), got 1"),
    ],
)
def test_wrong_layers_are_refused(weights, masks, message):
    with pytest.raises(ValueError, match=message):
        propagation_tightness(weights, EPSILON[:1], masks=masks)


def test_widths_are_checked():
    with pytest.raises(ValueError, match=r"width must be in \[1, inf\), got 0"):
        initial_tightness(0)
