"""EnsLoss: what every convex, calibrated loss has in common, and the draw against SciPy's Box-Cox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import inv_boxcox

from jaxreg.losses import calibrated_derivatives, ensloss, sample_box_cox

ITEMS = 16
DERIVATIVES = jax.jit(calibrated_derivatives)
MARGINS = 2 * jax.random.normal(jax.random.key(1), [ITEMS])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([-3.0, -1.0, -0.5, -1e-5, 0.0, 1e-5, 0.5, 1.0, 3.0]),
    st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=ITEMS, max_size=ITEMS),
)
def test_derivatives_are_those_of_a_decreasing_convex_function(seed, box_cox, margins):
    margins = np.array(margins, np.float32)
    g = np.asarray(DERIVATIVES(jax.random.key(seed), margins, box_cox=box_cox))
    assert (g < 0).all()
    assert (g >= -1 - 2e-6).all()
    assert (np.diff(g[np.argsort(margins, kind="stable")]) >= -1e-7).all()


@pytest.mark.parametrize("box_cox", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_derivatives_are_sorted_box_cox_draws(box_cox):
    key, margins = jax.random.key(3), jnp.linspace(-2, 0.9, 1000)
    z = np.asarray(jax.random.normal(key, margins.shape), np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = inv_boxcox(z, box_cox)
    # Where 1 + lambda z is negative SciPy has no value; the limit is 0, or infinity for negative lambda.
    draws = np.where(1 + box_cox * z <= 0, 0.0 if box_cox > 0 else np.inf, draws)
    expected = np.sort(np.maximum(-draws, -1.0)) - 1e-6
    np.testing.assert_allclose(DERIVATIVES(key, margins, box_cox=box_cox), expected, rtol=2e-5, atol=1e-6)


def test_the_parameter_may_pass_through_zero():
    key = jax.random.key(0)
    around = [DERIVATIVES(key, MARGINS, box_cox=lam) for lam in (-2e-4, -5e-5, 0.0, 5e-5, 2e-4)]
    for g in around:
        np.testing.assert_allclose(g, around[2], atol=2e-4)


def test_margins_above_one_get_less():
    """The same draw for margins that are ten times as large: divided by them."""
    key, margins = jax.random.key(0), jnp.linspace(0.2, 0.9, ITEMS)
    near, far = DERIVATIVES(key, margins, box_cox=0.0), DERIVATIVES(key, 10 * margins, box_cox=0.0)
    np.testing.assert_allclose(far + 1e-6, (near + 1e-6) / (10 * margins), rtol=1e-3)


def test_gradient_of_the_mean_is_the_derivative_with_the_labels_sign():
    labels = jnp.arange(ITEMS) % 2
    sign = 2 * labels - 1
    key = jax.random.key(5)
    value, gradient = jax.jit(jax.value_and_grad(lambda f: ensloss(key, f, labels).mean()))(sign * MARGINS)
    g = DERIVATIVES(key, MARGINS, box_cox=0.0)
    np.testing.assert_allclose(gradient, sign * g / ITEMS, rtol=1e-6)
    np.testing.assert_allclose(value, np.mean(g * MARGINS), rtol=1e-5)


def test_every_key_is_another_loss():
    a, b = (DERIVATIVES(jax.random.key(seed), MARGINS, box_cox=0.0) for seed in (0, 1))
    assert np.abs(a - b).max() > 0.1


def test_box_cox_parameters_fill_their_interval():
    drawn = jax.vmap(lambda key: sample_box_cox(key, low=-0.5, high=1.0))(jax.random.split(jax.random.key(0), 4000))
    assert (drawn >= -0.5).all()
    assert (drawn <= 1.0).all()
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), [-0.125, 0.25, 0.625], atol=0.05)


@pytest.mark.parametrize("name", ["low", "high"])
def test_ends_are_finite(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \(-inf, inf\), got nan"):
        sample_box_cox(jax.random.key(0), **{name: float("nan")})
