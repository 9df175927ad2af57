"""Curvature of a loss without its Hessian: products with vectors, the trace, the largest eigenvalue.

A product of the Hessian with a vector costs about two gradients. A few dozen of them tell how sharp the loss is at the
current parameters, inside the jitted training loop, as telemetry beside the loss itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.linalg import eigh_tridiagonal

from jaxreg.linalg import tree_inner
from jaxreg.precision import widened
from jaxreg.typing import Array, Float, PRNGKeyArray, PyTree, checked
from jaxreg.validation import check_range


@checked
def hessian_vector_product(
    loss: Callable, params: PyTree[Float[Array, "..."]], vector: PyTree[Float[Array, "..."]]
) -> PyTree[Float[Array, "..."]]:
    r"""The Hessian of a loss times a vector, by differentiating the gradient along it.

    .. math:: \nabla^2 L(\theta)\, v = \frac{d}{dt} \nabla L(\theta + t v) \Big|_{t=0}

    Args:
        loss: ``L``, from parameters to a scalar.
        params: ``theta``. Half precision is widened to float32 first, and the loss evaluated there.
        vector: ``v``, of the structure of ``params``.

    Returns:
        The product, of the structure of ``params``, at least float32.

    References:
        Pearlmutter, *Fast Exact Multiplication by the Hessian*, Neural Computation 6, 1994.
    """
    params, vector = widened((params, vector))
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


@checked
def hutchinson_trace(
    key: PRNGKeyArray, loss: Callable, params: PyTree[Float[Array, "..."]], *, num_samples: int = 10
) -> Float[Array, ""]:
    r"""Hutchinson's unbiased estimate of the trace of a loss' Hessian.

    .. math:: \operatorname{tr} H = \mathbb E[z^\top H z] \approx \tfrac1m \sum_{i=1}^m z_i^\top H z_i,
        \qquad z_i \text{ of independent random signs}

    Its variance is :math:`\tfrac2m \sum_{i \ne j} H_{ij}^2`: a diagonal Hessian needs one sample.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.metrics import hutchinson_trace
    >>> float(hutchinson_trace(jax.random.key(0), lambda p: jnp.sum(3 * p["w"] ** 2), {"w": jnp.ones(5)}))
    30.0

    Args:
        key: source of the signs.
        loss: ``L``, from parameters to a scalar.
        params: where. Half precision is widened to float32 first.
        num_samples: ``m >= 1``, each the cost of two gradients, one after the other.

    Returns:
        The estimate.

    Raises:
        ValueError: ``num_samples`` is below 1.

    References:
        Hutchinson, *A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines*,
        Communications in Statistics 18, 1989.
    """
    check_range("num_samples", num_samples, "[1, inf)")
    leaves, structure = jax.tree.flatten(widened(params))

    def sample(key):
        keys = jax.random.split(key, max(len(leaves), 1))
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
        vector = structure.unflatten(signs)
        return tree_inner(vector, hessian_vector_product(loss, structure.unflatten(leaves), vector))

    return jnp.mean(jax.lax.map(sample, jax.random.split(key, num_samples)))


@checked
def top_eigenvalue(
    key: PRNGKeyArray, loss: Callable, params: PyTree[Float[Array, "..."]], *, iterations: int = 20
) -> Float[Array, ""]:
    r"""The largest eigenvalue of a loss' Hessian, its sharpness, by Lanczos from a random direction.

    Gradient descent at learning rate :math:`\eta` is stable where it is at most :math:`2 / \eta`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxreg.metrics import top_eigenvalue
    >>> round(float(top_eigenvalue(jax.random.key(0), lambda p: jnp.sum(jnp.array([1.0, 4.0]) * p**2), jnp.ones(2))), 3)
    8.0

    Args:
        key: source of the first direction.
        loss: ``L``, from parameters to a scalar.
        params: where. Half precision is widened to float32 first.
        iterations: see :func:`lanczos_top_eigenvalue`; each costs two gradients and keeps one copy of the parameters.

    Returns:
        The largest eigenvalue (not the largest in size: negative curvature does not count), from below.

    Raises:
        ValueError: ``iterations`` is below 1.

    References:
        Ghorbani et al., *An Investigation into Neural Net Optimization via Hessian Eigenvalue Density*, ICML 2019,
        arXiv 1901.10159.
    """
    params = widened(params)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    start = structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)])
    return lanczos_top_eigenvalue(lambda v: hessian_vector_product(loss, params, v), start, iterations=iterations)


@checked
def lanczos_top_eigenvalue(
    operator: Callable, start: PyTree[Float[Array, "..."]], *, iterations: int = 20
) -> Float[Array, ""]:
    r"""The largest eigenvalue of a symmetric linear operator, by Lanczos with full reorthogonalization.

    It is the largest eigenvalue of the operator on :math:`\operatorname{span}(s, A s, \dots, A^{k-1} s)`: a lower bound
    that rises with ``k``, exact once ``k`` reaches the number of distinct eigenvalues, and long before where the
    largest one stands out. In floating point the basis loses its orthogonality and shows the same eigenvalue again and
    again unless every new vector is made orthogonal to all before.

    Args:
        operator: ``A``, from a pytree like ``start`` to another.
        start: ``s``, not zero; an eigenvector that is orthogonal to it is not found.
        iterations: ``k >= 1``; each keeps one vector.

    Returns:
        The eigenvalue; 0 for an operator on nothing.

    Raises:
        ValueError: ``iterations`` is below 1.

    References:
        Golub and Van Loan, *Matrix Computations*, chapter 10.
    """
    check_range("iterations", iterations, "[1, inf)")
    start = widened(start)
    size = sum(x.size for x in jax.tree.leaves(start))
    if size == 0:
        return jnp.zeros([])
    iterations = min(iterations, size)
    eps = jnp.finfo(jnp.result_type(*jax.tree.leaves(start))).eps
    basis = jax.tree.map(lambda x: jnp.zeros([iterations, *x.shape], x.dtype), start)

    def scaled(vector, norm):
        return jax.tree.map(lambda x: jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1.0), 0.0), vector)

    def step(carry, i):
        basis, vector, largest, alive = carry
        basis = jax.tree.map(lambda b, v: b.at[i].set(v), basis, vector)
        image = operator(vector)
        alpha = tree_inner(vector, image)
        rest = image
        for _ in range(2):  # once leaves what the rounding of large components hides
            inside = sum(
                jnp.tensordot(b, x, axes=x.ndim, precision="highest")
                for b, x in zip(jax.tree.leaves(basis), jax.tree.leaves(rest), strict=True)
            )
            rest = jax.tree.map(
                lambda x, b, c=inside: x - jnp.tensordot(c, b, axes=1, precision="highest"), rest, basis
            )
        beta = jnp.sqrt(tree_inner(rest, rest))
        largest = jnp.maximum(largest, jnp.maximum(jnp.abs(alpha), beta))
        # What is left when the space is exhausted is rounding: from there on the matrix is padded.
        still_alive = alive & (beta > 20 * eps * largest)
        beta = jnp.where(still_alive, beta, 0.0)
        return (basis, scaled(rest, beta), largest, still_alive), (alpha, beta, alive)

    norm = jnp.sqrt(tree_inner(start, start))
    carry = basis, scaled(start, norm), jnp.zeros_like(norm), jnp.array(True)
    _, (alphas, betas, alive) = jax.lax.scan(step, carry, jnp.arange(iterations))
    alphas = jnp.where(alive, alphas, alphas[0])  # no eigenvalue of the padding is above the largest
    last = (iterations - 1, iterations - 1)
    return eigh_tridiagonal(alphas, betas[:-1], eigvals_only=True, select="i", select_range=last)[0]
