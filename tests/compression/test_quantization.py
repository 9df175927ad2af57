import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.compression import fake_quant_int4


def test_every_group_has_at_most_sixteen_values():
    weight = jax.random.normal(jax.random.key(0), [48, 64])
    rows = np.asarray(fake_quant_int4(weight)).T.reshape(-1, 256)
    assert max(len(np.unique(np.round(row, 6))) for row in rows) == 16


def test_by_hand():
    # From -1 to 2: steps of 0.2, zero point 5. One column is one group.
    weight = jnp.array([[-1.0], [2.0], [0.29], [0.31], [0.0]])
    np.testing.assert_allclose(fake_quant_int4(weight, group=5), [[-1.0], [2.0], [0.2], [0.4], [0.0]], atol=1e-6)


def test_groups_run_along_the_inputs():
    weight = jnp.array([[1.0, 100.0], [2.0, 200.0], [3.7, 1500.0]])
    quantized = fake_quant_int4(weight, group=3)
    scale = (3.7 - 1.0) / 15  # of a group without zero, whose zero point is 0 and whose greatest value is 15 steps
    np.testing.assert_allclose(quantized[:, 0], np.minimum(np.round(weight[:, 0] / scale), 15) * scale, rtol=1e-5)
    np.testing.assert_allclose(quantized[0, 1], np.round(100 / (1400 / 15)) * 1400 / 15, rtol=1e-5)


def test_zero_stays_zero_and_constants_are_finite():
    weight = jax.random.normal(jax.random.key(1), [16, 16]).at[3, 4].set(0.0)
    assert fake_quant_int4(weight)[3, 4] == 0
    np.testing.assert_array_equal(fake_quant_int4(jnp.zeros([4, 4])), np.zeros([4, 4]))


def test_the_last_group_may_be_smaller():
    weight = jax.random.normal(jax.random.key(2), [7, 3])
    flat = np.asarray(weight).T.ravel()
    parts = [fake_quant_int4(jnp.asarray(flat[i : i + 8])[:, None], group=8).ravel() for i in (0, 8, 16)]
    np.testing.assert_allclose(np.asarray(fake_quant_int4(weight, group=8)).T.ravel(), np.concatenate(parts), rtol=1e-6)


def test_the_gradient_passes_straight_through():
    weight = jax.random.normal(jax.random.key(3), [8, 8])
    gradient = jax.grad(lambda w: jnp.sum(jnp.square(fake_quant_int4(w))))(weight)
    np.testing.assert_allclose(gradient, 2 * fake_quant_int4(weight), rtol=1e-5)


def test_half_precision_stays():
    assert fake_quant_int4(jnp.ones([4, 4], jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_group_below_one_is_refused():
    with pytest.raises(ValueError, match="group must be in"):
        fake_quant_int4(jnp.ones([4, 4]), group=0)
