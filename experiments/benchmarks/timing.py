"""Timing as paired ratios.

The clock of a shared machine drifts by more than the differences worth knowing. So two things are timed by turns, and
what is kept is the ratio of neighbours: whatever slowed the machine down slowed both.
"""

import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """Time of a candidate over the time of its peer, over many pairs.

    Attributes:
        median: of the pairs' ratios.
        low: their lower quartile.
        high: their upper quartile.
        seconds: median time of one call of the candidate.
        peer_seconds: median time of one call of the peer.
    """

    median: float
    low: float
    high: float
    seconds: float
    peer_seconds: float

    def figures(self, *, name: str = "ms", steps: int = 1) -> dict[str, object]:
        """What a table and its JSON have of it.

        Args:
            name: of the candidate's milliseconds; the peer's have ``peer_`` before it.
            steps: in a call, to have the milliseconds of one.
        """
        return {
            "ratio": round(self.median, 4),
            "ratio_quartiles": [round(self.low, 4), round(self.high, 4)],
            name: round(1e3 * self.seconds / steps, 4),
            f"peer_{name}": round(1e3 * self.peer_seconds / steps, 4),
        }


def paired_ratio(
    candidate: Callable[[], object],
    peer: Callable[[], object],
    *,
    repeats: int,
    sample_seconds: float = 0.05,
) -> Ratio:
    """Times two functions by turns and compares neighbours.

    Every pair runs both, each as often as fits in a sample; who goes first alternates. Two pairs warm up.

    Args:
        candidate: does the work once, and returns when it is done.
        peer: what to compare with, likewise.
        repeats: pairs to measure, at least 1.
        sample_seconds: least duration of one sample, far above the clock's resolution.

    Returns:
        The ratio of the candidate's time to the peer's.
    """
    functions = (candidate, peer)
    for function in functions:
        _seconds(function, calls=1)
    calls = max(1, round(sample_seconds / min(_seconds(function, calls=1) for function in functions)))
    pairs = np.empty([repeats, 2])
    for pair, order in zip(pairs, itertools.cycle([(0, 1), (1, 0)]), strict=False):
        for which in order:
            pair[which] = _seconds(functions[which], calls=calls)
    low, median, high = np.quantile(pairs[:, 0] / pairs[:, 1], [0.25, 0.5, 0.75])
    seconds, peer_seconds = np.median(pairs, axis=0)
    return Ratio(float(median), float(low), float(high), float(seconds), float(peer_seconds))


def _seconds(function, *, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls
