"""What a training step tells about its health: norms of gradients, updates and moments, layer by layer.

Measured within the jitted step, one sum of squares a leaf, so that it costs a few reads of the parameters. Norms are
kept by group of parameters, such as ``blocks/attention``: fine enough to say where a spike began, and few enough to
keep a window of steps in memory. Where layers are stacked on a leading axis a group has one norm for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from jaxreg.paths import natural_order
from jaxreg.precision import at_least_float32, is_floating
from jaxreg.typing import Array, Float, PyTree

FIRST_MOMENTS, SECOND_MOMENTS = ("mu", "trace"), ("nu",)
"""What optax and jaxreg call running means of gradients, and of their squares, in optimizer states."""
ATTENTION_LOGIT = "max_attention_logit"
"""What blocks call what they sow."""

Norms = dict[str, Float[Array, "*layers"]]
"""Norm of each group of parameters; with an axis over layers for groups within the stack."""


class Vitals(NamedTuple):
    """Measurements of one training step, all at least float32.

    Attributes:
        loss: of the step's batch, before the update.
        gradient_norm: Euclidean norm of all gradients together.
        update_norm: of what is added to the parameters.
        parameter_norm: of the parameters, as passed.
        gradient_norms: of each group of parameters.
        update_norms: likewise.
        first_moment_norms: of the optimizer's running means of gradients; None where it has none, or keeps them as
            8-bit codes.
        second_moment_norms: of its running means of squares, likewise.
        max_attention_logits: the largest logit of each layer; None if the model did not say.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    gradient_norms: Norms
    update_norms: Norms
    first_moment_norms: Norms | None = None
    second_moment_norms: Norms | None = None
    max_attention_logits: Float[Array, "layers"] | None = None


def read_vitals(
    loss: Float[Array, ""],
    params: PyTree,
    gradients: PyTree,
    updates: PyTree,
    optimizer_state: PyTree,
    sown: Mapping[str, Any] | None = None,
    *,
    stacked: str = "blocks",
    depth: int = 2,
) -> Vitals:
    r"""Measures a training step. Call it within the jitted step; it works under ``vmap`` and on sharded leaves.

    The norm of a group :math:`G` of leaves, or of layer :math:`l` of it, is

    .. math:: \Bigl(\sum_{x \in G} \sum_i x_{(l) i}^2\Bigr)^{1/2}

    Moments are found by the name of their field (``mu``, ``trace``, ``nu``) at any depth of the state: through
    ``chain``, ``MultiSteps``, ``inject_hyperparams``, ``masked``, ``partition`` and jaxreg's wrappers. Where an
    optimizer keeps those of a stacked leaf in another shape (SPAM with a density), the group has one norm for all of
    its layers.

    Args:
        loss: of the batch.
        params: a tree of dictionaries; an outermost ``"params"`` is not part of the groups' names.
        gradients: with the parameters' structure.
        updates: likewise, what ``optimizer.update`` returned.
        optimizer_state: any.
        sown: the collection ``"vitals"`` that the model's blocks have sown ``max_attention_logit`` in, or a dictionary
            that holds this collection.
        stacked: the subtree whose leaves have a leading axis over layers.
        depth: how many names, at most, make a group's; at least 1. The leaf's own name belongs to it only if it is
            the only one: ``embedding``, ``head`` of ``head/kernel``, ``blocks/mlp`` of ``blocks/mlp/gate/kernel``.

    Returns:
        The measurements. What is not finite is not finite there either.

    Raises:
        ValueError: ``depth`` is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    shapes = {_names(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def norms(named_leaves, scale=1.0):
        squares = {}
        for names, leaf in named_leaves:
            whole = stacked not in names or jnp.shape(leaf) != shapes.get(names)
            axes = None if whole else tuple(range(1, jnp.ndim(leaf)))
            square = jnp.sum(jnp.square(at_least_float32(leaf) * scale), axes)
            squares.setdefault(_group(names, depth), []).append(square)
        return {group: jnp.sqrt(_total(parts)) / scale for group, parts in squares.items()}

    def moments(fields, scale=1.0):
        found = list(_within(optimizer_state, fields))
        known = all(is_floating(leaf) for _, leaf in found)
        return norms(found, scale) if found and known else None

    def named(tree):
        return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]

    gradient_norms, update_norms = norms(named(gradients)), norms(named(updates))
    return Vitals(
        loss=at_least_float32(loss),
        gradient_norm=_together(gradient_norms),
        update_norm=_together(update_norms),
        parameter_norm=_together(norms(named(params))),
        gradient_norms=gradient_norms,
        update_norms=update_norms,
        first_moment_norms=moments(FIRST_MOMENTS),
        # Squares of squares: those of gradients of 1e-10 would be zero in float32. A power of two costs no digits.
        second_moment_norms=moments(SECOND_MOMENTS, scale=2.0**32),
        max_attention_logits=max_attention_logits(sown, stacked=stacked),
    )


def max_attention_logits(sown: Mapping[str, Any] | None, *, stacked: str = "blocks") -> Float[Array, "layers"] | None:
    """The largest logit of attention in every layer, from what the blocks have sown.

    See :func:`~experiments.harness.attention.causal_attention`; with "cudnn" it is an upper bound.

    Args:
        sown: as :func:`read_vitals` takes it.
        stacked: where layers are an axis; elsewhere they have names, such as ``block_0`` and ``block_1``.

    Returns:
        The logits, the first layer first; None if nobody has sown any.
    """
    layers = []
    for path, leaf in jax.tree_util.tree_leaves_with_path({} if sown is None else sown):
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        if ATTENTION_LOGIT in names:
            logits = at_least_float32(leaf)
            axes = tuple(range(1, logits.ndim)) if stacked in names else None
            layers.append((natural_order("/".join(names)), jnp.atleast_1d(jnp.max(logits, axes))))
    return jnp.concatenate([logits for _, logits in sorted(layers, key=lambda layer: layer[0])]) if layers else None


def _names(path: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names[1:] if names[:1] == ("params",) else names


def _group(names: tuple[str, ...], depth: int) -> str:
    return "/".join(names[: max(1, min(depth, len(names) - 1))]) or "params"


def _total(squares):
    """Of a group: layer by layer, if all its leaves have layers."""
    if len({jnp.ndim(square) for square in squares}) > 1:
        squares = [jnp.sum(square) for square in squares]
    return sum(squares)


def _together(norms):
    return jnp.sqrt(sum((jnp.sum(jnp.square(norm)) for norm in norms.values()), jnp.zeros([])))


def _within(state, fields):
    """The leaves within fields of these names, named by their path from there."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        for position, key in enumerate(path):
            if isinstance(key, GetAttrKey) and key.name in fields:
                yield _names(path[position + 1 :]), leaf
                break
