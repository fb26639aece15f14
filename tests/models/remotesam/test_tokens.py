"""Sentences to numbers: against the original tokenizer, at the limit of twenty, and with vocabularies that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tinysam import WORDS

from eo_batch.core.errors import ModelError
from eo_batch.models.remotesam import tokens
from eo_batch.models.remotesam.tokens import Tokenizer, stack


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


@pytest.mark.shared
def test_numbers_are_those_of_the_original_tokenizer(shared: Path) -> None:
    golden = shared.parent / "golden" / "remotesam"
    tokenizer = Tokenizer(golden / "bert-base-uncased-vocab.txt")
    assert len(tokenizer) == 30522
    for case in json.loads((golden / "tokens.json").read_text()):
        read = tokenizer(case["text"])
        assert list(read.pieces) == case["tokens"]
        assert read.ids.tolist() == case["input_ids"]
        assert read.mask.tolist() == case["attention_mask"]


def test_a_sentence_lies_between_its_marks_and_zeros_follow(vocabulary: Path) -> None:
    read = Tokenizer(vocabulary)("The Lakes, in the image")
    assert read.pieces == ("the", "lake", "##s", ",", "in", "the", "image")
    words = ["[CLS]", *read.pieces, "[SEP]"]
    assert read.ids.tolist() == [WORDS.index(word) for word in words] + [0] * 11
    assert read.mask.tolist() == [1] * 9 + [0] * 11


@pytest.mark.parametrize(("words", "is_cut", "last"), [(18, False, "[SEP]"), (19, True, "x"), (200, True, "x")])
def test_twenty_numbers_are_read_and_a_long_sentence_loses_its_end_mark(
    vocabulary: Path, words: int, is_cut: bool, last: str
) -> None:
    read = Tokenizer(vocabulary)("x " * words)
    assert (len(read.ids), read.mask.sum(), len(read.pieces)) == (20, 20, words)
    assert read.is_cut is is_cut
    assert WORDS[read.ids[-1]] == last
    assert read.read == ("x",) * min(words, 19)


def test_words_outside_the_vocabulary_are_counted(vocabulary: Path) -> None:
    assert Tokenizer(vocabulary)("a runway in the image").unknown == 1


def test_several_sentences_are_rows(vocabulary: Path) -> None:
    tokenizer = Tokenizer(vocabulary)
    ids, mask = stack([tokenizer("a lake"), tokenizer("the ship")])
    assert ids.shape == mask.shape == (2, 20)
    assert ids[1].tolist() == tokenizer("the ship").ids.tolist()


def test_only_a_line_feed_ends_a_word(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\na\u2028b\r\nlake\r\n".encode())
    assert Tokenizer(path)("lake").ids.tolist()[:3] == [2, 5, 3]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"\xff\xfe\x00", "is not text"), (b"[PAD]\n[UNK]\n[CLS]\nlake\n", "has no [SEP]"), (b"", "has no [PAD]")],
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer(path)
    assert caught.value.code == "model-load"
    assert str(path) in str(caught.value)
    assert why in str(caught.value)


def test_a_huge_file_is_not_read(vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_BYTES", 10)
    with pytest.raises(ModelError, match="is larger than"):
        Tokenizer(vocabulary)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        Tokenizer(tmp_path / "vocab.txt")
