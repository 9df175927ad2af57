"""The vocabulary of jaxreg's signatures, and the one decorator that checks them.

A signature such as ``logits: Float[Array, "*batch classes"]`` is the contract of a function. ``@checked`` compares it
with what is passed whenever the function is called from Python: under ``jit`` that is once, while tracing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import numpy as np
from beartype import beartype
from jaxtyping import Bool, Float, PRNGKeyArray, PyTree, Shaped, jaxtyped
from jaxtyping import Integer as Int  # labels and indices may be unsigned: uint8 labels are common

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "PRNGKeyArray",
    "PyTree",
    "ScalarLike",
    "ScalarOrSchedule",
    "Shaped",
    "checked",
]

if TYPE_CHECKING:
    Array: TypeAlias = jax.Array | np.ndarray
else:

    class _AnyArray(type):
        def __instancecheck__(cls, value):
            if isinstance(value, jax.Array | np.ndarray | np.generic):
                return True
            # Within a gradient older JAX has NumPy arrays in a type of its own, which is neither.
            return isinstance(value, jax.typing.ArrayLike) and hasattr(value, "shape")

    class Array(metaclass=_AnyArray):
        """A JAX array, traced or not, or a NumPy array: whatever ``jnp`` functions accept."""


ScalarLike: TypeAlias = float | int | Float[Array, ""] | Int[Array, ""]
ScalarOrSchedule: TypeAlias = ScalarLike | Callable[..., ScalarLike]

checked = jaxtyped(typechecker=beartype)
