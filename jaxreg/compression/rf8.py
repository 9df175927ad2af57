"""RF8: floating point in eight bits, all of them for numbers.

A sign, an exponent and a mantissa as in IEEE 754, but no codes are spent on infinity and NaN, and every tensor has a
bias of its own, so that its largest value uses the largest exponent.
"""

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, ScalarLike, checked
from jaxreg.validation import check_range


@checked
def rf8_quantize(
    x: Float[Array, "*shape"], *, exp_bits: int = 4, man_bits: int = 3, bias: ScalarLike | None = None
) -> Float[Array, "*shape"]:
    r"""Rounds to the nearest number of a small floating-point format, ties to even.

    .. math:: \pm 2^{e - b} (1 + m / 2^M) \text{ for } e = 1, \dots, 2^E - 1, \qquad
        \pm 2^{1 - b}\, m / 2^M \text{ for } e = 0

    Larger values become the largest number. The paper leaves the format's details open: these are ours.

    >>> import jax.numpy as jnp
    >>> rf8_quantize(jnp.array([1.06, -1.07, 300.0, 1e6]), bias=7).tolist()
    [1.0, -1.125, 288.0, 480.0]

    Args:
        x: values. NaN stays NaN.
        exp_bits: ``E >= 1``, bits of the exponent.
        man_bits: ``M >= 0``, bits of the mantissa. With the sign 8 bits in all by default.
        bias: ``b``, an integer; by default the one at which the largest exponent is that of the largest ``|x|``.

    Returns:
        The rounded values, of the dtype of ``x``.

    Raises:
        ValueError: ``exp_bits`` or ``man_bits`` is outside its range.

    References:
        Wu et al., *It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs*,
        arXiv 2506.00486.
    """
    check_range("exp_bits", exp_bits, "[1, 7]")
    check_range("man_bits", man_bits, "[0, 10]")
    wide = at_least_float32(x)
    size = jnp.abs(wide)
    _, exponent = jnp.frexp(size)  # size is in [2**(exponent - 1), 2**exponent)
    top = 2**exp_bits - 1
    if bias is None:
        largest = jnp.max(jnp.where(jnp.isfinite(size), size, 0.0), initial=0.0)
        bias = top - (jnp.frexp(largest)[1] - 1)
    exponent = jnp.clip(exponent - 1, 1 - bias, top - bias).astype(jnp.int32)
    unit = jnp.ldexp(jnp.ones_like(wide), exponent - man_bits)
    greatest = jnp.ldexp(jnp.asarray(2.0 - 2.0**-man_bits, wide.dtype), jnp.asarray(top - bias, jnp.int32))
    rounded = jnp.minimum(jnp.round(size / unit) * unit, greatest)
    return (jnp.sign(wide) * rounded).astype(jnp.result_type(x))
