"""Networks of any architecture as rows of one length, and back.

The parameters are taken layer by layer, in their natural order; each layer is padded to whole rows. So a row belongs to
one layer, whose scale it can be given, and networks of different depths differ only in how many rows they have.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.linalg import matmul
from jaxreg.paths import natural_order, path_name
from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Bool, Float, Int, PyTree, checked
from jaxreg.validation import check_range


@checked
def tokenize_params(params: PyTree, *, chunk: int = 64) -> tuple[Float[Array, "rows chunk"], Bool[Array, "rows chunk"]]:
    """The parameters of a network in rows of one length.

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import detokenize, tokenize_params
    >>> params = {"layer_10": {"w": jnp.array([5.0])}, "layer_9": {"w": jnp.array([[1.0, 2.0, 3.0]])}}
    >>> rows, mask = tokenize_params(params, chunk=2)
    >>> rows.tolist()
    [[1.0, 2.0], [3.0, 0.0], [5.0, 0.0]]
    >>> detokenize(rows, params)["layer_9"]["w"].tolist()
    [[1.0, 2.0, 3.0]]

    Args:
        params: of the network. A layer is a node of the tree with leaves right below it.
        chunk: length of a row, at least 1.

    Returns:
        The rows, at least float32, zero where they are padded; and where they are not. Leaves that are not floating
        are left out.

    Raises:
        ValueError: ``chunk`` is below 1, or no leaf is floating.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    leaves = jax.tree.leaves(params)
    rows, mask = [], []
    for layer in _layers(params, chunk):
        flat = jnp.concatenate([at_least_float32(leaves[number]).ravel() for number in layer])
        padding = -flat.size % chunk
        rows.append(jnp.pad(flat, (0, padding)).reshape(-1, chunk))
        mask.append((np.arange(flat.size + padding) < flat.size).reshape(-1, chunk))
    return jnp.concatenate(rows), jnp.asarray(np.concatenate(mask))


@checked
def detokenize(chunks: Float[Array, "rows chunk"], template: PyTree) -> PyTree:
    """The network that rows describe: the inverse of :func:`tokenize_params`.

    Args:
        chunks: the rows; what is padding does not matter.
        template: a network of that architecture, or its shapes (``jax.eval_shape``).

    Returns:
        A tree like ``template``, in its dtypes. Leaves that are not floating are those of ``template``, zero if it has
        shapes only.

    Raises:
        ValueError: ``chunks`` has another number of rows than the architecture.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    leaves, structure = jax.tree.flatten(template)
    rows, width = chunks.shape
    expected = len(chunk_layers(template, chunk=width))
    if rows != expected:
        raise ValueError(f"chunks must have {expected} rows for this template, got {rows}")
    made = [jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in leaves]
    start = 0
    for layer in _layers(template, width):
        flat = chunks[start:].ravel()
        end = 0
        for number in layer:
            shape, size = leaves[number].shape, math.prod(leaves[number].shape)
            made[number] = flat[end : end + size].reshape(shape).astype(leaves[number].dtype)
            end += size
        start += math.ceil(end / width)
    return jax.tree.unflatten(structure, made)


@checked
def chunk_layers(template: PyTree, *, chunk: int = 64) -> Int[Array, "rows"]:
    """Which layer each row of :func:`tokenize_params` belongs to.

    Args:
        template: a network, or its shapes.
        chunk: length of a row, at least 1.

    Returns:
        The layers' numbers, from 0.

    Raises:
        ValueError: ``chunk`` is below 1, or no leaf is floating.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    leaves = jax.tree.leaves(template)
    sizes = [sum(math.prod(leaves[number].shape) for number in layer) for layer in _layers(template, chunk)]
    return np.repeat(np.arange(len(sizes)), [math.ceil(size / chunk) for size in sizes])


class ChunkScale(NamedTuple):
    """The scale of each row, that of its layer.

    Attributes:
        mean: of the layer's parameters over the networks.
        std: their standard deviation, 1 where it is 0.
    """

    mean: Float[Array, "rows 1"]
    std: Float[Array, "rows 1"]

    @checked
    def standardize(self, chunks: Float[Array, "*batch rows chunk"]) -> Float[Array, "*batch rows chunk"]:
        """Rows with mean 0 and standard deviation 1 in each layer."""
        return (chunks - self.mean) / self.std

    @checked
    def restore(self, chunks: Float[Array, "*batch rows chunk"]) -> Float[Array, "*batch rows chunk"]:
        """The inverse."""
        return chunks * self.std + self.mean


@checked
def chunk_scale(
    chunks: Float[Array, "networks rows chunk"], mask: Bool[Array, "rows chunk"], layers: Int[Array, "rows"]
) -> ChunkScale:
    """The scale of each layer of networks of one architecture: layers of other fan-in have other weights.

    Args:
        chunks: of several networks, from :func:`tokenize_params`.
        mask: of any of them.
        layers: from :func:`chunk_layers`.

    Returns:
        Mean and standard deviation of the layer that a row belongs to, padding left out.

    References:
        Soro et al., *Instruction-Guided Autoregressive Neural Network Parameter Generation*, arXiv 2504.02012.
    """
    same = (jnp.asarray(layers)[:, None] == jnp.asarray(layers)).astype(chunks.dtype)
    counts = len(chunks) * matmul(same, jnp.sum(mask, axis=1, keepdims=True))

    def mean(values):
        totals = jnp.sum(jnp.where(mask, values, 0.0), axis=(0, 2))[:, None]
        return matmul(same, totals) / counts

    centre = mean(chunks)
    std = jnp.sqrt(mean(jnp.square(chunks - centre)))
    return ChunkScale(centre, jnp.where(std > 0, std, 1.0))


def _layers(params: Any, chunk: int) -> list[list[int]]:
    """The numbers of the floating leaves of each layer, in the order of the layers."""
    check_range("chunk", chunk, "[1, inf)")
    layers: dict[str, list[int]] = {}
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        if is_floating(leaf):
            layers.setdefault(path_name(path[:-1]), []).append(number)
    if not layers:
        raise ValueError("a network needs at least one leaf of floating type, got none")
    return [layers[name] for name in sorted(layers, key=natural_order)]
