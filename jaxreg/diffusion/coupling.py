"""Which noise goes with which example.

Noise that is paired with examples at random makes trajectories cross, and the targets of consistency training vary.
Pairing each example of a batch with noise near to it leaves both distributions as they are.
"""

import jax
import jax.numpy as jnp
import optax

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Int, checked


@checked
def minibatch_ot(x: Float[Array, "batch *features"], z: Float[Array, "batch *features"]) -> Int[Array, "batch"]:
    r"""Optimal transport within a batch: the permutation of the noise that is nearest to the examples.

    .. math:: \min_\pi \sum_j \|x_j - z_{\pi(j)}\|^2

    The Hungarian algorithm, in time cubic in the batch. It runs under ``jit`` and ``vmap``; for batches of many
    hundreds couple groups of it, ``jax.vmap(minibatch_ot)`` over a leading axis.

    >>> import jax.numpy as jnp
    >>> from jaxreg.diffusion import minibatch_ot
    >>> minibatch_ot(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[5.0], [-1.0], [0.3]])).tolist()
    [1, 2, 0]

    Args:
        x: examples.
        z: noise.

    Returns:
        ``pi``: pair ``x`` with ``z[pi]``.

    References:
        Pooladian et al., *Multisample Flow Matching*, ICML 2023, arXiv 2304.14772; in consistency training by Dao et
        al., *Improved Training Technique for Latent Consistency Models*, ICLR 2025, arXiv 2502.01441.
    """
    x, z = (jax.lax.stop_gradient(at_least_float32(points)).reshape(len(points), -1) for points in (x, z))
    # The squares of x and z are the same for every permutation.
    rows, columns = optax.assignment.hungarian_algorithm(-matmul(x, z.T))
    return jnp.zeros_like(columns).at[rows].set(columns)
