"""Step sizes of EF21 against numbers worked by hand, and the inequality behind rare features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.distributed import ef21_stepsize, ef21_weights, rare_features_constant

SMOOTHNESS = jnp.array([100.0, 1.0, 1.0, 1.0])


def test_weights_are_shares_of_the_smoothness():
    np.testing.assert_allclose(ef21_weights(SMOOTHNESS), np.array([100, 1, 1, 1]) / 103, rtol=1e-6)


@pytest.mark.parametrize(("mean", "constant"), [("arithmetic", 103 / 4), ("quadratic", np.sqrt(10_003 / 4))])
def test_stepsize_by_hand(mean, constant):
    """xi(0.1) = 18.4868."""
    expected = 1 / (26.0 + constant * 18.486833)
    np.testing.assert_allclose(ef21_stepsize(26.0, SMOOTHNESS, 0.1, mean=mean), expected, rtol=1e-6)


def test_the_arithmetic_mean_allows_longer_steps_unless_all_are_equal():
    for seed in range(10):
        constants = np.random.default_rng(seed).lognormal(size=6).astype(np.float32)
        steps = [ef21_stepsize(1.0, constants, 0.2, mean=mean) for mean in ("arithmetic", "quadratic")]
        assert steps[0] > steps[1]
    equal = [ef21_stepsize(1.0, jnp.full(6, 3.0), 0.2, mean=mean) for mean in ("arithmetic", "quadratic")]
    np.testing.assert_allclose(equal[0], equal[1], rtol=1e-6)


@pytest.mark.parametrize("mean", ["arithmetic", "quadratic"])
def test_without_compression_it_is_the_step_of_gradient_descent(mean):
    np.testing.assert_allclose(ef21_stepsize(4.0, SMOOTHNESS, 1.0, mean=mean), 0.25, rtol=1e-6)


def test_small_contractions_do_not_cancel():
    """xi(alpha) tends to 2 / alpha - 3 / 2."""
    np.testing.assert_allclose(ef21_stepsize(1.0, jnp.ones(3), 1e-6), 1 / (1 + 2e6 - 1.5), rtol=1e-5)


def test_rare_features_by_hand():
    relevant = jnp.array([[True, False, False], [True, True, False], [False, True, True], [False, False, True]])
    np.testing.assert_allclose(rare_features_constant(relevant), 0.5)
    np.testing.assert_allclose(rare_features_constant(relevant, jnp.array([0.1, 0.2, 0.3, 0.4])), 0.7, rtol=1e-6)
    np.testing.assert_allclose(rare_features_constant(jnp.ones([5, 2], bool)), 1.0)
    # A quarter of the constant halves what the compression adds to 1 / gamma.
    gains = [1 / ef21_stepsize(1.0, SMOOTHNESS, 0.1, rare_features=c) - 1 for c in (1.0, 0.25)]
    np.testing.assert_allclose(gains[1], gains[0] / 2, rtol=1e-5)


def test_errors_of_clients_with_rare_features_add_up_to_less():
    """|sum w_i v_i|^2 <= c sum w_i |v_i|^2, with equality for one feature with equal errors."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        relevant, weights = rng.random((5, 7)) < 0.3, rng.dirichlet(np.ones(5)).astype(np.float32)
        errors = rng.normal(size=(5, 7)) * relevant
        constant = float(rare_features_constant(relevant, weights))
        assert np.sum((weights @ errors) ** 2) <= constant * (weights @ np.sum(errors**2, axis=1)) * (1 + 1e-6)
    relevant, weights = np.array([[True], [True], [False]]), np.array([0.2, 0.5, 0.3], np.float32)
    errors = relevant.astype(np.float32)
    np.testing.assert_allclose(
        np.sum((weights @ errors) ** 2),
        rare_features_constant(relevant, weights) * (weights @ np.sum(errors**2, axis=1)),
        rtol=1e-6,
    )


def test_traced_numbers():
    steps = jax.jit(jax.vmap(lambda alpha: ef21_stepsize(4.0, SMOOTHNESS, alpha)))(jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(steps, [1 / (4 + 103 / 4 * 18.486833), 0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0.0, SMOOTHNESS, 0.1), "smoothness"), ((1.0, SMOOTHNESS, 0.0), "alpha"), ((1.0, SMOOTHNESS, 1.1), "alpha")],
)
def test_bad_numbers_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        ef21_stepsize(*arguments)
    with pytest.raises(ValueError, match="rare_features must be in"):
        ef21_stepsize(1.0, SMOOTHNESS, 0.5, rare_features=0.0)
