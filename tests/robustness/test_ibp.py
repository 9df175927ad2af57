"""Layer-wise bounds against enumerated corners."""

import itertools

import jax
import numpy as np
import optax
import pytest

from jaxreg.robustness import (
    interval_bounds,
    interval_conv,
    interval_dense,
    interval_relu,
    pgd,
    propagate,
    robust_margins,
)

RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(3, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
LOWER, UPPER = np.sort(RNG.normal(size=(2, 5, 3)), axis=0).astype(np.float32)
CORNERS = np.stack([np.where(corner, LOWER, UPPER) for corner in itertools.product([False, True], repeat=3)])
LABELS = np.array([0, 1, 2, 3, 1])


def test_dense_bounds_are_those_of_the_corners():
    outputs = CORNERS @ KERNEL + BIAS
    bounds = interval_dense(LOWER, UPPER, KERNEL, BIAS)
    np.testing.assert_allclose(bounds.lower, outputs.min(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bounds.upper, outputs.max(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(interval_dense(LOWER, UPPER, KERNEL).upper, (outputs - BIAS).max(0), atol=1e-5)


def test_convolution_bounds_are_those_of_the_corners():
    """A convolution with a kernel as large as its input is a dense layer."""
    shape = (1, 1, 3, 1)
    kernel = KERNEL.reshape(1, 3, 1, 4)
    bounds = interval_conv(LOWER[0].reshape(shape), UPPER[0].reshape(shape), kernel, BIAS, padding="VALID")
    outputs = CORNERS[:, 0] @ KERNEL + BIAS
    np.testing.assert_allclose(bounds.lower.ravel(), outputs.min(0), atol=1e-5)
    np.testing.assert_allclose(bounds.upper.ravel(), outputs.max(0), atol=1e-5)
    strided = interval_conv(np.zeros([1, 4, 4, 1]), np.ones([1, 4, 4, 1]), np.full([2, 2, 1, 1], -1.0), strides=(2, 2))
    np.testing.assert_array_equal(strided.lower, np.full([1, 2, 2, 1], -4.0))


def test_relu_rectifies_both_ends():
    bounds = interval_relu(np.array([-1.0, -2.0, 1.0]), np.array([-0.5, 3.0, 2.0]))
    np.testing.assert_array_equal(bounds.lower, [0, 0, 1])
    np.testing.assert_array_equal(bounds.upper, [0, 3, 2])


def test_layers_one_after_the_other_by_hand():
    """x in [0, 1] to (2x - 1, -x), rectified, then the sum."""
    layers = [lambda w, x: x @ w[0] + w[1], lambda w, x: jax.nn.relu(x), lambda w, x: x @ w]
    params = [(np.array([[2.0, -1.0]]), np.array([-1.0, 0.0])), None, np.ones([2, 1])]
    affine, relu, total = propagate(layers, params, np.zeros([1, 1]), np.ones([1, 1]))
    np.testing.assert_array_equal(affine.lower, [[-1, -1]])
    np.testing.assert_array_equal(affine.upper, [[1, 0]])
    np.testing.assert_array_equal(relu.upper, [[1, 0]])
    np.testing.assert_array_equal([total.lower, total.upper], [[[0]], [[1]]])
    with pytest.raises(ValueError, match=r"params must be as many as layers \(3\), got 2"):
        propagate(layers, params[:2], np.zeros([1, 1]), np.ones([1, 1]))


def test_margins_are_the_least_of_the_corners():
    logits = CORNERS @ KERNEL + BIAS
    margins = np.take_along_axis(logits, np.tile(LABELS, (8, 1))[..., None], -1) - logits
    found = robust_margins(KERNEL, BIAS, LOWER, UPPER, LABELS)
    np.testing.assert_allclose(found, margins.min(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[np.arange(5), LABELS], np.zeros(5))
    # Bounds of the logits alone are looser.
    bounds = interval_dense(LOWER, UPPER, KERNEL, BIAS)
    loose = bounds.lower[np.arange(5), LABELS][:, None] - bounds.upper
    assert (loose < found - 0.1).any()


def test_bounds_certify_more_than_no_attack_and_less_than_the_strongest():
    """The loss of the worst margins is above that of PGD, and that of a point for a radius of zero."""
    widths = [(3, 6), (6, 4)]
    params = [(RNG.normal(size=w).astype(np.float32), RNG.normal(size=w[1]).astype(np.float32)) for w in widths]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def features(p, x):
        return jax.nn.relu(x @ p[0][0] + p[0][1])

    def apply(p, x):
        return features(p, x) @ p[1][0] + p[1][1]

    @jax.jit
    def losses(epsilon):
        bounds = interval_bounds(lambda x: features(params, x), LOWER - epsilon, LOWER + epsilon)
        worst = cross_entropy(-robust_margins(*params[1], *bounds, LABELS), LABELS)
        attacked = pgd(apply, params, LOWER, LABELS, jax.random.key(0), epsilon=epsilon, step_size=0.1)
        return worst, cross_entropy(apply(params, attacked), LABELS), cross_entropy(apply(params, LOWER), LABELS)

    worst, attacked, clean = losses(0.3)
    assert (worst >= attacked - 1e-5).all()
    assert (attacked > clean + 0.01).any()
    worst, _, clean = losses(0.0)
    np.testing.assert_allclose(worst, clean, rtol=1e-4, atol=1e-5)
