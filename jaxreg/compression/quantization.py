"""Fake quantization: values rounded to what few bits can hold, gradients as if they weren't."""

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, checked
from jaxreg.validation import check_range


@checked
def fake_quant_int4(weight: Float[Array, "inputs outputs"], *, group: int = 256) -> Float[Array, "inputs outputs"]:
    r"""A weight matrix as 4-bit integers with a scale and a zero point for every group would represent it.

    The transposed matrix (so that an output's weights are neighbours) is flattened and cut in groups. With the least
    and the greatest entry :math:`l, h` of a group, :math:`s = \max(h - l, 10^{-5}) / 15` and
    :math:`z = \mathrm{clip}(\mathrm{round}(-l / s), 0, 15)`

    .. math:: w \leftarrow s \, \bigl(\mathrm{clip}(\mathrm{round}(w / s) + z,\, 0,\, 15) - z\bigr)

    So a group has at most 16 values, and zero is one of them. The gradient passes straight through.

    Args:
        weight: ``w``, a flax kernel; the last group may be smaller than the others.
        group: weights that share a scale, at least 1 (paper: 256).

    Returns:
        The quantized weights, in the dtype of ``weight``.

    Raises:
        ValueError: ``group`` is below 1.

    References:
        Huang et al., *Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam*, arXiv 2502.17055.
    """
    check_range("group", group, "[1, inf)")
    if not weight.size:
        return weight
    flat = jnp.ravel(at_least_float32(weight).T)
    # Filled up with a weight that the last group has anyway.
    rows = jnp.pad(flat, [0, -flat.size % group], mode="edge").reshape(-1, group)
    low, high = (end(rows, axis=1, keepdims=True) for end in (jnp.min, jnp.max))
    scale = jnp.maximum(high - low, 1e-5) / 15
    zero = jnp.clip(jnp.round(-low / scale), 0, 15)
    rounded = (jnp.clip(jnp.round(rows / scale) + zero, 0, 15) - zero) * scale
    quantized = rounded.ravel()[: flat.size].reshape(weight.T.shape).T.astype(weight.dtype)
    return weight + jax.lax.stop_gradient(quantized - weight)
