"""How far a long run is: a bar on a terminal, elsewhere a line now and then."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

RECENT = 30.0
"""Seconds that the speed is a mean over."""


def live_bar(unit: str, *columns: ProgressColumn, console: Console, **options: Any) -> Progress:
    """A bar that goes when it is done: what, bar, done of total, unit, and more columns.

    Args:
        unit: what is counted, in the plural.
        columns: to show after it.
        console: where.
        options: of :class:`rich.progress.Progress`.
    """
    first = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    return Progress(*first, *columns, console=console, transient=True, **options)


class TrainingProgress:
    """Step, loss, speed and time left of a training run."""

    def __init__(
        self,
        total: int,
        *,
        items_per_step: int,
        unit: str = "tokens",
        start: int = 0,
        console: Console | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Shows nothing yet.

        Args:
            total: steps of the whole run.
            items_per_step: in the batches of all devices together.
            unit: what these are.
            start: steps that an earlier process has done.
            console: where to show it; standard output by default. If that is a terminal there is a bar.
            every: seconds between two lines elsewhere.
            clock: seconds since whenever.
        """
        self.console = Console() if console is None else console
        self._total, self._items, self._unit = total, items_per_step, unit
        self._every, self._clock = every, clock
        self._recent: deque[tuple[float, int]] = deque()
        self._last_line: float | None = None
        self._line = ""
        self._bar = None
        if self.console.is_terminal:
            # Twice a second: the bar has a thread of its own, which takes Python from the training loop.
            figures = TextColumn("{task.fields[figures]}")
            self._bar = live_bar("steps", figures, console=self.console, refresh_per_second=2)
            self._task = self._bar.add_task("compiling", total=total, completed=start, figures="")

    def update(self, step: int, loss: float | None = None) -> None:
        """Tells that a step is done.

        Args:
            step: its number; the first of a run is 1.
            loss: of the step, or of a recent one: whoever reads a loss waits for its step.
        """
        now = self._clock()
        self._recent.append((now, step))
        while len(self._recent) > 2 and now - self._recent[1][0] >= RECENT:
            self._recent.popleft()
        if self._bar is not None:
            self._bar.update(self._task, description="training", completed=step, figures=self._figures(step, loss))
            return
        self._line = ", ".join(
            filter(None, [f"step {step}/{self._total} ({step / self._total:.0%})", self._figures(step, loss)])
        )
        if self._last_line is None or now - self._last_line >= self._every:
            self._last_line = now
            self._print()

    def _figures(self, step, loss):
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        (then, before), (now, _) = self._recent[0], self._recent[-1]
        if step > before and now > then:  # the first step is no measure: it was compiled
            speed = (step - before) / (now - then)
            left = _duration((self._total - step) / speed)
            parts += [f"{_short(speed * self._items)} {self._unit}/s", f"{left} left"]
        return ", ".join(parts)

    def _print(self):
        self.console.print(self._line, soft_wrap=True, markup=False, highlight=False)
        self._line = ""

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away, or prints the last step if it has not been."""
        if self._bar is not None:
            self._bar.stop()
        elif self._line:
            self._print()


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
