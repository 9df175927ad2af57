import itertools
import json
import pydoc_data.topics
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from experiments.harness.corpus import open_corpus


def tokens_of(batches, count):
    return np.concatenate([batch.tokens for batch in itertools.islice(batches, count)])


def open_lines(tmp_path, *, lines=200, **options):
    """Text of numbered lines of four bytes."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{i:03}\n" for i in range(lines)))
    return open_corpus(f"file:{path}", **{"context": 8, "batch": 4, **options})


class TestTextInMemory:
    def test_rows_are_the_windows_at_their_positions(self, tmp_path):
        corpus = open_lines(tmp_path)
        batch = next(corpus.train())
        assert (batch.tokens.dtype, batch.positions.dtype) == (np.int32, np.int64)
        content = "".join(f"{i:03}\n" for i in range(200))
        for row, position in zip(batch.tokens, batch.positions, strict=True):
            assert corpus.decode(row) == content[position : position + 9]

    def test_an_epoch_predicts_every_token_once_and_the_next_in_another_order(self, tmp_path):
        corpus = open_lines(tmp_path)  # 720 bytes to train on: 89 windows of 8 and the byte before
        batches = corpus.train()
        positions = np.concatenate([next(batches).positions for _ in range(45)])
        first, second = positions[:89], positions[89:178]
        np.testing.assert_array_equal(np.sort(first), 8 * np.arange(89))
        np.testing.assert_array_equal(np.sort(second), 8 * np.arange(89))
        assert (first != second).any()

    def test_the_seed_decides_the_order(self, tmp_path):
        first, again, other = (next(open_lines(tmp_path, seed=seed).train()).positions for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    @pytest.mark.parametrize("steps", [0, 1, 5, 30])
    def test_a_state_continues_with_exactly_the_next_batch(self, tmp_path, steps):
        batches = open_lines(tmp_path).train()
        for _ in range(steps):
            next(batches)
        state = json.loads(json.dumps(batches.state()))
        resumed = open_lines(tmp_path).train(state)
        assert resumed.state() == state
        np.testing.assert_array_equal(tokens_of(resumed, 4), tokens_of(batches, 4))
        assert resumed.state() == batches.state()

    def test_a_batch_can_be_named_by_its_number(self, tmp_path):
        corpus = open_lines(tmp_path)
        seventh = next(corpus.train({**corpus.train().state(), "batch": 7}))
        np.testing.assert_array_equal(seventh.tokens, list(itertools.islice(corpus.train(), 8))[7].tokens)

    @pytest.mark.parametrize("change", [{"context": 7}, {"batch": 2}, {"seed": 1}, {"lines": 201}])
    def test_the_state_of_another_corpus_is_refused(self, tmp_path, change):
        state = open_lines(tmp_path).train().state()
        name = "tokens" if "lines" in change else next(iter(change))
        with pytest.raises(ValueError, match=f"state is of another corpus: {name} was"):
            open_lines(tmp_path, **change).train(state)

    def test_a_state_is_of_the_very_text(self, tmp_path):
        states = []
        for content in "abc" * 50, "abd" * 50:
            (tmp_path / "text.txt").write_text(content)
            states.append(open_corpus(f"file:{tmp_path}/text.txt", context=8, batch=4).train().state())
        with pytest.raises(ValueError, match="state is of another corpus: crc32 was"):
            open_corpus(f"file:{tmp_path}/text.txt", context=8, batch=4).train(states[0])

    def test_a_state_of_nothing_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="state is of another corpus: tokens was None"):
            open_lines(tmp_path).train({"batch": 3})

    def test_text_is_encoded_as_the_rows_are(self, tmp_path):
        corpus = open_lines(tmp_path)
        tokens = corpus.encode("é1\n")
        assert (tokens.dtype, tokens.tolist()) == (np.int32, [0xC3, 0xA9, 0x31, 0x0A])
        assert corpus.decode(tokens) == "é1\n"

    def test_processes_share_the_batches_of_one(self, tmp_path):
        """From a state that a run on one process has written."""
        alone = open_lines(tmp_path)
        batches = alone.train()
        next(batches)
        shares = [open_lines(tmp_path, process_index=i, process_count=2) for i in range(2)]
        parts = [share.train(batches.state()) for share in shares]
        for _ in range(50):
            whole, ours = next(batches), [next(part) for part in parts]
            np.testing.assert_array_equal(np.concatenate([part.tokens for part in ours]), whole.tokens)
            np.testing.assert_array_equal(np.concatenate([part.positions for part in ours]), whole.positions)
        for whole, *ours in zip(alone.validation(3), *(share.validation(3) for share in shares), strict=True):
            np.testing.assert_array_equal(np.concatenate([part.tokens for part in ours]), whole.tokens)

    def test_validation_is_the_end_of_the_text_and_always_the_same(self, tmp_path):
        corpus = open_lines(tmp_path, validation_share=0.25)
        content = "".join(f"{i:03}\n" for i in range(200))
        first, again = corpus.validation(2), corpus.validation(2)
        positions = np.concatenate([batch.positions for batch in first])
        assert (positions[0], positions[-1]) == (600, 800 - 9)
        assert np.ptp(np.diff(positions)) <= 1
        for batch, same in zip(first, again, strict=True):
            np.testing.assert_array_equal(batch.tokens, same.tokens)
            assert [corpus.decode(row) for row in batch.tokens] == [content[i : i + 9] for i in batch.positions]
        trained = np.concatenate([batch.positions for batch in itertools.islice(corpus.train(), 20)])
        assert trained.max() + 9 <= 600

    def test_a_directory_or_a_pattern_is_all_its_files_in_order(self, tmp_path):
        (tmp_path / "deep").mkdir()
        for name, content in ("b.txt", "bee " * 9), ("deep/c.txt", "sea " * 9), ("a.txt", "äh\r\n" * 9):
            (tmp_path / name).write_bytes(content.encode())
        whole = open_corpus(f"file:{tmp_path}", context=2, batch=1)
        assert whole.decode(whole.text) == "äh\r\n" * 9 + "bee " * 9 + "sea " * 9
        matching = open_corpus(f"file:{tmp_path}/[bc].txt", context=2, batch=1)
        assert matching.decode(matching.text) == "bee " * 9


class TestPython:
    def test_half_of_the_rows_are_of_the_reference(self):
        corpus = open_corpus(context=64, batch=8)
        reference = corpus.validation(1)[0].positions[0]
        positions = np.concatenate([batch.positions for batch in itertools.islice(corpus.train(), 50)])
        assert (positions < reference).sum() == 200
        source = (Path(sysconfig.get_path("stdlib")) / "heapq.py").read_bytes()
        assert source in corpus.text.tobytes()

    def test_what_is_held_out_is_the_last_topics_and_nowhere_trained_on(self):
        corpus = open_corpus(context=64, batch=8)
        topics = pydoc_data.topics.topics
        names = sorted(topics)
        last = [topics[name].strip() for name in names[-round(len(names) / 10) :]]
        content = corpus.text.tobytes().decode(errors="replace")
        held_out = "\n\n".join(last)
        for batch in corpus.validation(4):
            for row in batch.tokens:
                assert corpus.decode(row) in held_out
        paragraphs = [part for topic in last for part in topic.split("\n\n") if len(part) > 100]
        assert len(paragraphs) > 50
        assert [content.count(part) for part in paragraphs] == [held_out.count(part) for part in paragraphs]

    def test_validation_of_any_size_is_full_batches(self):
        for batch in open_corpus(context=1024, batch=64).validation(2):
            assert batch.tokens.shape == (64, 1025)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch": 6, "process_count": 4}, "batch must be divisible by process_count = 4, got 6"),
            ({"context": 0}, r"context must be in \[1, inf\), got 0"),
            ({"seed": -1}, "seed must be in"),
            ({"validation_share": 0.0}, r"validation_share must be in \(0, 1\), got 0.0"),
            ({"process_index": 2, "process_count": 2}, r"process_index must be in \[0, 2\), got 2"),
            ({"spec": "pyhton"}, 'spec must be "python", "file:PATH" or "hf:NAME", got \'pyhton\''),
            ({"spec": "file:"}, "spec must be"),
            ({"spec": "file:no/such/*.txt"}, r"file:no/such/\*.txt: there is no such file"),
        ],
    )
    def test_arguments_out_of_range_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            open_corpus(**{"context": 8, "batch": 4, **options})

    def test_a_text_of_no_use_says_why(self, tmp_path):
        path = tmp_path / "text.txt"
        for content, message in (
            (b"", "has 0 tokens for training, and context = 8 needs 9"),
            (b"x" * 80, "has 8 tokens for validation, and context = 8 needs 9"),
            (b"abc\xff\xfe", "is not UTF-8 text: byte 3 is 0xff"),
        ):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=message):
                open_corpus(f"file:{path}", context=8, batch=4)

    def test_a_text_of_one_window_is_enough(self, tmp_path):
        (tmp_path / "text.txt").write_text("abcdefghi" * 2)
        corpus = open_corpus(f"file:{tmp_path}/text.txt", context=8, batch=2, validation_share=0.5)
        for batch in next(corpus.train()), *corpus.validation(1):
            assert [corpus.decode(row) for row in batch.tokens] == 2 * ["abcdefghi"]

    def test_validation_needs_a_batch(self, tmp_path):
        with pytest.raises(ValueError, match="batches must be in"):
            open_lines(tmp_path).validation(0)
