import io

import pytest
from rich.console import Console

from experiments.harness.progress import TrainingProgress


def shown(*, terminal, seconds, steps, losses, **settings):
    """What is printed when steps end at these times."""
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    with TrainingProgress(100, items_per_step=500, console=console, clock=iter(seconds).__next__, **settings) as bar:
        for step, loss in zip(steps, losses, strict=True):
            bar.update(step, loss)
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end():
    """Half a step a second from step 1 on: 250 tokens a second."""
    text = shown(terminal=False, seconds=[0, 2, 4, 6, 8], steps=[1, 2, 3, 4, 5], losses=[3, 2.5, 2, 1.5, None], every=4)
    assert text.splitlines() == [
        "step 1/100 (1%), loss 3.000",
        "step 3/100 (3%), loss 2.000, 250 tokens/s, 3:14 left",
        "step 5/100 (5%), 250 tokens/s, 3:10 left",
    ]


def test_the_last_line_is_not_printed_twice():
    text = shown(terminal=False, seconds=[0, 50], steps=[99, 100], losses=[3, 2])
    assert text.splitlines() == [
        "step 99/100 (99%), loss 3.000",
        "step 100/100 (100%), loss 2.000, 10 tokens/s, 0:00 left",
    ]


def test_speed_is_that_of_the_last_half_minute():
    """A step took 1000 seconds, then ten a second."""
    seconds = [0, 1000, *(1000 + 0.1 * step for step in range(1, 400))]
    text = shown(terminal=False, seconds=seconds, steps=range(1, 402), losses=[None] * 401, every=1e9)
    assert "5k tokens/s" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [(2_500_000, 1, "2.5M tokens/s, 1:38 left"), (81_234, 100, "812 tokens/s, 2:43:20 left")],
)
def test_large_numbers_are_short(tokens, seconds, expected):
    console = Console(file=io.StringIO(), width=100)
    with TrainingProgress(
        100, items_per_step=tokens, console=console, every=0, clock=iter([0, seconds]).__next__
    ) as bar:
        bar.update(1)
        bar.update(2)
    assert expected in console.file.getvalue()


def test_on_a_terminal_there_is_a_bar():
    text = shown(terminal=True, seconds=[0, 2, 4], steps=[51, 52, 53], losses=[3, 2, 1], start=50)
    assert "training" in text
    assert "53/100 steps loss 1.000, 250 tokens/s, 1:34 left" in text.replace("\x1b[0m", "").replace("\x1b[32m", "")
