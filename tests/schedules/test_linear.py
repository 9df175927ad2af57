"""The share of past predictions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.schedules import pskd_alpha


def test_it_grows_linearly_from_the_first_epoch_to_the_last_and_stays():
    ours = jax.jit(jax.vmap(lambda epoch: pskd_alpha(epoch, total=4, final=0.6)))(jnp.arange(6))
    np.testing.assert_allclose(ours, [0.15, 0.3, 0.45, 0.6, 0.6, 0.6], rtol=1e-6)


def test_traced_hyperparameters():
    ours = jax.jit(lambda total, final: pskd_alpha(2, total=total, final=final))(300, 0.8)
    np.testing.assert_allclose(ours, 0.8 * 3 / 300, rtol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("total", 0), ("final", 1.0), ("final", -0.1)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in .*, got {value}"):
        pskd_alpha(0, **{"total": 10, name: value})
