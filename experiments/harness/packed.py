"""Many small arrays as one.

Every array that a compiled function returns is made, tracked and fetched on its own, which takes the host longer than
what is in the small ones is worth: a few dozen norms cost milliseconds a step.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.typing import Array, Float


class _Layout(NamedTuple):
    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]


@jax.tree_util.register_pytree_node_class
class Packed:
    """A tree of small arrays in one vector, which may leave a jitted function and be fetched.

    Attributes:
        vector: all entries, in float32: integers beyond 2^24 would be rounded.
    """

    def __init__(self, vector: Float[Array, " entries"], layout: _Layout):
        self.vector = vector
        self._layout = layout

    @classmethod
    def of(cls, tree: Any) -> "Packed":
        """Packs a tree, under ``jit``."""
        leaves, structure = jax.tree.flatten(tree)
        layout = _Layout(structure, tuple(map(jnp.shape, leaves)), tuple(map(jnp.result_type, leaves)))
        return cls(jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves]), layout)

    def unpack(self) -> Any:
        """The tree, of NumPy arrays."""
        structure, shapes, dtypes = self._layout
        vector, leaves, start = np.asarray(self.vector), [], 0
        for shape, dtype in zip(shapes, dtypes, strict=True):
            stop = start + math.prod(shape)
            leaves.append(vector[start:stop].reshape(shape).astype(dtype, copy=False))
            start = stop
        return structure.unflatten(leaves)

    def tree_flatten(self) -> tuple[tuple[Any], _Layout]:
        """For JAX."""
        return (self.vector,), self._layout

    @classmethod
    def tree_unflatten(cls, layout: _Layout, children: tuple[Any]) -> "Packed":
        """For JAX."""
        return cls(*children, layout)
