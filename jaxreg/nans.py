"""Measurements of what is no number.

A comparison with NaN is false and a histogram has no bin for it, so that a broken model looks like a good one, or a bad
one like another.
"""

import functools

import jax.numpy as jnp

from jaxreg.precision import at_least_float32
from jaxreg.typing import Array, Float, Shaped, checked


@checked
def unless_nan(outcome: Shaped[Array, "*#shape"], *measured: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
    """What was found about measurements, or NaN where one of them is.

    >>> import jax.numpy as jnp
    >>> from jaxreg.nans import unless_nan
    >>> x = jnp.array([1.0, 3.0, jnp.nan])
    >>> unless_nan(x > 2, x).tolist()
    [0.0, 1.0, nan]

    Args:
        outcome: numbers, or what a comparison says.
        measured: what it was found from, at least one array. All are broadcast together.

    Returns:
        The outcome, at least float32.
    """
    unknown = functools.reduce(jnp.logical_or, map(jnp.isnan, measured))
    return jnp.where(unknown, jnp.nan, at_least_float32(outcome))
