"""Rates and regimes for large batches by hand, and by what they keep constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.schedules import adapted_regime, sqrt_scaled_lr


def test_rates_by_hand():
    rates = [sqrt_scaled_lr(0.1, 512), sqrt_scaled_lr(0.1, 128), sqrt_scaled_lr(0.1, 500, base_batch=20)]
    np.testing.assert_allclose(rates, [0.2, 0.1, 0.5], rtol=1e-6)


def test_the_noise_of_an_update_does_not_depend_on_the_batch():
    """The variance of rate times the mean of B unit normals is rate^2 / B."""
    batches = jnp.array([32.0, 128.0, 1000.0, 4096.0])
    rates = jax.jit(jax.vmap(lambda batch: sqrt_scaled_lr(0.1, batch)))(batches)
    np.testing.assert_allclose(rates**2 / batches, np.full(4, 0.01 / 128), rtol=1e-5)


def test_regimes_by_hand():
    """ceil(500 / 128) is 4."""
    assert adapted_regime((30, 60, 90), 500) == (120, 240, 360)
    assert adapted_regime([7], 128) == (7,)
    assert adapted_regime([], 128) == ()
    assert adapted_regime((3, 5), 64) == (3, 5)


def test_an_adapted_regime_has_at_least_as_many_updates():
    for batch in (25, 50, 130, 500, 1000):
        (epochs,) = adapted_regime((10,), batch, base_batch=25)
        assert epochs * 1000 / batch >= 10 * 1000 / 25
        if batch % 25 == 0:
            assert epochs * 1000 / batch == 400


@pytest.mark.parametrize(
    ("name", "value", "interval"), [("lr", -1, "[0, inf)"), ("batch", 0, "(0, inf)"), ("base_batch", 0, "(0, inf)")]
)
def test_bad_rates_are_named(name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        sqrt_scaled_lr(**{"lr": 0.1, "batch": 10, name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [("boundaries", -1, "[0, inf)"), ("batch", 0, "[1, inf)"), ("base_batch", 0, "[1, inf)")],
)
def test_bad_regimes_are_named(name, value, interval):
    given = {"boundaries": (3,), "batch": 10, name: (3, value) if name == "boundaries" else value}
    with pytest.raises(ValueError, match="must be in") as error:
        adapted_regime(given["boundaries"], given["batch"], base_batch=given.get("base_batch", 128))
    assert str(error.value) == f"{name} must be in {interval}, got {value}"
