"""Weights with a generalized Gaussian prior: at initialization, and reshaped after training.

Trained weights have heavier tails and a sharper peak than a Gaussian, and codes of integers are shortest for such. So
they can start that way, and be moved towards it when they are done.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.losses.generalized_gaussian import ggd_quantile, ggd_sample, ggd_variance
from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, PyTree, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def ggd_init(*, shape: ScalarLike = 1.0, mode: Literal["he", "xavier", "lecun"] = "he") -> Callable:
    r"""Initializer that draws kernels from a generalized Gaussian of the usual variance.

    .. math:: \operatorname{Var} w = 2 / n_{\text{in}} \;(\text{he}), \quad
        2 / (n_{\text{in}} + n_{\text{out}}) \;(\text{xavier}), \quad 1 / n_{\text{in}} \;(\text{lecun})

    >>> import flax.linen as nn
    >>> layer = nn.Dense(10, kernel_init=ggd_init(shape=1.0))

    Args:
        shape: ``nu > 0`` of the distribution; 2 is the usual Gaussian, the paper's priors are below 2.
        mode: of the variance.

    Returns:
        ``(key, shape, dtype=float32) -> array``, as flax takes them: inputs are the last axis but one, outputs the
        last, and all others a receptive field.

    Raises:
        ValueError: ``shape`` is not positive, or the initializer is asked for an array without two axes.

    References:
        Wu et al., *It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs*,
        arXiv 2506.00486.
    """
    check_range("shape", shape, "(0, inf)")

    def init(key, dims, dtype=jnp.float32):
        if len(dims) < 2:
            raise ValueError(f"an initializer by fan-in needs at least two axes, got dimensions {tuple(dims)}")
        field = math.prod(dims[:-2])
        fan_in, fan_out = field * dims[-2], field * dims[-1]
        variance = {"he": 2.0 / fan_in, "xavier": 2.0 / (fan_in + fan_out), "lecun": 1.0 / fan_in}[mode]
        scale = jnp.sqrt(variance / ggd_variance(shape=shape))
        return ggd_sample(key, tuple(dims), shape=shape, scale=scale).astype(dtype)

    return init


@checked
def deepshape(
    params: PyTree[Float[Array, "..."]], *, shape: ScalarLike = 1.0, strength: ScalarLike = 1.0
) -> PyTree[Float[Array, "..."]]:
    r"""Moves each array's values towards the quantiles of a generalized Gaussian, keeping their order.

    .. math:: w_i \leftarrow (1 - s)\, w_i + s\, F_\nu^{-1}\Bigl(\frac{r_i - 1/2}{n}\Bigr)

    with the rank ``r`` among the array's ``n`` values (their mean rank for equal values), and the scale at which the
    mean square is that of the array. The paper names the method but not these details: they are ours.

    Args:
        params: arrays, each with a distribution of its own.
        shape: ``nu > 0`` of the target.
        strength: ``s`` in [0, 1]; 0 changes nothing, 1 gives the quantiles themselves.

    Returns:
        Arrays of the same shapes and dtypes.

    Raises:
        ValueError: ``shape`` is not positive or ``strength`` outside [0, 1].

    References:
        Wu et al., *It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs*,
        arXiv 2506.00486.
    """
    check_range("shape", shape, "(0, inf)")
    check_range("strength", strength, "[0, 1]")

    def reshape(weights):
        if weights.size == 0:
            return weights
        values = at_least_float32(weights).ravel()
        ordered = jnp.sort(values)
        below = jnp.searchsorted(ordered, values, side="left")
        above = values.size - jnp.searchsorted(ordered, values, side="right")
        # Both tails from their own end, where small probabilities are exact; ties share their mean rank.
        fraction = (jnp.minimum(below, above) + (values.size - below - above) / 2) / values.size
        fraction = jnp.where(below == above, 0.5, fraction)
        target = jnp.sign(below - above) * -ggd_quantile(jnp.minimum(fraction, 0.5), shape=shape)
        # The mean square of finitely many quantiles is a little below the variance.
        size = jnp.mean(jnp.square(target))
        target *= jnp.sqrt(jnp.mean(jnp.square(values)) / jnp.where(size > 0, size, 1.0))
        moved = (1.0 - strength) * values + strength * target
        return moved.reshape(weights.shape).astype(weights.dtype)

    return jax.tree.map(reshape, params)
