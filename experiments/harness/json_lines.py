"""Append-only files of JSON objects, one a line: what a long run writes while it goes.

A process that is killed leaves whole lines, and at worst one torn line at the end. A run that goes on from a checkpoint
writes some steps once more; what had been written of them is dropped first, so that the file ends up as if nothing had
happened.
"""

import json
import os
from pathlib import Path
from typing import Any

from experiments.harness.results import finite, write_atomically


class JsonLines:
    """A file of JSON objects, open for appending."""

    def __init__(self, path: Path, *, resume_step: int | None = None):
        """Opens the file.

        Args:
            path: of the file; its directory must exist.
            resume_step: what is there is kept up to this step, see :meth:`rewind`; None starts anew, with an empty
                file.

        Raises:
            ValueError: a line is not a JSON object.
        """
        self._path = path
        if resume_step is None or not path.exists():
            write_atomically(path, lambda file: None)
        self._file = path.open("ab")
        if resume_step is not None:
            self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """Drops lines whose ``"step"`` is greater, and a torn last line, all in one step.

        Args:
            step: the last that is kept. Lines without one are kept as well. What happened before a run went back is
                part of the step that it went back to, ``"rolled_back_to"``, where a line has that.

        Raises:
            ValueError: a line is not a JSON object.
        """
        kept = (
            line
            for line, content in _parsed(self._path)
            if content.get("rolled_back_to", content.get("step", step)) <= step
        )
        write_atomically(self._path, lambda file: file.writelines(kept))
        self._file.close()
        self._file = self._path.open("ab")

    def append(self, content: dict[str, Any], *, sync: bool = False) -> None:
        """Writes a line and hands it to the operating system, so that it survives the end of this process.

        Args:
            content: of numbers, texts, None, arrays, and dictionaries and lists of these. NaN and infinity become null.
            sync: whether to wait until it is on the disk, as :meth:`sync` does.
        """
        self._file.write(json.dumps(finite(content), allow_nan=False).encode() + b"\n")
        self._file.flush()
        if sync:
            self.sync()

    def sync(self) -> None:
        """Waits until all lines are on the disk and survive the end of the machine, too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, without a torn last line.

    Args:
        path: of the file.

    Raises:
        ValueError: the file cannot be read, or holds anything else.
    """
    return [content for _, content in _parsed(path)]


def _parsed(path):
    """Every whole line with its end, and what it says."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                except ValueError as error:
                    if not line.endswith(b"\n"):
                        return  # torn: only a last line can lack its end
                    raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
                if not isinstance(content, dict):
                    raise ValueError(f"line {number} of {path} must be a JSON object, got {type(content).__name__}")
                yield line.rstrip(b"\n") + b"\n", content
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
