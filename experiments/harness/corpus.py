"""Text to pretrain on: endless batches of token windows that resume at exactly the next batch.

    corpus = open_corpus("python", context=256, batch=32)
    batches = corpus.train()
    tokens, positions = next(batches)             # int32 [32, 257], int64 [32]
    corpus.train(batches.state())                 # continues with exactly the batch that would have come next

A text in memory is cut into windows that follow one another and share one token, so that an epoch predicts every token
once; every epoch shuffles them anew. Batch ``b`` is a function of the seed and ``b`` alone, on any number of processes.
Data sets that are streamed are in :mod:`~experiments.harness.document_stream`.
"""

import functools
import glob
import pydoc_data.topics
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np

from experiments.harness.batches import Batch, Corpus, TrainIterator, check_batches, check_same
from experiments.harness.document_stream import open_stream
from experiments.harness.tokenization import Tokenizer, open_tokenizer
from jaxreg.validation import check_range

# Tests, tools, tables of character sets, the reference itself (part of it is held out), and what others installed.
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}
# Two threads fill the queue faster than a training step on two cores empties it.
PREFETCH = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


def open_corpus(
    spec: str = "python",
    *,
    context: int,
    batch: int,
    seed: int = 0,
    tokenizer: str | None = None,
    validation_share: float = 0.1,
    column: str = "text",
    process_index: int = 0,
    process_count: int = 1,
) -> Corpus:
    """Opens what to pretrain on.

    Args:
        spec: ``"python"``: the language reference that ships with the interpreter and the sources of its standard
            library, half of the training rows each, judged by the last tenth of the reference's topics (paragraphs that
            are also there are not trained on); ``"file:PATH"``: UTF-8 text in a file, a directory or files that match a
            pattern, judged by its end; ``"hf:NAME"``, ``"hf:NAME:CONFIG"``: the split ``train`` of a data set on the
            Hugging Face hub, streamed, judged by documents a hash chooses; ``"hf:json:PATH"`` and so for ``parquet``,
            ``csv``, ``text``: the same for local files.
        context: tokens that a row has as inputs.
        batch: rows of a training step, over all processes.
        seed: decides the order of a text in memory; a stream comes in its own order.
        tokenizer: see :func:`~experiments.harness.tokenization.open_tokenizer`; bytes by default.
        validation_share: part of the topics, the text or the documents that is not trained on, in (0, 1).
        column: of a streamed data set, the one with the text.
        process_index: which rows this process gets, in ``[0, process_count)``. Of a text in memory all processes share
            the same global batches; of a stream each reads its own documents, so the order depends on their number.
        process_count: divides ``batch``.

    Returns:
        The corpus.

    Raises:
        ValueError: an argument is out of range, or the text cannot be read or is too short.
    """
    check_range("context", context, "[1, inf)")
    check_batches(batch, seed, process_index=process_index, process_count=process_count)
    check_range("validation_share", validation_share, "(0, 1)")
    tokenize = open_tokenizer(tokenizer)
    kind, _, where = spec.partition(":")
    process = process_index, process_count
    if spec == "python":
        text = _python(tokenize, validation_share)
    elif kind == "file" and where:
        text = _files(where, tokenize, validation_share)
    elif kind == "hf" and where:
        return open_stream(spec, tokenize, context, batch, validation_share, column=column, process=process)
    else:
        raise ValueError(f'spec must be "python", "file:PATH" or "hf:NAME", got {spec!r}')
    for what, parts in ("training", text.training), ("validation", [text.held_out]):
        if (shortest := min(map(len, parts))) <= context:
            raise ValueError(f"{spec} has {shortest} tokens for {what}, and context = {context} needs {context + 1}")
    return _windowed(text, tokenize, context, batch, seed, process)


class _Text(NamedTuple):
    """Tokens, and which of them are for what: ``training`` parts are drawn equally often, whatever their size."""

    tokens: np.ndarray
    training: Sequence[range]
    held_out: range


def _windowed(text: _Text, tokenize: Tokenizer, context: int, batch: int, seed: int, process) -> Corpus:
    process_index, process_count = process
    rows = batch // process_count
    identity = {
        "tokens": len(text.tokens),
        "crc32": zlib.crc32(text.tokens),
        "parts": [[part.start, part.stop] for part in text.training],
        "context": context,
        "batch": batch,
        "seed": seed,
    }

    def windows(starts) -> Batch:
        starts = np.asarray(starts, np.int64)
        return Batch(text.tokens[starts[:, None] + np.arange(context + 1)].astype(np.int32), starts)

    def batches(first: int) -> Iterator[tuple[Batch, dict]]:
        parts = [
            grain.MapDataset.range(part.start, part.stop - context, context).seed(seed + salt).shuffle().repeat()
            for salt, part in enumerate(text.training)
        ]
        starts = grain.MapDataset.mix(parts, weights=[1 / len(parts)] * len(parts))
        mine = starts.batch(rows)[first * process_count + process_index :: process_count]
        for number, one in enumerate(mine.map(windows).to_iter_dataset(PREFETCH), first + 1):
            yield one, {"batch": number, "corpus": identity}

    def train(state: dict[str, Any] | None = None) -> TrainIterator:
        if state is None:
            state = {"batch": 0, "corpus": identity}
        check_same(state, identity)
        return TrainIterator(batches(state["batch"]), state)

    def validation(batches: int) -> list[Batch]:
        check_range("batches", batches, "[1, inf)")
        # Evenly spread, so that any number of any size is one score of the whole held-out text.
        held_out = text.held_out
        starts = np.linspace(held_out.start, held_out.stop - context - 1, batches * batch).astype(np.int64)
        return [windows(chosen) for chosen in starts.reshape(batches, process_count, rows)[:, process_index]]

    def encode(string: str) -> np.ndarray:
        return tokenize.encode(string).astype(np.int32)

    return Corpus(tokenize.vocab_size, encode, tokenize.decode, train, validation, text.tokens)


def _python(tokenize: Tokenizer, validation_share: float) -> _Text:
    parts = [tokenize.encode(part) for part in (*_documentation(validation_share), _sources())]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    reference, held_out, sources = (range(end - len(part), end) for part, end in zip(parts, ends, strict=True))
    return _Text(np.concatenate(parts), (reference, sources), held_out)


def _documentation(validation_share: float) -> tuple[str, str]:
    """The reference to train on and the one held out, which is the last topics in key order."""
    topics = pydoc_data.topics.topics
    names = sorted(topics)
    held = max(1, round(validation_share * len(names)))

    def paragraphs(names):
        return [part for name in names for part in topics[name].strip().split("\n\n")]

    # Topics quote one another: a tenth of the last ones' text is in others too, word for word.
    held_out = paragraphs(names[-held:])
    known = {" ".join(part.split()) for part in held_out}
    reference = [part for part in paragraphs(names[:-held]) if " ".join(part.split()) not in known]
    return "\n\n".join(reference), "\n\n".join(held_out)


@functools.cache
def _sources() -> str:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT.intersection(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
    ]
    return "".join(path.read_bytes().decode(errors="replace") for path in paths)


def _files(where: str, tokenize: Tokenizer, validation_share: float) -> _Text:
    pattern = f"{where}/**" if Path(where).is_dir() else where
    found = [where] if Path(where).is_file() else glob.glob(pattern, recursive=True)
    paths = sorted(path for path in map(Path, found) if path.is_file())
    if not paths:
        raise ValueError(f"file:{where}: there is no such file")
    tokens = np.concatenate([tokenize.encode(_read(path)) for path in paths])
    end = round((1 - validation_share) * len(tokens))
    return _Text(tokens, (range(end),), range(end, len(tokens)))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
