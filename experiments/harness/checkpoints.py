"""Checkpoints of a training run: written in the background, whole or not at all, and restored bit for bit.

They are Orbax's, one directory a step, which any program can read with ``orbax.checkpoint.CheckpointManager``: the item
``state`` has the arrays, the item ``extra`` has whatever else it takes to go on, as JSON.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxreg.paths import path_name


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message names the step and what is wrong with it."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: of its own.
        keep: how many of the newest stay; None for all.
        keep_every: steps whose multiples stay for good; None for none.
        asynchronous: write in the background while training goes on.
        on_saved: called with the step of each checkpoint that has arrived on disk.

    Raises:
        ValueError: see :func:`check_path`.
        CheckpointError: nothing can be written there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int | None = 3,
        keep_every: int | None = None,
        asynchronous: bool = True,
        on_saved: Callable[[int], None] = lambda step: None,
    ):
        self.directory = check_path(directory)
        self.on_saved = on_saved
        self._pending: list[int] = []
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, enable_async_checkpointing=asynchronous
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "extra": ocp.JsonCheckpointHandler()}
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        except OSError as error:
            raise CheckpointError(f"cannot use {self.directory} for checkpoints: {error.strerror}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            # After an exception the present one matters more than what became of the last checkpoint.
            if exception[0] is None:
                self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps that can be restored, in their order; waits for what is being written."""
        self.wait()
        return sorted(self._manager.all_steps())

    def latest(self, before: int | None = None) -> int | None:
        """The last step that can be restored, or the last one before a step; None if there is none."""
        return max((step for step in self.steps() if before is None or step < before), default=None)

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Saves a step; returns when the arrays may be overwritten, mostly before they are on disk.

        Raises:
            CheckpointError: this one, or the one before it, cannot be written.
        """
        self.wait()
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra))
        self._pending.append(step)
        self._attempt(lambda: self._manager.save(step, args=items, force=True))

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._attempt(self._manager.wait_until_finished)
        for step in self._pending:
            self.on_saved(step)
        self._pending.clear()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a step.

        Args:
            step: one of :meth:`steps`.
            like: the state as a tree of ``jax.ShapeDtypeStruct``, with the shardings it is to have.

        Returns:
            The state and the extra.

        Raises:
            CheckpointError: there is no such step, it is damaged, or it is of another model or optimizer.
        """
        if step not in self.steps():
            raise CheckpointError(f"{self.directory} has no step {step}; there are {self.steps() or 'none'}")
        self._check_alike(step, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), extra=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # Orbax and TensorStore raise whatever they like
            raise CheckpointError(f"step {step} in {self.directory} cannot be read: {first_line(error)}") from error
        return restored["state"], restored["extra"]

    def _check_alike(self, step, like):
        """Orbax names a shape, but not the leaf that has it."""
        try:
            metadata = self._manager.item_metadata(step)["state"]
            stored = leaf_shapes(getattr(metadata, "tree", metadata))
        except Exception as error:
            raise CheckpointError(f"step {step} in {self.directory} cannot be read: {first_line(error)}") from error
        if difference := first_difference(stored, leaf_shapes(like)):
            raise CheckpointError(f"step {step} in {self.directory} is of another model or optimizer: {difference}")

    def _attempt(self, action):
        try:
            return action()
        except Exception as error:
            step = self._pending.pop() if self._pending else "?"
            raise CheckpointError(
                f"step {step} cannot be saved in {self.directory}: {first_line(error)}; the last one that was is "
                f"{self._manager.latest_step()}"
            ) from error


def check_path(directory: Path) -> Path:
    """The absolute path of a directory for checkpoints.

    Raises:
        ValueError: it has a character by which Orbax, which looks for files by patterns, would find none of its own.
    """
    path = Path(directory).resolve()
    for character in "*?[":
        if character in str(path):
            raise ValueError(f"checkpoints must be in a path without *, ? and [, got {character} in {path}")
    return path


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a tree's leaves by their names, such as ``params/kernel``; also of what Orbax knows of a checkpoint."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {path_name(path): np.shape(leaf) for path, leaf in leaves}


def first_difference(stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str | None:
    """What :func:`leaf_shapes` of a checkpoint has otherwise than it should, in words; None if nothing."""
    for name in (*wanted, *stored):
        have, want = stored.get(name, "nothing"), wanted.get(name, "nothing")
        if have != want:
            return f"it has {have} at {name}, where {want} is expected"
    return None


def first_line(error: BaseException) -> str:
    """An exception of Orbax or TensorStore, which can fill pages, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
