"""Denoising score matching: what diffusion models are trained for, and trajectory models besides."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.axes import per_example
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def denoising_loss(
    denoiser: Callable[[Any, Any], Any],
    key: PRNGKeyArray,
    x: Float[Array, "batch *features"],
    sigma: Float[Array, "batch"],
    *,
    sigma_data: ScalarLike = 0.5,
) -> Float[Array, "batch"]:
    r"""Denoising score matching at given levels, weighted such that all of them count alike.

    .. math:: \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2}\, \|D(x + \sigma z, \sigma) - x\|_2^2, \qquad
        z \sim \mathcal N(0, I)

    Of independent normal features with standard deviation :math:`\sigma_d` the best denoiser's loss is their number,
    at every level.

    Args:
        denoiser: ``D``, from noisy examples and their levels to clean ones.
        key: of the noise.
        x: clean examples.
        sigma: noise level of each example, > 0.
        sigma_data: ``sigma_d > 0``, standard deviation of the data (paper: 0.5).

    Returns:
        The loss of each example, at least float32.

    Raises:
        ValueError: ``sigma_data`` is not positive.

    References:
        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022,
        arXiv 2206.00364.
    """
    check_range("sigma_data", sigma_data, "(0, inf)")
    clean = at_least_float32(x)
    noisy = (clean + per_example(sigma, x) * jax.random.normal(key, x.shape)).astype(x.dtype)
    error = denoiser(noisy, sigma) - clean
    weight = (jnp.square(sigma) + jnp.square(sigma_data)) / jnp.square(sigma * sigma_data)
    return weight * jnp.sum(jnp.square(error).reshape(len(x), -1), axis=-1)
