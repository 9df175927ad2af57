"""The river valley against its formula by hand, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import river_progress, river_valley_loss


def test_loss_by_hand():
    params = jnp.array([[3.0, 2.0], [0.0, -1.0]])
    loss = river_valley_loss(params, sharpness=4.0, slope=0.5, center=1.0)
    np.testing.assert_allclose(loss, [-1.5 + 2.0, 0.0 + 8.0])


def test_sharpness_and_center_may_bend_with_the_river():
    params = jnp.array([2.0, 3.0])
    bend = dict(sharpness=lambda x: 1 + x**2, center=lambda x: x / 2)
    np.testing.assert_allclose(river_valley_loss(params, slope=0.1, **bend), -0.2 + 0.5 * 5 * 4)
    # dL/dx = -slope + h'(x) (y - c)^2 / 2 - h(x) (y - c) c'(x); dL/dy = h(x) (y - c)
    gradient = jax.grad(lambda p: river_valley_loss(p, slope=0.1, **bend))(params)
    np.testing.assert_allclose(gradient, [-0.1 + 4 * 4 / 2 - 5 * 2 / 2, 5 * 2], rtol=1e-6)


def test_river_and_hill_add_up_to_the_loss():
    params = jax.random.normal(jax.random.key(0), [4, 3, 2])
    settings = dict(sharpness=jnp.cosh, slope=0.3, center=jnp.sin)
    river, hill = river_progress(params, **settings)
    assert river.shape == hill.shape == (4, 3)
    np.testing.assert_allclose(river + hill, river_valley_loss(params, **settings), rtol=1e-6)
    x, y = np.moveaxis(np.asarray(params, np.float64), -1, 0)
    np.testing.assert_allclose(river, -0.3 * x, rtol=1e-6)
    np.testing.assert_allclose(hill, 0.5 * np.cosh(x) * (y - np.sin(x)) ** 2, rtol=1e-4, atol=1e-6)


def test_bad_sharpness_is_named():
    with pytest.raises(ValueError, match=r"sharpness must be in \[0, inf\), got -1.0"):
        river_valley_loss(jnp.zeros(2), sharpness=-1.0, slope=1.0)
