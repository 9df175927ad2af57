"""Linear algebra that can be vmapped wherever it runs, products in full precision, and trees of arrays as vectors.

Under ``vmap`` one matrix is taken after the other. XLA's own solvers for a batch hand it to the threads of the CPU and
wait for them, for ever if they all wait themselves: several devices on a CPU do that to each other, and so do several
solvers of one program.
"""

import functools

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, checked

matmul = functools.partial(jnp.matmul, precision="highest")
"""``jnp.matmul`` in the precision of its operands, where accelerators multiply float32 with fewer digits by default."""


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
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True, initial=0.0)
    scaled = vectors / jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    squared = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(squared > 0, squared, 1.0))


@checked
def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square roots with a slope of zero at zero, where it is infinite; by symmetry the right one for a distance.

    Args:
        x: such as sums of squares; what is negative, by rounding, counts as zero. NaN stays NaN.

    Returns:
        The roots.
    """
    return jnp.where(x <= 0, 0.0, jnp.sqrt(jnp.where(x <= 0, 1.0, x)))


@checked
def tree_inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The inner product of two trees of arrays, all leaves of each as one vector; leaves keep their sharding.

    Args:
        a: any tree of floating-point arrays.
        b: another of the same structure.

    Returns:
        The product; 0 for empty trees.
    """
    # optax.tree.vdot flattens the leaves, which sharded ones resist.
    products = [jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return sum(products, jnp.zeros([], jnp.float32))


@checked
def over_largest(tree: PyTree) -> PyTree:
    """A tree of arrays divided by its largest entry, so that squares neither overflow nor underflow.

    Args:
        tree: of floating-point arrays.

    Returns:
        The tree, the same where all entries are zero.
    """
    largest = largest_entry(tree)
    return jax.tree.map(lambda x: x / jnp.where(largest > 0, largest, 1.0), tree)


@checked
def largest_entry(tree: PyTree) -> Float[Array, ""]:
    """The largest absolute value in a tree of arrays.

    Args:
        tree: of floating-point arrays.

    Returns:
        The value; 0 for an empty tree.
    """
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)] or [jnp.zeros([])]))


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
    inside = matmul(matmul(vectors.T, 0.5 * (change + change.T)), vectors)
    gaps = eigenvalues - eigenvalues[:, None]
    turn = jnp.where(gaps == 0, 0.0, inside / jnp.where(gaps == 0, 1.0, gaps))
    return (eigenvalues, vectors), (jnp.diag(inside), matmul(vectors, turn))
