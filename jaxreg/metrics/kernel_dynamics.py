"""How fast a network's features change: the velocity of its neural tangent kernel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.linalg import matmul
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def tangent_kernel(
    apply_fn: Callable[[Any, Any], Any], params: PyTree, inputs: Float[Array, "examples *shape"]
) -> Float[Array, "examples examples"]:
    r"""The neural tangent kernel of a network, summed over its outputs.

    .. math:: K_{ij} = \sum_k \langle \nabla_\theta f_k(x_i), \nabla_\theta f_k(x_j) \rangle

    Args:
        apply_fn: ``f``, from parameters and inputs to outputs such as logits.
        params: ``theta``.
        inputs: ``x``. As many gradients are held as there are inputs times outputs.

    Returns:
        The kernel, symmetric, at least float32.

    References:
        Lee et al., *Dataset Condensation with Contrastive Signals*, ICML 2022, arXiv 2202.02916.
    """
    jacobian = jax.vmap(lambda x: jax.jacrev(lambda params: apply_fn(params, x[None])[0])(params))(inputs)
    rows = [at_least_float32(leaf).reshape(len(inputs), -1) for leaf in jax.tree.leaves(jacobian)]
    return sum(matmul(row, row.T) for row in rows)


@checked
def kernel_velocity(
    before: Float[Array, "examples examples"], after: Float[Array, "examples examples"], *, steps: ScalarLike = 1
) -> Float[Array, ""]:
    r"""Distance of two kernels per step, by their angle.

    .. math:: \frac1t \Bigl(1 - \frac{\langle K, K' \rangle}{\|K\| \|K'\|}\Bigr)

    Args:
        before: ``K``, from :func:`tangent_kernel`.
        after: ``K'``, of the same inputs some steps later.
        steps: ``t``, positive.

    Returns:
        The velocity, from 0 for a kernel that only grows or shrinks; up to ``1 / t``.

    Raises:
        ValueError: ``steps`` is not positive.

    References:
        Fort et al., *Deep learning versus kernel learning*, NeurIPS 2020, arXiv 2010.15110; used in Lee et al.,
        *Dataset Condensation with Contrastive Signals*, ICML 2022, arXiv 2202.02916.
    """
    check_range("steps", steps, "(0, inf)")
    a, b = (at_least_float32(kernel) / jnp.linalg.norm(at_least_float32(kernel)) for kernel in (before, after))
    # Half the squared distance of unit vectors: 1 - <a, b> would cancel to rounding errors.
    return 0.5 * jnp.sum(jnp.square(a - b)) / steps
