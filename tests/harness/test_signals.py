import signal
import threading

import pytest

from experiments.harness.signals import noted


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_control_c_is_noted_and_raises_once_patience_is_at_an_end(patience):
    before = signal.getsignal(signal.SIGINT)
    with noted(signal.SIGINT, patience=patience) as came:
        assert not came()
        for _ in range(patience):
            signal.raise_signal(signal.SIGINT)
            assert came()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert came()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_signals_are_only_noted():
    with noted(signal.SIGTERM, patience=0) as came:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert came()


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with noted(signal.SIGTERM, patience=0) as came:
            signal.raise_signal(signal.SIGTERM)
            assert not came()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_none_comes_and_nothing_is_changed():
    before, answers = signal.getsignal(signal.SIGINT), []

    def ask():
        with noted(signal.SIGINT, patience=0) as came:
            answers.extend([came(), signal.getsignal(signal.SIGINT) is before])

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False, True]
