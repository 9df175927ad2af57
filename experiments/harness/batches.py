"""What training gets: batches of token windows or of other examples, from an iterator that can be resumed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxreg.typing import Array, Int, Shaped
from jaxreg.validation import check_range


class Batch(NamedTuple):
    """Windows of text.

    Attributes:
        tokens: int32; inputs are ``tokens[:, :-1]``, targets ``tokens[:, 1:]``.
        positions: int64; where each row is from: the offset of its first token in :attr:`Corpus.text`; for a stream
            the number of the document it begins in, among those that this process reads in one pass.
    """

    tokens: Int[Array, "rows context+1"]
    positions: Int[Array, " rows"]

    @property
    def rows(self) -> Int[Array, "rows context+1"]:
        """What a step of training takes."""
        return self.tokens


class Examples(NamedTuple):
    """A batch of images or points.

    Attributes:
        rows: the examples.
        positions: which they are, of those that are trained on.
    """

    rows: Shaped[Array, "rows *features"]
    positions: Int[Array, " rows"]


class TrainIterator:
    """Endless batches, each made ahead of its use."""

    def __init__(self, batches: Iterator[tuple[Batch | Examples, dict[str, Any]]], state: dict[str, Any]):
        """Wraps pairs of a batch and the state after it.

        Args:
            batches: what to iterate over.
            state: before the first.
        """
        self._batches, self._state = batches, state

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Batch | Examples:
        batch, self._state = next(self._batches)
        return batch

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, for :attr:`Corpus.train`; JSON can hold it."""
        return self._state


class Corpus(NamedTuple):
    """A text to train on, and one to be judged by.

    Attributes:
        vocab_size: tokens are below it.
        encode: from a text to its tokens, int32.
        decode: from tokens to text.
        train: ``(state=None) -> TrainIterator``: endless batches, from the beginning or from such an iterator's state.
            The state of a text in memory is the number of the next batch, ``{"batch": 17, ...}``, the same on every
            process and valid for any number of them. A stream's state holds for its process alone.
        validation: ``(batches) -> list[Batch]``: the same at every call, from text that is not trained on.
        text: all tokens of a text in memory, which positions count; empty for a stream.
    """

    vocab_size: int
    encode: Callable[[str], Int[Array, " tokens"]]
    decode: Callable[[Sequence[int] | Int[Array, " tokens"]], str]
    train: Callable[..., TrainIterator]
    validation: Callable[[int], list[Batch]]
    text: Int[Array, " tokens"]


def check_batches(batch: int, seed: int, *, process_index: int, process_count: int) -> None:
    """Raises a ValueError that names what cannot be: parts of batches are alike on all processes, seeds fit 31 bits.

    Args:
        batch: rows of a training step, over all processes.
        seed: of their order.
        process_index: which rows of every batch a process gets.
        process_count: divides ``batch``.
    """
    check_range("batch", batch, "[1, inf)")
    check_range("seed", seed, f"[0, {2**31})")
    check_range("process_count", process_count, "[1, inf)")
    check_range("process_index", process_index, f"[0, {process_count})")
    if batch % process_count:
        raise ValueError(f"batch must be divisible by process_count = {process_count}, got {batch}")


def check_same(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises unless a state to resume from is of the corpus at hand.

    Args:
        state: of a :class:`TrainIterator`, which has its corpus' identity as ``"corpus"``.
        identity: all that decides the batches of the corpus.

    Raises:
        ValueError: something of it was different; the message says what.
    """
    for name, value in identity.items():
        if (was := state.get("corpus", {}).get(name)) != value:
            raise ValueError(f"state is of another corpus: {name} was {was!r}, here it is {value!r}")
