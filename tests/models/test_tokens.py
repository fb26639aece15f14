"""Prompts to numbers: the text rule, both kinds of tokenizer files, the limit of sixty-four, and files that are none."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from tinyref import PIECES, write_tokenizer

from eo_batch.core.errors import ModelError
from eo_batch.models import tokens
from eo_batch.models.tokens import Tokenizer, clean, find_tokenizer

TEXTS = ("water", "The White Boats, beside a pier!", "solarpanels", "lakes of water", "zebra lake", "水 lake 水水", "a")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path)


def field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protocol-buffers message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    high, low = value >> 7, value & 127
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def spiece(pieces: list[tuple[str, float, int]], *, model: int = 1, blanks: int = 1, rules: bytes = b"") -> bytes:
    """A file of SentencePiece, with fields that mean nothing here among the others."""
    message = b"".join(field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces)
    message += field(2, field(3, model) + field(4, len(pieces)) + field(10, 0.9995) + field(2, b"name"))
    normalizer = field(1, b"identity") + field(3, blanks) + field(4, 1) + field(5, 1)
    return message + field(3, normalizer + (field(2, rules) if rules else b"")) + field(4, b"") + varint(200 << 3 | 1) + bytes(8)


def kinds() -> list[tuple[str, float, int]]:
    special = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    return [(text, score, special.get(text, 1)) for text, score in PIECES]


def likeliest(text: str) -> tuple[str, ...]:
    """The cut of a word without unknown letters whose scores sum highest, by trying all."""
    scores, best, found = dict(PIECES), -math.inf, ()

    def go(rest: str, taken: tuple[str, ...], score: float) -> None:
        nonlocal best, found
        if not rest and score > best:
            best, found = score, taken
        for end in range(1, len(rest) + 1):
            if rest[:end] in scores:
                go(rest[end:], (*taken, rest[:end]), score + scores[rest[:end]])

    go("\u2581" + text, (), 0.0)
    return found


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Solar Panel", "solar panel"),
        ("  the\tship,\n on  the-left! ", "the ship on theleft"),
        ("boat's (white) <unk></s>", "boats white unks"),
        ("!?-_", ""),
        ("Straße, Água", "straße água"),
        ("- water", "water"),
    ],
)
def test_text_is_lower_case_without_punctuation_and_with_single_blanks(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize("word", ["water", "lakes", "solarpanels", "boats", "waters", "a", "panelship"])
def test_words_are_cut_where_it_is_likeliest(words: Path, word: str) -> None:
    assert Tokenizer(words)(word).pieces == likeliest(word)


def test_both_files_give_the_same_numbers(words: Path, tmp_path: Path) -> None:
    other = tmp_path / "spiece.model"
    other.write_bytes(spiece(kinds()))
    from_json, from_pieces = Tokenizer(words), Tokenizer(other)
    assert len(from_json) == len(from_pieces) == len(PIECES)
    for text in TEXTS:
        assert from_json(text).ids.tolist() == from_pieces(text).ids.tolist()


def test_the_end_mark_is_last_and_nothing_is_padded(words: Path) -> None:
    names = [piece for piece, _ in PIECES]
    read = Tokenizer(words)("The water, lakes")
    assert read.pieces == ("\u2581the", "\u2581water", "\u2581lake", "s")
    assert read.ids.tolist() == [names.index(piece) for piece in read.pieces] + [1]
    assert (read.is_cut, read.unknown, read.read) == (False, 0, read.pieces)


@pytest.mark.parametrize(("count", "length", "is_cut"), [(62, 63, False), (63, 64, False), (64, 64, True), (300, 64, True)])
def test_sixty_four_numbers_are_read_and_the_end_mark_stays(words: Path, count: int, length: int, is_cut: bool) -> None:
    read = Tokenizer(words)("water " * count)
    water = [piece for piece, _ in PIECES].index("\u2581water")
    assert read.ids.tolist() == [water] * (length - 1) + [1]
    assert (read.is_cut, len(read.pieces), len(read.read)) == (is_cut, count, length - 1)


def test_padding_and_cutting_of_the_file_are_not_used(words: Path) -> None:
    content = json.loads(words.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"}
    content["padding"]["pad_to_multiple_of"] = None
    words.write_text(json.dumps(content))
    assert len(Tokenizer(words)("the white boats").ids) == 4


def test_what_the_vocabulary_does_not_have_is_counted(words: Path) -> None:
    assert Tokenizer(words)("水 lake 水水").unknown == 2
    assert not Tokenizer(words)("!!").has_words


def test_a_tokenizer_json_is_taken_before_a_sentencepiece_file(words: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece(kinds()))
    assert find_tokenizer(tmp_path / "none", tmp_path) == words
    words.unlink()
    assert find_tokenizer(tmp_path) == tmp_path / "spiece.model"
    assert find_tokenizer(tmp_path / "none") is None


def test_the_name_of_a_tokenizer_is_its_contents(words: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert Tokenizer(write_tokenizer(tmp_path / "elsewhere")).sha256 == Tokenizer(words).sha256


def hostile() -> dict[str, tuple[bytes, str]]:
    pieces = kinds()
    return {
        "nothing": (b"", "is no tokenizer"),
        "json": (b'{"version": "1.0"}', "is no tokenizer"),
        "not utf-8": (b"{\xff\xfe", "is no tokenizer"),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is no tokenizer"),
        "cut short": (spiece(pieces)[:300], "cut short"),
        "no unknown": (spiece([(text, score, 1) for text, score, _ in pieces]), "none for what is unknown"),
        "twice": (spiece([*pieces, pieces[5]]), "there twice"),
        "not a number": (spiece([*pieces, ("x", math.nan, 1)]), "no number"),
        "bpe": (spiece(pieces, model=2), "no unigram model"),
        "other blanks": (spiece(pieces, blanks=0), "blanks in another way"),
        "rules": (spiece(pieces, rules=b"\xff" * 40), "is no tokenizer"),
        "no end mark": (spiece([(text.replace("</s>", "<s>"), score, kind) for text, score, kind in pieces]), "has no mark </s>"),
    }


@pytest.mark.parametrize("name", hostile())
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    content, said = hostile()[name]
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer(path)("water")
    assert caught.value.code == "model-load"
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_rules_that_end_in_nowhere_are_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(spiece(kinds(), rules=b"\x04\0\0\0abcd"))
    with pytest.raises(ModelError, match="is no tokenizer"):
        Tokenizer(path)("water")


@pytest.mark.parametrize(
    "rules",
    [
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 300}] * 2,
        [{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 100_000}]}],
    ],
)
def test_rules_that_make_a_text_endless_are_refused(words: Path, rules: list[dict[str, object]]) -> None:
    content = json.loads(words.read_text())
    words.write_text(json.dumps(content | {"normalizer": {"type": "Sequence", "normalizers": rules}}))
    with pytest.raises(ModelError, match="make a text too long"):
        Tokenizer(words)


def test_a_rule_of_sentencepiece_that_makes_a_letter_endless_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(spiece(kinds(), rules=struct.pack("<I", 16) + bytes(16) + b"a" * 70_000 + bytes(1)))
    with pytest.raises(ModelError, match="make a text too long"):
        Tokenizer(path)


@pytest.mark.parametrize("steps", [[], [("Lowercase", {}), ("Replace", {"pattern": {"Regex": "[.,]"}, "content": ""})]])
def test_plain_rules_are_kept(words: Path, steps: list[tuple[str, dict[str, object]]]) -> None:
    content = json.loads(words.read_text())
    rules = [{"type": kind, **named} for kind, named in steps]
    words.write_text(json.dumps(content | {"normalizer": {"type": "Sequence", "normalizers": rules}}))
    assert Tokenizer(words)("the water").pieces == ("\u2581the", "\u2581water")


def test_a_huge_file_is_not_read(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_BYTES", 10)
    with pytest.raises(ModelError, match="is larger than"):
        Tokenizer(words)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        Tokenizer(tmp_path / "tokenizer.json")
