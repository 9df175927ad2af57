"""Documents that are streamed, tokenized and packed into rows, resumable at exactly the next row.

The documents come one after the other, each with a token for its end, and every row shares one token with the next, so
that each token is predicted once. A document is held out if the hash of its text says so: the same ones for any order
and number of processes, and no copy of a held-out document is trained on.
"""

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.batches import Batch, Corpus, TrainIterator, check_same
from experiments.harness.hub_datasets import open_dataset
from experiments.harness.tokenization import Tokenizer
from jaxreg.validation import check_range

AHEAD = 4  # batches that are made before they are asked for


def open_stream(
    spec: str,
    tokenize: Tokenizer,
    context: int,
    batch: int,
    validation_share: float,
    *,
    column: str = "text",
    process: tuple[int, int] = (0, 1),
) -> Corpus:
    """A corpus of the documents of a Hugging Face data set; see :func:`~experiments.harness.corpus.open_corpus`.

    Args:
        spec: ``"hf:NAME"``, ``"hf:NAME:CONFIG"``, or ``"hf:FORMAT:PATH"`` for local files.
        tokenize: how documents become tokens.
        context: tokens that a row has as inputs.
        batch: rows of a training step, over all processes.
        validation_share: chance of a document to be held out; validation reads the stream until it has found enough.
        column: the one with the text.
        process: index of this process, and how many there are.

    Returns:
        The corpus. Its training state has the place in the data set, so it holds for this process alone.

    Raises:
        ValueError: the data set cannot be opened or has no such column, or the package ``datasets`` is missing.
    """
    process_index, process_count = process
    rows = batch // process_count
    dataset = open_dataset(spec)
    columns = dataset.column_names or list(next(iter(dataset), {}))  # some formats tell them by a document only
    if columns and column not in columns:
        raise ValueError(f"column must be one of {', '.join(columns)} in {spec}, got {column!r}")
    identity = {
        "spec": spec,
        "column": column,
        "tokenizer": tokenize.name,
        "validation_share": validation_share,
        "context": context,
        "batch": batch,
        "process": list(process),
    }

    def documents(place: _Place, *, held_out: bool) -> Iterator[tuple[np.ndarray, _Place]]:
        """One pass, from a place on: the tokens of the documents, and the place of each."""
        dataset = open_dataset(spec, process=(0, 1) if held_out else process)
        before = place.dataset
        if before is not None:
            dataset.load_state_dict(before)
        for number, example in enumerate(dataset, place.document):
            text = example.get(column)
            if not isinstance(text, str | None):
                raise ValueError(f"column must be one with text in {spec}, got {column!r}, which holds {text!r}")
            if text and (zlib.crc32(text.encode()) < validation_share * 2**32) == held_out:
                tokens = np.append(tokenize.encode(text), tokenize.end_of_document).astype(np.int32)
                yield tokens, _Place(before, number)
            before = dataset.state_dict()

    def endlessly(place: _Place) -> Iterator[tuple[np.ndarray, _Place]]:
        found = place.dataset is not None
        while True:
            for tokens, where in documents(place, held_out=False):
                found = True
                yield tokens, where
            if not found:
                raise ValueError(f"{spec} has no document to train on for process {process_index} of {process_count}")
            place = _Place(None, 0)

    def batches(place: _Place) -> Iterator[tuple[Batch, dict]]:
        packed = _packed(endlessly(place), context, place.skip)
        while True:
            made = [next(packed) for _ in range(rows)]
            yield _batch(made), {**made[-1][-1]._asdict(), "corpus": identity}

    def train(state: dict[str, Any] | None = None) -> TrainIterator:
        if state is None:
            state = {**_Place(None, 0)._asdict(), "corpus": identity}
        check_same(state, identity)
        place = _Place(*(state[name] for name in _Place._fields))
        return TrainIterator(_made_ahead(batches(place)), state)

    def validation(batches: int) -> list[Batch]:
        check_range("batches", batches, "[1, inf)")
        packed = _packed(documents(_Place(None, 0), held_out=True), context)
        found = [one for _, one in zip(range(batches * batch), packed, strict=False)]
        if len(found) < batches * batch:
            wanted = f"batches = {batches} of {batch} rows each"
            raise ValueError(f"{wanted} are more than the held-out documents of {spec} fill: {len(found)} rows")
        return [_batch(found[i * batch + process_index * rows :][:rows]) for i in range(batches)]

    def encode(string: str) -> np.ndarray:
        return tokenize.encode(string).astype(np.int32)

    return Corpus(tokenize.vocab_size, encode, tokenize.decode, train, validation, np.empty(0, np.int32))


class _Place(NamedTuple):
    """Where a row begins.

    Attributes:
        dataset: the data set's own state before the document; None is its beginning.
        document: its number in this process's pass through the data set.
        skip: its tokens before the row.
    """

    dataset: dict[str, Any] | None
    document: int
    skip: int = 0


def _packed(documents: Iterator, context: int, skip: int = 0) -> Iterator[tuple[np.ndarray, int, _Place]]:
    """Rows, the number of the document each begins in, and where the next row begins."""
    tokens = np.empty(0, np.int32)
    begun = deque()  # the documents in the tokens: offset, which may be before the first, and place
    for document, place in documents:
        begun.append((len(tokens) - skip, place))
        tokens, skip = np.concatenate([tokens, document[skip:]]), 0
        while len(tokens) > context:
            row, number = tokens[: context + 1], begun[0][1].document
            tokens = tokens[context:]
            begun = deque((offset - context, place) for offset, place in begun)
            while len(begun) > 1 and begun[1][0] <= 0:
                begun.popleft()
            offset, place = begun[0]
            yield row, number, place._replace(skip=-offset)


def _batch(rows: list[tuple[np.ndarray, int, _Place]]) -> Batch:
    tokens, numbers, _ = zip(*rows, strict=True)
    return Batch(np.stack(tokens), np.array(numbers, np.int64))


def _made_ahead(batches: Iterator) -> Iterator:
    """The same, made by one thread."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, batches) for _ in range(AHEAD))
        while True:
            made = waiting.popleft().result()
            waiting.append(pool.submit(next, batches))
            yield made
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
