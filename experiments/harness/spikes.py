"""Loss spikes: found as they happen, and kept with the steps that led there.

A run that diverged overnight raises the question which layer began it, on which batch, and whether gradients, moments
or attention logits moved first. The last steps' vitals are kept in memory; when the loss or the size of the update
leaves its usual range, they are written to ``spikes.jsonl``, a line a spike.
"""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness.journal import METRICS, read_journal
from experiments.harness.json_lines import JsonLines, read_lines
from experiments.harness.vitals import Vitals
from jaxreg.typing import Array, Float, Int
from jaxreg.validation import check_range

SPIKES = "spikes.jsonl"
"""Name of the file in a run's directory."""
SMALLEST_SPREAD = 0.01
"""Part of the median that a spread is never below, or a constant would be left by its rounding."""
BEFORE = 5
"""Steps that a value is compared with to see how far it rose."""
MOST_PENDING = 8
"""Steps that may be under way before the next waits for the first of them."""


class Spike(NamedTuple):
    """A step at which a run left its usual range.

    Attributes:
        step: of the spike.
        signal: what left its range: ``loss`` or ``update_norm``, the first of them.
        value: of the signal; None if it is not finite.
        median: of the steps before.
        upper: end of the usual range; None if too few steps came before to know.
        positions: where the rows of the step's batch are from; of several processes' rows those of the first.
        window: vitals of the last steps, the spike's own at the end: ``"step"`` and the scalars of
            :class:`~experiments.harness.vitals.Vitals` as lists over steps, norms as dictionaries of such lists, whose
            entries are lists over layers for groups within the stack. Six digits are kept.
        rolled_back_to: the step that the run went back to because of the spike, if it did.
    """

    step: int
    signal: str
    value: float | None
    median: float | None
    upper: float | None
    positions: list[int]
    window: dict[str, Any]
    rolled_back_to: int | None = None


def usual_range(history: Sequence[float] | Float[Array, "steps"], *, threshold: float = 8.0) -> tuple[float, float]:
    r"""The median of recent values, and what the next must exceed to be out of range.

    The range ends where a value is unusually large, or rises unusually far above the median :math:`l_t` of the five
    before it, whichever is less: the update norm halves and doubles along a schedule, which widens the range of values.

    .. math::
        \min\bigl(E(x), \; l_{T+1} + E(x - l)\bigr), \qquad
        E(y) = m_y + \theta \max(1.4826 \operatorname{median}_t |y_t - m_y|, \; 0.01 \, |m_x|), \qquad
        m_y = \operatorname{median}_t y_t

    The factor makes the median deviation the standard deviation of normal values. Up to half of the values may be
    spikes themselves.

    Args:
        history: finite values ``x_t``, at least one, the latest last; of rises nothing is known from fewer than ten.
        threshold: ``theta > 0``.

    Returns:
        The median and the upper end of the range.

    Raises:
        ValueError: ``threshold`` is not positive.
    """
    check_range("threshold", threshold, "(0, inf]")
    values = np.asarray(history, np.float64)
    median = float(_median(values))

    def end(values):
        middle = _median(values)
        spread = 1.4826 * _median(np.abs(values - middle))
        return middle + threshold * max(spread, SMALLEST_SPREAD * abs(median))

    upper = end(values)
    if len(values) >= 2 * BEFORE:
        before = _median(np.stack([values[i : len(values) - BEFORE + 1 + i] for i in range(BEFORE)]))
        upper = min(upper, before[-1] + end(values[BEFORE:] - before[:-1]))
    return median, float(upper)


class Detector:
    """Tells of each step whether a spike begins there.

    A spike lasts until all signals are back in range, or have been elsewhere for so long that it has become usual.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("loss", "update_norm"),
        *,
        window: int = 100,
        threshold: float = 8.0,
        warmup: int = 30,
    ):
        """Knows nothing yet.

        Args:
            signals: names of the figures to watch.
            window: steps that the usual range is that of, at least 1.
            threshold: see :func:`usual_range`. Of normal values none in many thousands is out of 8.
            warmup: steps before anything finite is out of range, in [1, window].

        Raises:
            ValueError: a number is outside its range.
        """
        check_range("window", window, "[1, inf)")
        check_range("threshold", threshold, "(0, inf]")
        check_range("warmup", warmup, f"[1, {window}]")
        self.signals = frozenset(signals)
        self._history: dict[str, deque[float]] = {signal: deque(maxlen=window) for signal in signals}
        self._threshold, self._warmup = threshold, warmup
        self._spiking = False

    def see(self, figures: dict[str, float | None]) -> tuple[str, float | None, float | None] | None:
        """Takes a step's figures.

        Args:
            figures: the signals, and whatever else; None is not a number.

        Returns:
            Where a spike begins, the signal that left its range, its median and the range's upper end, None if these
            are not known; else None.
        """
        out = []
        for signal, history in self._history.items():
            value = math.nan if figures[signal] is None else float(figures[signal])
            known = len(history) >= self._warmup
            median, upper = usual_range(history, threshold=self._threshold) if known else (None, None)
            if not math.isfinite(value) or (known and value > upper):
                out.append((signal, median, upper))
            if math.isfinite(value):
                history.append(value)
        begins = bool(out) and not self._spiking
        self._spiking = bool(out)
        return out[0] if begins else None

    def state(self) -> dict[str, Any]:
        """What it knows, as JSON."""
        history = {signal: list(values) for signal, values in self._history.items()}
        return {"history": history, "spiking": self._spiking}

    def restore(self, state: dict[str, Any]) -> None:
        """Knows what another one knew, of the same signals."""
        for signal, values in self._history.items():
            values.clear()
            values.extend(state["history"][signal])
        self._spiking = state["spiking"]


class SpikeRecorder:
    """Watches a run and writes its spikes to ``spikes.jsonl``."""

    def __init__(
        self,
        workdir: Path | str,
        *,
        resume_step: int | None = None,
        usual: dict[str, Any] | None = None,
        window: int = 100,
        **settings: Any,
    ):
        """Opens ``spikes.jsonl`` in a run's directory.

        Args:
            workdir: the directory.
            resume_step: the step of the checkpoint that the run goes on from; spikes of later steps are dropped, for
                they will be found once more. A resumed run finds the spikes that an uninterrupted one does; their
                windows reach back to where it resumed, at most. None starts anew: what an earlier run has left is
                replaced.
            usual: what :meth:`usual` was at this step; if None, it is what ``metrics.jsonl`` tells, all there is to
                know where every step was logged.
            window: steps whose vitals are kept.
            settings: of :class:`Detector`.

        Raises:
            ValueError: a setting is outside its range, or what is there is not a run's.
        """
        self._workdir = Path(workdir)
        self._settings = {"window": window, **settings}
        self._detector = Detector(**self._settings)
        self._window: deque[tuple[int, Vitals]] = deque(maxlen=window)
        self._pending: deque[tuple[int, Vitals, Any]] = deque()
        self._file = JsonLines(self._workdir / SPIKES, resume_step=resume_step)
        if resume_step is not None:
            self._remember(resume_step, usual)

    def usual(self) -> dict[str, Any]:
        """What it has seen of all steps so far, for the usual ranges; JSON can hold it."""
        self._settle()
        return self._detector.state()

    def see(self, step: int, vitals: Vitals, positions: Int[Array, "rows"] | Sequence[int]) -> Spike | None:
        """Takes a step's vitals, without waiting for the step: what is not computed yet is looked at later.

        Args:
            step: its number.
            vitals: of one run, on the device or the host.
            positions: where the rows of its batch are from.

        Returns:
            A spike that has become known, of this or a recent step; it has been written.
        """
        self._pending.append((step, vitals, positions))
        return self._settle(lambda vitals: len(self._pending) > MOST_PENDING or _ready(vitals))

    def rewind(self, step: int, usual: dict[str, Any] | None = None) -> None:
        """Goes back to a step. Spikes after it are dropped but for those that are not finite, the reason to go back.

        Args:
            step: of the checkpoint.
            usual: what :meth:`usual` was then; if None, it is what ``metrics.jsonl`` tells.
        """
        self._settle()
        later = [line for line in read_lines(self._workdir / SPIKES) if line["step"] > step and line["value"] is None]
        self._file.rewind(step)
        for line in later:
            if line.get("rolled_back_to", step + 1) > step:
                self._file.append({**line, "rolled_back_to": step}, sync=True)
        self._window = deque((known for known in self._window if known[0] <= step), self._window.maxlen)
        self._remember(step, usual)

    def close(self) -> None:
        """Looks at what has not been looked at, and closes the file; a second time does nothing."""
        self._settle()
        self._file.close()

    def __enter__(self) -> "SpikeRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self, ready=lambda vitals: True) -> Spike | None:
        found = None
        while self._pending and ready(self._pending[0][1]):
            step, vitals, positions = self._pending.popleft()
            vitals = jax.tree.map(np.asarray, vitals)
            self._window.append((step, vitals))
            begins = self._detector.see(vitals._asdict())
            if begins is not None:
                signal, median, upper = begins
                value = float(getattr(vitals, signal))
                value = value if math.isfinite(value) else None
                rows = np.asarray(positions).tolist()
                spike = Spike(step, signal, value, median, upper, rows, _columns(self._window))
                line = {name: field for name, field in spike._asdict().items() if name != "rolled_back_to"}
                self._file.append(line, sync=True)
                found = found or spike
        return found

    def _remember(self, step, usual):
        """What was usual, else from the journal: twice a window, to know whether a spike is going on."""
        self._detector = Detector(**self._settings)
        if usual is not None:
            self._detector.restore(usual)
            return
        log = self._workdir / METRICS
        lines = read_journal(log) if log.exists() else []
        seen = [line for line in lines if line["step"] <= step and line.keys() >= self._detector.signals]
        for line in seen[-2 * self._settings["window"] :]:
            self._detector.see(line)


def read_spikes(path: Path | str) -> list[Spike]:
    """The spikes of a run, without a torn last line.

    Args:
        path: of ``spikes.jsonl``, which may be in use.

    Raises:
        ValueError: it cannot be read, or does not hold spikes.
    """
    lines = read_lines(Path(path))
    try:
        return [Spike(**line) for line in lines]
    except TypeError as error:
        raise ValueError(f"{path} does not hold spikes: {error}") from error


def _median(values):
    """Along the first axis; for so few values NumPy takes many times as long, and every training step pays for it."""
    ordered = np.sort(values, axis=0)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _ready(vitals):
    return all(not hasattr(leaf, "is_ready") or leaf.is_ready() for leaf in jax.tree.leaves(vitals))


def _columns(window):
    """The vitals of all steps, name by name."""
    columns: dict[str, Any] = {"step": [step for step, _ in window]}
    for name, last in window[-1][1]._asdict().items():
        values = [getattr(vitals, name) for _, vitals in window]
        if isinstance(last, dict):
            columns[name] = {group: _digits([norms[group] for norms in values]) for group in last}
        elif last is not None:
            columns[name] = _digits(values)
    return columns


def _digits(values):
    """Lists of numbers of six digits: a window of a large model is a megabyte, and would be two."""
    array = np.asarray(values, np.float64)
    return np.array([float(f"{value:.6g}") for value in array.flat]).reshape(array.shape).tolist()
