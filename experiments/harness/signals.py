"""Signals that wait until they are asked for: between two steps, between two batches."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def noted(*numbers: signal.Signals, patience: int) -> Iterator[Callable[[], bool]]:
    """A function that tells whether one of some signals has come.

    In other threads than the main one, which alone gets signals, none ever comes. What was ignored stays ignored.

    Args:
        numbers: the signals.
        patience: after how many of them control-C raises ``KeyboardInterrupt`` at once as well; 0 for every time.
    """
    came: list[int] = []

    def handle(number, frame):
        came.append(number)
        if number == signal.SIGINT and len(came) > patience:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
