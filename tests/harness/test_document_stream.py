import itertools
import json
import sys
import zlib

import numpy as np
import pytest

from experiments.harness.corpus import open_corpus

# Shorter and longer than a row of 9 tokens, one of several rows, empty, and missing.
DOCUMENTS = [f"{i}:" + "abcdefghij"[: i % 7] * (1 + i % 3) for i in range(40)]
DOCUMENTS[11:13] = ["as long as several rows, " * 6, ""]
DOCUMENTS[20] = None
HELD_OUT = [text for text in DOCUMENTS if text and zlib.crc32(text.encode()) / 2**32 < 0.3]
TRAINED = [text for text in DOCUMENTS if text and text not in HELD_OUT]


def test_the_documents_of_these_tests_are_of_both_kinds():
    assert 5 < len(HELD_OUT) < 20
    assert DOCUMENTS[11] in TRAINED


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is downloaded, and nothing written in the home directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(tmp_path, documents=DOCUMENTS, kind="json", column="text"):
    path = tmp_path / f"documents.{kind}"
    if kind == "json":
        path.write_text("".join(json.dumps({column: text, "number": i}) + "\n" for i, text in enumerate(documents)))
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({column: documents}), path, row_group_size=7)
    return f"hf:{kind}:{path}"


def open_documents(tmp_path, *, kind="json", **options):
    spec = options.pop("spec", None) or write(tmp_path, kind=kind)
    return open_corpus(spec, **{"context": 8, "batch": 2, "validation_share": 0.3, **options})


def packed(documents, rows, context=8):
    """The rows, and the place in the list of the document that each begins in, by enumeration."""
    tokens, owners = [], []
    for number, text in enumerate(documents):
        tokens += [*text.encode(), 0]
        owners += [number] * (len(text.encode()) + 1)
    starts = range(0, rows * context, context)
    return [tokens[start : start + context + 1] for start in starts], [owners[start] for start in starts]


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_are_the_documents_one_after_the_other_without_end(tmp_path, kind):
    batches = list(itertools.islice(open_documents(tmp_path, kind=kind).train(), 60))
    rows, owners = packed(4 * TRAINED, 120)
    assert owners[-1] > len(TRAINED), "one pass is not enough for this test"
    np.testing.assert_array_equal(np.concatenate([batch.tokens for batch in batches]), rows)
    numbers = [DOCUMENTS.index(TRAINED[owner % len(TRAINED)]) for owner in owners]
    np.testing.assert_array_equal(np.concatenate([batch.positions for batch in batches]), numbers)
    assert (batches[0].tokens.dtype, batches[0].positions.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_every_state_continues_with_exactly_the_next_batch(tmp_path, kind):
    """Within the long document and in the second pass too."""
    corpus = open_documents(tmp_path, kind=kind)
    batches = corpus.train()
    states = [batches.state()]
    made = []
    for _ in range(37):
        made.append(next(batches))
        states.append(json.loads(json.dumps(batches.state())))
    np.testing.assert_array_equal(np.concatenate([batch.tokens for batch in made]), packed(4 * TRAINED, 74)[0])
    for number in range(36):
        resumed = corpus.train(states[number])
        for later in range(number, number + 2):
            assert {**resumed.state(), "dataset": None} == {**states[later], "dataset": None}
            batch = next(resumed)
            np.testing.assert_array_equal(batch.tokens, made[later].tokens)
            np.testing.assert_array_equal(batch.positions, made[later].positions)


def test_each_process_streams_its_own_documents_and_resumes(tmp_path):
    for index in range(2):
        mine = [text for text in DOCUMENTS[index::2] if text in TRAINED]
        corpus = open_documents(tmp_path, process_index=index, process_count=2)
        batches = corpus.train()
        rows, _ = packed(4 * mine, 30)
        np.testing.assert_array_equal(np.concatenate([next(batches).tokens for _ in range(20)]), rows[:20])
        resumed = corpus.train(json.loads(json.dumps(batches.state())))
        np.testing.assert_array_equal(np.concatenate([next(resumed).tokens for _ in range(10)]), rows[20:])


def test_validation_is_the_documents_whose_hash_is_low(tmp_path):
    corpus = open_documents(tmp_path)
    rows, _ = packed(HELD_OUT, 6)
    for _ in range(2):
        batches = corpus.validation(3)
        np.testing.assert_array_equal(np.concatenate([batch.tokens for batch in batches]), rows)
    shares = [open_documents(tmp_path, process_index=i, process_count=2).validation(3) for i in range(2)]
    for whole, *ours in zip(batches, *shares, strict=True):
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in ours]), whole.tokens)


def test_the_column_is_chosen_by_name(tmp_path):
    corpus = open_documents(tmp_path, spec=write(tmp_path, column="content"), column="content")
    np.testing.assert_array_equal(next(corpus.train()).tokens, packed(TRAINED, 2)[0])
    with pytest.raises(ValueError, match=r"column must be one of content, number in .*, got 'text'"):
        open_documents(tmp_path, spec=write(tmp_path, column="content"))
    with pytest.raises(ValueError, match=r"column must be one with text in .*, got 'number', which holds 0"):
        next(open_documents(tmp_path, column="number").train())


def test_a_data_set_is_opened_by_name_and_configuration(tmp_path):
    """A folder as the hub has it."""
    folder = tmp_path / "named"
    folder.mkdir()
    for name, text in ("first", "one of the first"), ("second", "one of the second"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": text}))
    configurations = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    batch = next(open_documents(tmp_path, spec=f"hf:{folder}:second", validation_share=1e-9).train())
    np.testing.assert_array_equal(batch.tokens, packed(2 * ["one of the second"], 2)[0])


def test_documents_are_tokenized_and_ended(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"?": 0, "one": 1, "two": 2, "</s>": 3}, unk_token="?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = write(tmp_path, ["one two two", "two", "one"])
    corpus = open_corpus(
        spec, context=4, batch=2, validation_share=1e-9, tokenizer=f"file:{tmp_path}/tokenizer.json"
    )  # fmt: skip
    assert corpus.vocab_size == 4
    np.testing.assert_array_equal(next(corpus.train()).tokens, [[1, 2, 2, 3, 2], [2, 3, 1, 3, 1]])


def test_the_state_of_another_stream_is_refused(tmp_path):
    state = open_documents(tmp_path).train().state()
    with pytest.raises(ValueError, match=r"state is of another corpus: process was \[0, 1\], here it is \[1, 2\]"):
        open_documents(tmp_path, process_index=1, process_count=2).train(state)


def test_what_cannot_be_opened_says_so(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"missing.jsonl cannot be opened: "):
        open_documents(tmp_path, spec=f"hf:json:{tmp_path}/missing.jsonl")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'needs the extra "text": pip install -e "\.\[experiments,text\]"'):
        open_documents(tmp_path)


def test_too_little_to_train_on_or_to_judge_by_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"batches = 99 of 2 rows each are more than the held-out documents of .* fill"
    ):
        open_documents(tmp_path).validation(99)
    nothing = open_documents(tmp_path, spec=write(tmp_path, ["", HELD_OUT[0]]))
    with pytest.raises(ValueError, match="has no document to train on for process 0 of 1"):
        next(nothing.train())
