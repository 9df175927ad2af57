"""Faults to study: gradients that spike."""

import numbers
import re
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxreg.paths import path_name
from jaxreg.typing import Array, Bool, Int, PRNGKeyArray, ScalarLike, checked
from jaxreg.validation import check_range

Gradients = TypeVar("Gradients")


@checked
def inject_spikes(
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
    gradients: Gradients,
    *,
    probability: ScalarLike,
    scale: ScalarLike,
    leaves: str = ".*",
    entries: ScalarLike | None = None,
) -> Gradients:
    r"""Multiplies gradients, on some steps.

    .. math:: g_i \leftarrow c\, g_i \quad\text{where}\quad i \in S_t, \quad\text{if}\quad u_t < p

    The key and the step decide everything, on any number of devices; other leaves and steps keep every bit.

    Args:
        key: of the run's faults.
        step: ``t``.
        gradients: a tree of arrays.
        probability: ``p`` in [0, 1], that a step is struck (:func:`is_struck`). A Python 0 costs nothing.
        scale: ``c``, any number, infinity and NaN included.
        leaves: regular expression that is searched for in the paths of the leaves, such as
            "params/blocks/mlp/down/kernel"; ``S`` is within those that have it.
        entries: chance in [0, 1] of each entry to be in ``S``, drawn anew on every step; None for all.

    Returns:
        The gradients, their dtypes as before.

    Raises:
        ValueError: a number is outside its range, or ``leaves`` is no regular expression or found in no path.
    """
    check_range("probability", probability, "[0, 1]")
    check_range("entries", entries, "[0, 1]")
    chosen = _chosen(gradients, leaves)
    if isinstance(probability, numbers.Real) and probability == 0:
        return gradients
    struck = is_struck(key, step, probability=probability)
    key_entries = jax.random.fold_in(_step_key(key, step), 1)

    def spike(gradients):
        flat, structure = jax.tree.flatten(gradients)
        for index in chosen:
            where = struck
            if entries is not None:
                key_leaf = jax.random.fold_in(key_entries, index)
                where &= jax.random.bernoulli(key_leaf, entries, flat[index].shape)
            flat[index] = jnp.where(where, (scale * flat[index]).astype(flat[index].dtype), flat[index])
        return jax.tree.unflatten(structure, flat)

    # A factor for everyone costs nothing, but as many random numbers as parameters do: only on steps that need them.
    return spike(gradients) if entries is None else jax.lax.cond(struck, spike, lambda same: same, gradients)


@checked
def is_struck(key: PRNGKeyArray, step: int | Int[Array, ""], *, probability: ScalarLike) -> Bool[Array, ""]:
    """Whether :func:`inject_spikes` multiplies any gradients on this step.

    Args:
        key: of the run's faults.
        step: which.
        probability: as given there.
    """
    return jax.random.bernoulli(jax.random.fold_in(_step_key(key, step), 0), probability)


def _step_key(key, step):
    return jax.random.fold_in(key, step)


def _chosen(gradients, leaves):
    """Which leaves, by their index."""
    try:
        pattern = re.compile(leaves)
    except re.error as error:
        raise ValueError(f"leaves must be a regular expression, got {leaves!r}: {error}") from error
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(gradients)]
    chosen = [index for index, path in enumerate(paths) if pattern.search(path)]
    if paths and not chosen:
        raise ValueError(f"leaves must be found in one of the paths {', '.join(paths)}; got {leaves!r}")
    return chosen
