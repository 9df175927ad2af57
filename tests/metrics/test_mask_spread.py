import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import mask_spread


def test_it_is_the_standard_deviation_over_masks():
    def loss(key):
        return 3.0 * jax.random.normal(key)

    np.testing.assert_allclose(mask_spread(jax.random.key(0), loss, num_masks=4000), 3.0, rtol=0.05)
    keys = jax.random.split(jax.random.key(1), 5)
    expected = np.std([float(loss(key)) for key in keys], ddof=1)
    np.testing.assert_allclose(mask_spread(jax.random.key(1), loss, num_masks=5), expected, rtol=1e-5)


def test_without_masks_there_is_no_spread():
    assert mask_spread(jax.random.key(0), lambda key: jnp.float32(1.7)) < 1e-6


def test_one_mask_is_too_few():
    with pytest.raises(ValueError, match=r"num_masks must be in \[2, inf\), got 1"):
        mask_spread(jax.random.key(0), lambda key: jnp.float32(1.0), num_masks=1)
