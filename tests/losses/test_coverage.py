"""DCO against its definition in extended precision, numbers worked by hand, and cross-entropy's gradient."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxreg.losses import confidence_factor, dco_loss, dco_sequence, dco_step

loss_and_slope = jax.jit(jax.vmap(jax.value_and_grad(lambda log_p, n: dco_loss(log_p, n=n)), in_axes=(0, None)))
factor = jax.jit(lambda log_p, n: confidence_factor(log_p, n=n))
LOG_P = np.array([-2e4, -90.0, -20.0, -8.0, -7.0, -3.0, -0.71, -0.69, -0.1, -1e-3, -1e-6], np.float32)


def exact(log_p, n):
    """The loss and the factor, with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        p = Decimal(float(log_p)).exp()
        if p < Decimal(10) ** -40:  # (1 - p)^N is 1 - N p to all these digits
            return float(-Decimal(n).ln() - Decimal(float(log_p))), 1.0
        wrong = (1 - p) ** n
        return float(-(1 - wrong).ln()), float(n * (1 - p) ** (n - 1) * p / (1 - wrong))


@pytest.mark.parametrize("n", [1, 4, 16, 4096])
def test_loss_and_gradient_are_exact_over_all_probabilities(n):
    losses, factors = zip(*[exact(log_p, n) for log_p in LOG_P], strict=True)
    value, slope = loss_and_slope(LOG_P, n)
    np.testing.assert_allclose(value, losses, rtol=3e-6, atol=2e-7)
    np.testing.assert_allclose(-slope, factors, rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(factor(LOG_P, n), factors, rtol=2e-5, atol=3e-7)


def test_by_hand():
    log_p = np.log([0.5, 0.001]).astype(np.float32)
    np.testing.assert_allclose(loss_and_slope(log_p, 4)[0][0], 0.064539, atol=1e-6)
    np.testing.assert_allclose(factor(log_p, 4)[0], 4 / 15, rtol=1e-6)
    np.testing.assert_allclose(loss_and_slope(log_p, 16)[0][1], 4.142660, rtol=1e-6)
    np.testing.assert_allclose(factor(log_p, 16)[1], 0.992514, rtol=1e-6)


def test_certainty_costs_nothing_and_pulls_nowhere():
    value, slope = loss_and_slope(jnp.zeros(1), 16)
    assert (float(value[0]), float(slope[0])) == (0.0, 0.0)


def test_sequences_count_the_probability_of_the_whole_answer():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.integers(0, 5, (2, 3))
    mask = np.array([[True, True, True], [True, False, False]])
    log_p = np.take_along_axis(log_softmax(logits.astype(np.float64), -1), tokens[..., None], -1)[..., 0]
    expected = -np.log(1 - (1 - np.exp((log_p * mask).sum(-1))) ** 8)
    np.testing.assert_allclose(dco_sequence(logits, tokens, mask, n=8), expected, rtol=2e-6)


def test_steps_count_one_by_one():
    p = np.array([[0.2, 0.9, 0.4], [0.5, 0.1, 0.3]])
    mask = np.array([[True, True, False], [True, True, True]])
    expected = -(mask * np.log(1 - (1 - p) ** 4)).sum(-1)
    np.testing.assert_allclose(dco_step(np.log(p).astype(np.float32), mask, n=4), expected, rtol=2e-6)


def test_sequences_of_extreme_logits_have_finite_gradients():
    tokens, mask = np.array([[0, 1], [0, 1]]), np.ones((2, 2), bool)
    easy = 1e4 * np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)

    def total(logits):
        return jnp.sum(dco_sequence(logits, tokens, mask, n=16))

    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(total)))(jnp.array([[easy, -easy], [-easy, easy]]))
    np.testing.assert_allclose(losses, 4e4 - np.log(16), rtol=1e-6)
    assert np.isfinite(gradients).all()


def test_of_what_has_no_probability_the_factor_is_one():
    np.testing.assert_array_equal(factor(np.array([-np.inf], np.float32), 4), [1.0])
