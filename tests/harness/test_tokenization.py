import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.harness import tokenization
from experiments.harness.corpus import open_corpus
from experiments.harness.tokenization import open_tokenizer


@given(st.text())
def test_bytes_decode_to_what_was_encoded(text):
    tokenizer = open_tokenizer("bytes")
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokens.tolist() == list(text.encode())


def test_every_byte_is_a_token():
    tokenizer = open_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (256, 0)
    assert tokenizer.decode(range(256)) == bytes(range(128)).decode() + 128 * "\ufffd"


@pytest.mark.parametrize("name", ["byte", "bytes:x", "file:", "hf:"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f'tokenizer must be "bytes", "file:PATH" or "hf:NAME", got \'{name}\''):
        open_tokenizer(name)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r'needs the extra "text": pip install -e "\.\[experiments,text\]"'):
        open_tokenizer("file:tokenizer.json")


class TestTrainedTokenizer:
    lines = "the cat sat on the mat\nthe dog sat on the log\n"

    @pytest.fixture
    def path(self, tmp_path):
        """Words, the last of a line with its end."""
        tokenizers = pytest.importorskip("tokenizers")
        words = ["?", "the", "on", "sat", "cat", "dog", "mat\n", "log\n"]
        model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?")
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
            tokenizers.Regex(r"[a-z]+\n?"), "removed", invert=True
        )
        tokenizer.save(str(tmp_path / "words.json"))
        return tmp_path / "words.json"

    def test_words_are_tokens(self, path):
        tokenizer = open_tokenizer(f"file:{path}")
        tokens = tokenizer.encode(self.lines)
        np.testing.assert_array_equal(tokens, [1, 4, 3, 2, 1, 6, 1, 5, 3, 2, 1, 7])
        assert tokenizer.decode(tokens[:6]) == "the cat sat on the mat\n"
        assert tokenizer.encode("").shape == (0,)

    def test_the_end_of_a_document_is_one_more_token_where_none_is_known(self, path):
        tokenizer = open_tokenizer(f"file:{path}")
        assert (tokenizer.vocab_size, tokenizer.end_of_document) == (9, 8)
        assert tokenizer.decode([4, 8, 5]) == "cat dog"

    def test_the_end_of_a_document_is_known_by_its_name(self, path):
        tokenizers = pytest.importorskip("tokenizers")
        changed = tokenizers.Tokenizer.from_file(str(path))
        changed.add_special_tokens(["<pad>", "</s>"])
        changed.save(str(path))
        tokenizer = open_tokenizer(f"file:{path}")
        assert (tokenizer.vocab_size, tokenizer.end_of_document) == (10, 9)

    def test_a_long_text_is_encoded_in_pieces_of_whole_lines(self, path, monkeypatch):
        monkeypatch.setattr(tokenization, "PIECE", 10)
        tokenizer = open_tokenizer(f"file:{path}")
        np.testing.assert_array_equal(
            tokenizer.encode(3 * self.lines), np.tile([1, 4, 3, 2, 1, 6, 1, 5, 3, 2, 1, 7], 3)
        )
        np.testing.assert_array_equal(tokenizer.encode("the " * 9), [1] * 9)

    def test_rows_of_a_corpus_are_of_its_tokens(self, path):
        text = path.with_suffix(".txt")
        text.write_text(20 * self.lines)
        corpus = open_corpus(f"file:{text}", context=6, batch=2, tokenizer=f"file:{path}")
        assert corpus.vocab_size == 9
        np.testing.assert_array_equal(corpus.text, np.tile([1, 4, 3, 2, 1, 6, 1, 5, 3, 2, 1, 7], 20))
        batch = next(corpus.train())
        np.testing.assert_array_equal(batch.tokens, corpus.text[batch.positions[:, None] + np.arange(7)])

    def test_a_file_that_is_no_tokenizer_is_refused(self, tmp_path):
        pytest.importorskip("tokenizers")
        with pytest.raises(ValueError, match="there is no file"):
            open_tokenizer(f"file:{tmp_path}/missing.json")
        (tmp_path / "broken.json").write_text("{}")
        with pytest.raises(ValueError, match="cannot be read"):
            open_tokenizer(f"file:{tmp_path}/broken.json")
