"""Linear algebra that can be vmapped wherever it runs, and unit vectors.

Under ``vmap`` one matrix is taken after the other. XLA's own solvers for a batch hand it to the threads of the CPU and
wait for them, for ever if they all wait themselves: several devices on a CPU do that to each other, and so do several
solvers of one program.
"""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked


@checked
def eigh(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n"], Float[Array, "n n"]]:
    """Eigenvalues, in ascending order, and eigenvectors, in columns, of a symmetric matrix."""
    eigenvalues, vectors = _eigh(matrix)
    return eigenvalues, vectors


@checked
def svd(matrix: Float[Array, "m n"]) -> tuple[Float[Array, "m k"], Float[Array, "k"], Float[Array, "k n"]]:
    """The thin singular value decomposition ``U diag(s) V^T``, not differentiable, singular values in descending order.

    Returns:
        ``U``, ``s`` and ``V^T``; ``k`` is the smaller of ``m`` and ``n``.
    """
    left, values, right = _svd(matrix)
    return left, values, right


@checked
def unit_vectors(vectors: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
    """Vectors divided by their Euclidean length; zero stays zero, with a finite gradient.

    Args:
        vectors: of any finite length: squares that would overflow or vanish do no harm.

    Returns:
        The unit vectors, at least float32.
    """
    vectors = at_least_float32(vectors)
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    scaled = vectors / jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    squared = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(squared > 0, squared, 1.0))


@jax.custom_batching.sequential_vmap
def _one_at_a_time(matrix):
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    return eigenvalues, vectors


@jax.custom_batching.sequential_vmap
def _svd(matrix):
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right


@jax.custom_jvp
def _eigh(matrix):
    return _one_at_a_time(matrix)


@_eigh.defjvp
def _eigh_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    eigenvalues, vectors = _eigh(matrix)
    inside = vectors.T @ (0.5 * (change + change.T)) @ vectors
    gaps = eigenvalues - eigenvalues[:, None]
    turn = jnp.where(gaps == 0, 0.0, inside / jnp.where(gaps == 0, 1.0, gaps))
    return (eigenvalues, vectors), (jnp.diag(inside), vectors @ turn)
