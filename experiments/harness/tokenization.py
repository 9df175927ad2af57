"""Text as numbers: bytes, or the tokens of a tokenizer that was trained elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxreg.typing import Array, Int

# What well-known tokenizers call the token after a document.
END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
PIECE = 1 << 20  # characters; encoding a long text at once needs some hundred bytes of memory a token


class Tokenizer(NamedTuple):
    """How text becomes tokens and tokens become text.

    Attributes:
        name: what :func:`open_tokenizer` knows it by.
        vocab_size: tokens are below it.
        end_of_document: the token between two documents.
        encode: from a text to its tokens.
        decode: from tokens to text; what is no UTF-8 becomes U+FFFD.
    """

    name: str
    vocab_size: int
    end_of_document: int
    encode: Callable[[str], Int[Array, " tokens"]]
    decode: Callable[[Sequence[int] | Int[Array, " tokens"]], str]


def open_tokenizer(name: str | None = None) -> Tokenizer:
    """A tokenizer by name.

    Args:
        name: ``"bytes"``, the default: UTF-8 byte by byte, documents separated by a zero byte; ``"file:PATH"``: a
            ``tokenizer.json``; ``"hf:NAME"``: the one of a model on the Hugging Face hub. Where these two know no token
            for the end of a document, one more is added to the vocabulary.

    Returns:
        The tokenizer.

    Raises:
        ValueError: the name has another form, there is no such tokenizer, or the package ``tokenizers`` is missing.
    """
    name = "bytes" if name is None else name
    kind, _, where = name.partition(":")
    if kind == "bytes" and not where:
        return Tokenizer(name, 256, 0, _encode_bytes, _decode_bytes)
    if kind not in ("file", "hf") or not where:
        raise ValueError(f'tokenizer must be "bytes", "file:PATH" or "hf:NAME", got {name!r}')
    try:
        import tokenizers  # optional
    except ImportError as error:
        raise ValueError(f'tokenizer {name!r} needs the extra "text": pip install -e ".[experiments,text]"') from error
    if kind == "file" and not Path(where).is_file():
        raise ValueError(f"tokenizer: there is no file {where}")
    read = tokenizers.Tokenizer.from_file if kind == "file" else tokenizers.Tokenizer.from_pretrained
    try:
        return _trained(name, read(where))
    except Exception as error:  # the package raises nothing more specific
        raise ValueError(f"tokenizer {name!r} cannot be read: {error}") from error


def _encode_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _decode_bytes(tokens: Any) -> str:
    return np.asarray(tokens).astype(np.uint8).tobytes().decode(errors="replace")


def _trained(name: str, tokenizer: Any) -> Tokenizer:
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    known = [token for token in map(tokenizer.token_to_id, END_OF_DOCUMENT) if token is not None]
    end_of_document = known[0] if known else size

    def encode(text: str) -> np.ndarray:
        encodings = tokenizer.encode_batch(list(_pieces(text)), add_special_tokens=False)
        return np.concatenate([np.empty(0, np.int32), *(np.array(one.ids, np.int32) for one in encodings)])

    def decode(tokens: Any) -> str:
        return tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)

    return Tokenizer(name, max(size, end_of_document + 1), end_of_document, encode, decode)


def _pieces(text: str):
    """The text cut after line ends, so that pieces are not much longer than ``PIECE`` where lines are not."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + PIECE)
        end = len(text) if line_end < 0 else line_end + 1
        yield text[start:end]
        start = end
