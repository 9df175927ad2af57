"""The batches of a run in their order, without those that are to be left out."""

from collections.abc import Callable
from typing import Any

import jax

from experiments.harness.batches import Batch, TrainIterator


class Feed:
    """A run's batches in their order, but for those that are to be left out.

    Args:
        start: opens the batches, at a state of theirs or, with None, at the first.
        state: of a feed, to go on from.
    """

    def __init__(self, start: Callable[[dict | None], TrainIterator], state: dict[str, Any] | None = None):
        state = state or {"drawn": 0, "skipped": [], "batches": None}
        self._start = start
        self._batches = start(state["batches"])
        self.drawn: int = state["drawn"]
        self.skipped: set[int] = set(state["skipped"])

    def __next__(self) -> tuple[int, Batch]:
        """The number of a batch, and the batch."""
        while True:
            number, batch = self.drawn, next(self._batches)
            self.drawn += 1
            if number not in self.skipped:
                return number, batch

    def state(self) -> dict[str, Any]:
        """Where the feed is, as JSON; to be asked between two batches."""
        return {"drawn": self.drawn, "skipped": sorted(self.skipped), "batches": self._batches.state()}

    def reopened(self, state: dict[str, Any], skip: int) -> "Feed":
        """The feed as it was, with one more batch to leave out."""
        feed = Feed(self._start, state)
        feed.skipped |= self.skipped | {skip}
        return feed


def own_feed(extra: dict[str, Any]) -> dict[str, Any]:
    """The state of this process's feed, of those that a checkpoint has of all processes.

    Raises:
        ValueError: there were more or fewer processes, and each had its own batches.
    """
    feeds = extra["feeds"]
    if len(feeds) == jax.process_count():
        return feeds[jax.process_index()]
    if any(feed != feeds[0] for feed in feeds):
        raise ValueError(f"processes must be {len(feeds)} to resume this stream, got {jax.process_count()}")
    return feeds[0]
