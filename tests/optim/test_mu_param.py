"""The simple muParam by hand, and what it is for: the outputs of all widths move alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import mu_scale


def test_updates_are_scaled_by_the_number_of_inputs():
    updates = {
        "kernel": jnp.ones([128, 10]),
        "conv": jnp.ones([3, 3, 16, 8]),
        "bias": jnp.ones([10]),
        "scale": jnp.ones([]),
        "empty": jnp.ones([0, 3]),
    }
    transformation = mu_scale(32)
    scaled, _ = transformation.update(updates, transformation.init(updates))
    expected = {"kernel": 32 / 128, "conv": 32 / 144, "bias": 1.0, "scale": 1.0}
    for name, factor in expected.items():
        np.testing.assert_allclose(scaled[name], np.full(updates[name].shape, factor), rtol=1e-6)
    assert scaled["empty"].shape == (0, 3)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_a_sign_step_moves_the_output_of_every_width_alike(width):
    """A layer that sums inputs of size one moves by width times the step: 0.01 * 16 whatever the width."""
    kernel, inputs = jnp.zeros([width, 1]), jnp.where(jnp.arange(width) % 3 == 0, 1.0, -1.0)
    optimizer = optax.chain(optax.scale_by_sign(), mu_scale(16), optax.scale(-0.01))
    gradient = jax.grad(lambda w: -(inputs @ w).sum())(kernel)
    updates, _ = optimizer.update(gradient, optimizer.init(kernel))
    np.testing.assert_allclose(inputs @ updates, [0.16], rtol=1e-5)


def test_a_width_that_is_no_width_is_named():
    with pytest.raises(ValueError, match=r"base_width must be in \(0, inf\), got 0"):
        mu_scale(0)
