import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.linalg import eigh


def test_eigh_alone_and_vmapped():
    matrices = jax.random.normal(jax.random.key(0), [3, 4, 4])
    matrices = matrices + matrices.swapaxes(1, 2)
    for values, vectors, matrix in zip(*jax.jit(jax.vmap(eigh))(matrices), matrices, strict=True):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-5)
    np.testing.assert_allclose(eigh(jnp.diag(jnp.array([2.0, -1.0])))[0], [-1.0, 2.0])
