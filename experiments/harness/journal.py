"""What a training run writes down: ``metrics.jsonl``, and TensorBoard's format for those who want it."""

import numbers
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from experiments.harness.json_lines import JsonLines, read_lines
from jaxreg.typing import Float, Int

METRICS = "metrics.jsonl"
"""Name of the log in a run's directory."""


class Journal:
    """The log of a run: one JSON object a line, each with its step."""

    def __init__(self, workdir: Path | str, *, resume_step: int | None = None, tensorboard: bool = False):
        """Opens ``metrics.jsonl`` in a directory.

        Args:
            workdir: the run's directory; it must exist.
            resume_step: the step of the checkpoint that the run goes on from, see :meth:`rewind`. None starts anew:
                what an earlier run has left is replaced.
            tensorboard: whether to write the numbers to ``workdir/tensorboard`` as well, with the package
                tensorboardX, the lightest that knows the format (NumPy and protobuf, no TensorFlow).

        Raises:
            ValueError: ``tensorboard`` is asked for and tensorboardX is not installed, or what is to be kept is not a
                log.
        """
        workdir = Path(workdir)
        self._board = _Board(workdir / "tensorboard", resume_step) if tensorboard else None
        self._lines = JsonLines(workdir / METRICS, resume_step=resume_step)

    def write(self, step: int, **figures: Any) -> None:
        """Appends a line; from then on it survives the end of this process.

        Args:
            step: of the figures; training steps count from 1, the state before is 0.
            figures: numbers, NumPy or JAX arrays, texts, None, and dictionaries and lists of these. Not a number and
                infinity are written as null, for JSON knows neither. TensorBoard gets the numbers.
        """
        self._lines.append({"step": step, **figures})
        if self._board is not None:
            for name, value in figures.items():
                if isinstance(value, numbers.Real) or (hasattr(value, "dtype") and value.shape == ()):
                    self._board.add(name, float(value), step)

    def rewind(self, step: int) -> None:
        """Goes back to a step: drops the lines of later ones and a torn last line, all at once.

        Args:
            step: the last that is kept. TensorBoard's files keep the rest, but it is no longer shown.
        """
        self._lines.rewind(step)
        if self._board is not None:
            self._board.rewind(step)

    def sync(self) -> None:
        """Waits until everything is on the disk; before a checkpoint is called complete, say."""
        self._lines.sync()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the files; a second time does nothing."""
        self._lines.close()
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a log, without a torn last one.

    Args:
        path: of ``metrics.jsonl``, which may be in use.

    Raises:
        ValueError: it cannot be read, or a line is not a JSON object.
    """
    return read_lines(Path(path))


def series(
    lines: Sequence[Mapping[str, Any]], name: str
) -> tuple[Int[np.ndarray, "lines"], Float[np.ndarray, "lines"]]:
    """The steps and values of a figure, of the lines that have it.

    Args:
        lines: of a log.
        name: of the figure. What was written as null is not a number.
    """
    having = [line for line in lines if name in line]
    return np.array([line["step"] for line in having], int), np.array([line[name] for line in having], np.float64)


class _Board:
    """TensorBoard's file of events, written at once: tensorboardX's own writer leaves a thread behind to do it."""

    def __init__(self, directory, resume_step):
        try:
            from tensorboardX import event_file_writer, summary  # optional
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        except ImportError as error:
            raise ValueError("tensorboard=True needs the package tensorboardX: pip install tensorboardX") from error
        directory.mkdir(exist_ok=True)
        self._event, self._session, self._scalar = Event, SessionLog, summary.scalar
        self._file = event_file_writer.EventsWriter(str(directory / "events"), f".{os.getpid()}")
        if resume_step is not None:
            self.rewind(resume_step)

    def add(self, name, value, step):
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)))

    def rewind(self, step):
        start = self._session(status=self._session.START)
        self._file.write_event(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def flush(self):
        self._file.flush()

    def close(self):
        self._file.close()
