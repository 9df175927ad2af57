"""Many checkpoints of one run, combined or stacked without being in memory together.

They are read some leaves at a time: of every step the first few leaves, then of every step the next few. A leaf is
known by its name, such as ``params/embedding``. No checkpoint is ever changed.
"""

import collections
import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.checkpoint_leaves import LeafReader, Select
from experiments.harness.checkpoints import CheckpointError, Checkpoints
from jaxreg.precision import at_least_float32, is_floating
from jaxreg.validation import check_range

GROUP_BYTES = 2**28
"""Of leaves that are read at once; every reading takes some milliseconds, however little it reads."""


def window(steps: Sequence[int], *, last: int | None = None, stride: int = 1, first: int | None = None) -> list[int]:
    """Chooses the steps to combine.

    >>> window([10, 20, 30, 40, 50, 60], last=2, stride=2)
    [40, 60]

    Args:
        steps: there are, in increasing order.
        last: how many to choose at most, the newest; all by default.
        stride: every how manyth, counted from the newest.
        first: the oldest that may be chosen.

    Returns:
        The steps, in increasing order; the newest is always one of them.

    Raises:
        ValueError: an argument is outside its range, or no step is left.
    """
    check_range("last", last, "[1, inf)")
    check_range("stride", stride, "[1, inf)")
    recent = [step for step in steps if first is None or step >= first]
    if not recent:
        raise ValueError(
            f"first must be at most the newest step, {max(steps, default='of which there is none')}, got {first}"
        )
    return recent[::-1][::stride][:last][::-1]


def missing_steps(steps: Sequence[int]) -> list[int]:
    """Steps that a window has not, though it has those before and after them.

    >>> missing_steps([100, 200, 300, 600, 650])
    [400, 500]

    Args:
        steps: a window, in increasing order. Their usual distance is the most frequent one.
    """
    distances = np.diff(steps)
    if not distances.size:
        return []
    usual = collections.Counter(distances.tolist()).most_common(1)[0][0]
    return [step for start, stop in itertools.pairwise(steps) for step in range(start + usual, stop, usual)]


def usable_steps(
    checkpoints: Checkpoints,
    steps: Sequence[int],
    like: Any,
    *,
    select: Select = lambda name: True,
    skip_bad: bool = False,
    group_bytes: int = GROUP_BYTES,
    on_read: Callable[[int], None] = lambda step: None,
) -> list[int]:
    """Reads checkpoints to the end and says which can be combined: whole, of this model, and finite.

    Args:
        checkpoints: of the run.
        steps: to read.
        like: what a checkpoint holds, as :func:`combine_checkpoints` takes it.
        select: which leaves to read, by name.
        skip_bad: whether to leave a bad one out, with a warning, rather than to raise.
        group_bytes: how much to read of a checkpoint at once.
        on_read: called with the step after every reading.

    Returns:
        The usable steps.

    Raises:
        CheckpointError: a step is missing, damaged, of another model, or has a weight that is not finite; with
            ``skip_bad`` if that is so for all. The message names the step and the leaf.
    """
    good = []
    with LeafReader(checkpoints, like, select, on_read) as reader:
        for step in steps:
            try:
                reader.check(step)
                for group in reader.groups(group_bytes):
                    reader.read(step, group)
                good.append(step)
            except CheckpointError as error:
                if not skip_bad:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
    if steps and not good:
        raise CheckpointError(f"none of the steps {list(steps)} in {checkpoints.directory} can be used")
    return good


def combine_checkpoints(
    checkpoints: Checkpoints,
    steps: Sequence[int],
    coefficients: Any,
    like: Any,
    *,
    select: Select = lambda name: True,
    skip_bad: bool = False,
    group_bytes: int = GROUP_BYTES,
    on_read: Callable[[int], None] = lambda step: None,
) -> Any:
    """A weighted sum of checkpoints, or several, as :func:`jaxreg.weights.linear_combination` of their stack.

    In memory are the results, in at least float32, and ``group_bytes`` of one checkpoint; or its largest leaf, if that
    is larger.

    Args:
        checkpoints: of the run.
        steps: to combine, in increasing order.
        coefficients: ``[K]``, one for each step, or ``[P, K]``. Steps whose coefficients are all zero are not read.
        like: what a checkpoint holds, as a tree of ``jax.ShapeDtypeStruct`` with the shardings that the result is to
            have.
        select: which leaves to combine, by name.
        skip_bad: whether to leave out steps that :func:`usable_steps` refuses, with a warning, and to scale the
            others' coefficients to the same sum. All are then read twice.
        group_bytes: how much to read of a checkpoint at once.
        on_read: called with the step after every reading.

    Returns:
        A tree like ``like``, with None for leaves that are not selected; ``P`` of them along a leading axis if there
        were ``P`` rows of coefficients. Leaves that are not floating are those of the last step.

    Raises:
        ValueError: there is not one coefficient for each step, or what is left of them cannot be scaled.
        CheckpointError: a step is missing, damaged, of another model, or has a weight that is not finite; the message
            names the step and the leaf.
    """
    coefficients = np.asarray(coefficients)
    if coefficients.ndim not in (1, 2) or coefficients.shape[-1] != len(steps) or not len(steps):
        raise ValueError(
            f"coefficients must have a last axis of {len(steps)}, one for each step, got shape {coefficients.shape}"
        )
    if skip_bad:
        usable = usable_steps(checkpoints, steps, like, select=select, skip_bad=True, group_bytes=group_bytes)
        coefficients = _rescaled(coefficients, [step in usable for step in steps])
        steps = usable
    contributing = [at for at in range(len(steps)) if coefficients[..., at].any()] or [len(steps) - 1]
    with LeafReader(checkpoints, like, select, on_read) as reader:
        for at in sorted({*contributing, len(steps) - 1}):
            reader.check(steps[at])
        combined = {}
        for group in reader.groups(group_bytes):
            floating = [number for number in group if is_floating(reader.leaves[number])]
            totals = _sum(reader, steps, coefficients, contributing, floating)
            others = [number for number in group if number not in totals]
            totals |= zip(others, reader.read(steps[-1], others), strict=True)
            for number in group:
                combined[number] = reader.finish(totals.pop(number), number, coefficients.shape[:-1])
        return reader.tree(combined)


def stack_checkpoints(
    checkpoints: Checkpoints,
    steps: Sequence[int],
    like: Any,
    *,
    select: Select = lambda name: True,
    group_bytes: int = GROUP_BYTES,
    on_read: Callable[[int], None] = lambda step: None,
) -> Any:
    """Checkpoints as one tree whose leaves have a leading axis of their number, where all of them fit into memory.

    Args:
        checkpoints: of the run.
        steps: to stack, in increasing order.
        like: what a checkpoint holds, as :func:`combine_checkpoints` takes it.
        select: which leaves to stack, by name.
        group_bytes: memory to spend beside the stack.
        on_read: called with the step after every reading.

    Returns:
        A tree like ``like``, with None for leaves that are not selected; for
        :func:`jaxreg.weights.linear_combination`.

    Raises:
        CheckpointError: as :func:`combine_checkpoints`.
    """
    with LeafReader(checkpoints, like, select, on_read) as reader:
        for step in steps:
            reader.check(step)
        stacked = {}
        for group in reader.groups(group_bytes // max(len(steps), 1)):
            rows = [reader.read(step, group) for step in steps]
            for number in group:
                leaves = [row.pop(0) for row in rows]
                stacked[number] = jax.jit(jnp.stack, out_shardings=reader.sharding(number, 1))(leaves)
        return reader.tree(stacked)


def _sum(reader: LeafReader, steps, coefficients, contributing, numbers):
    """The weighted sums of some leaves, by number."""
    totals = dict.fromkeys(numbers)
    for at in contributing:
        leaves = dict(zip(numbers, reader.read(steps[at], numbers), strict=True))
        for number in numbers:
            # Nothing of this step is kept while the next one is read.
            totals[number] = _add(totals[number], leaves.pop(number), coefficients[..., at])
    return totals


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, leaf, coefficients):
    wide = at_least_float32(leaf)
    scaled = jnp.tensordot(coefficients.astype(wide.dtype), wide, axes=0)
    return scaled if total is None else total + scaled


def _rescaled(coefficients, kept):
    before, coefficients = coefficients.sum(-1, keepdims=True), coefficients[..., kept]
    after = coefficients.sum(-1, keepdims=True)
    if all(kept):
        return coefficients
    if (np.abs(after) <= 1e-6 * np.abs(coefficients).sum(-1, keepdims=True)).any():
        raise ValueError(
            f"coefficients of the steps that can be used must not sum to zero, got {coefficients.tolist()}"
        )
    return coefficients * (before / after)
