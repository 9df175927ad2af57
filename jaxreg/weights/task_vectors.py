"""Task vectors: what fine-tuning changed, as trees to calculate with.

Models of several tasks are one stacked tree with a leading axis::

    finetuned = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Float, PyTree, checked
from jaxreg.validation import check_same_shapes


@checked
def task_vector(pretrained: PyTree, finetuned: PyTree) -> PyTree:
    r"""What fine-tuning changed.

    .. math:: \tau = \theta_\text{ft} - \theta_\text{pre}

    Args:
        pretrained: parameters before fine-tuning.
        finetuned: parameters after it, or a stack of several such.

    Returns:
        A tree like ``finetuned``, floating leaves at least float32. Other leaves, such as counters, are zero.

    Raises:
        ValueError: ``finetuned`` is neither a tree with the shapes of ``pretrained`` nor a stack of such.

    References:
        Ilharco et al., *Editing Models with Task Arithmetic*, ICLR 2023, arXiv 2212.04089.
    """
    pairs = zip(jax.tree.leaves(pretrained), jax.tree.leaves(finetuned), strict=False)
    stacked = any(jnp.ndim(after) > jnp.ndim(before) for before, after in pairs)
    check_same_shapes("finetuned", finetuned, pretrained, leading=["models"] if stacked else [])

    def difference(before, after):
        if not is_floating(after):
            return jnp.zeros_like(after)
        return at_least_float32(after) - at_least_float32(before)

    return jax.tree.map(difference, pretrained, finetuned)


@checked
def add_task_vector(pretrained: PyTree, vector: PyTree) -> PyTree:
    r"""The model that a task vector leads to.

    .. math:: \theta = \theta_\text{pre} + \tau

    Args:
        pretrained: ``theta_pre``.
        vector: ``tau``, a task vector or a combination of several.

    Returns:
        A tree like ``pretrained``, in its dtypes; leaves that are not floating are its own.

    Raises:
        ValueError: the trees differ in structure or shapes.

    References:
        Ilharco et al., *Editing Models with Task Arithmetic*, ICLR 2023, arXiv 2212.04089.
    """
    check_same_shapes("vector", vector, pretrained)

    def add(leaf, by):
        return (at_least_float32(leaf) + by).astype(jnp.result_type(leaf)) if is_floating(leaf) else jnp.asarray(leaf)

    return jax.tree.map(add, pretrained, vector)


@checked
def flatten_stack(stack: PyTree) -> tuple[Float[Array, "members size"], Callable[[Any], Any]]:
    """A stack of trees as one matrix, a row for each.

    >>> import jax.numpy as jnp
    >>> from jaxreg.weights import flatten_stack
    >>> rows, unflatten = flatten_stack({"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([10.0, 20.0])})
    >>> rows.tolist()
    [[0.0, 1.0, 2.0, 10.0], [3.0, 4.0, 5.0, 20.0]]
    >>> unflatten(rows.sum(0))["a"].tolist()
    [3.0, 5.0, 7.0]

    Args:
        stack: a tree whose leaves have a leading axis, the same for all.

    Returns:
        The rows, at least float32, without what is not floating; and the function that makes a single tree of a
        vector as long as a row, with the leaves' own dtypes and zeros for what is not floating.

    Raises:
        ValueError: no leaf is floating.
    """
    leaves, structure = jax.tree.flatten(stack)
    floating = [at_least_float32(leaf) for leaf in leaves if is_floating(leaf)]
    if not floating:
        raise ValueError("a stack needs at least one leaf of floating type, got none")
    rows = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in floating], axis=1)
    kinds = [(jnp.shape(leaf)[1:], jnp.result_type(leaf), is_floating(leaf)) for leaf in leaves]

    def unflatten(vector):
        parts, start = [], 0
        for shape, dtype, floats in kinds:
            size = math.prod(shape) if floats else 0
            part = vector[start : start + size].reshape(shape) if floats else jnp.zeros(shape)
            parts.append(part.astype(dtype))
            start += size
        return jax.tree.unflatten(structure, parts)

    return rows, unflatten
