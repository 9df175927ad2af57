"""Rearranging sharded arrays."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType

from jaxreg.typing import Array, Shaped, checked


@checked
def with_any_sharding(function: Callable, leaf: Shaped[Array, "..."], out_sharding: Any) -> Callable:
    """Lets the compiler choose how what a function computes on the way is sharded.

    With explicit axes (``jax.sharding.AxisType.Explicit``) JAX asks for the sharding of whatever is reshaped or
    gathered. On other meshes, and without one, the compiler chooses anyway.

    Args:
        function: of arrays.
        leaf: the array whose mesh it is about.
        out_sharding: of the result with explicit axes, or a pytree of them.

    Returns:
        The function.
    """
    if AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types:
        return jax.sharding.auto_axes(function, out_sharding=out_sharding)
    return function
