import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.spatial.distance import cdist

from jaxreg.diffusion import minibatch_ot


@pytest.mark.parametrize("shape", [(1, 2), (23, 3, 2)])
def test_the_permutation_is_scipys(shape):
    x, z = jax.random.normal(jax.random.key(0), [2, *shape])
    permutation = np.asarray(jax.jit(minibatch_ot)(x, z))
    cost = cdist(x.reshape(shape[0], -1), z.reshape(shape[0], -1), "sqeuclidean")
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_array_equal(permutation[rows], columns)


def test_groups_of_a_batch():
    """On a line, the nearest noise keeps the order."""
    x, z = jax.random.normal(jax.random.key(1), [2, 4, 6, 1])
    permutations = jax.vmap(minibatch_ot)(x, z)
    paired = jnp.take_along_axis(z, permutations[..., None], axis=1)
    np.testing.assert_array_equal(jnp.argsort(paired[..., 0]), jnp.argsort(x[..., 0]))
