"""SentencePiece's own files: their pieces and rules, for the tokenizer that reads text by them.

SigLIP is published with its words in such a file. It is a message of protocol buffers (google/sentencepiece,
src/sentencepiece_model.proto); the few fields that decide how a text is cut are read here, all others are passed over.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNIGRAM = 1
"""The only kind of model that SigLIP uses."""
NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
"""Kinds of pieces."""
MOST_PIECES = 1 << 20
NEVER = -1e6
"""Score of a piece that no text is cut into."""


@dataclass(frozen=True)
class Pieces:
    """What such a file says.

    Parameters
    ----------
    vocabulary : pieces and the logarithms of how likely they are; a piece's number is its place.
    unknown : number of the piece that stands for what the vocabulary does not have.
    rules : which characters become which before a text is cut, as the file holds them; empty: none.
    has_bytes : what the vocabulary does not have is written byte by byte.
    """

    vocabulary: tuple[tuple[str, float], ...]
    unknown: int
    rules: bytes
    has_bytes: bool


def read_pieces(data: bytes) -> Pieces:
    """The pieces of a file of SentencePiece.

    Raises
    ------
    ValueError : no such file, or a kind of model that SigLIP does not use.
    """
    vocabulary: list[tuple[str, float]] = []
    unknown, rules, has_bytes = -1, b"", False
    for number, value in _fields(data):
        if number == 1:
            piece, score, kind = _piece(value)
            if kind == UNKNOWN:
                unknown = len(vocabulary)
            has_bytes |= kind == BYTE
            vocabulary.append((piece, NEVER if kind == UNUSED else score))
            if len(vocabulary) > MOST_PIECES:
                raise ValueError(f"more than {MOST_PIECES:,} pieces")
        elif number == 2:
            _check_kind(value)
        elif number == 3:
            rules = _rules(value)
    if not vocabulary or unknown < 0:
        raise ValueError("no pieces, or none for what is unknown")
    if len({piece for piece, _ in vocabulary}) < len(vocabulary):
        raise ValueError("a piece is there twice")
    return Pieces(tuple(vocabulary), unknown, rules, has_bytes)


def tokenizer_of(pieces: Pieces) -> Any:
    """The `tokenizers.Tokenizer` that cuts text as SentencePiece does by these pieces.

    A blank goes before the text, runs of blanks become one, blanks become U+2581, and the likeliest pieces are taken
    (unigram language model, arXiv 1804.10959).

    Raises
    ------
    ValueError : the library cannot use the rules.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(list(pieces.vocabulary), unk_id=pieces.unknown, byte_fallback=pieces.has_bytes))
    steps = [normalizers.Precompiled(pieces.rules)] if pieces.rules else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    return tokenizer


def _piece(value: Any) -> tuple[str, float, int]:
    piece, score, kind = "", 0.0, NORMAL
    for number, inner in _fields(_message(value)):
        if number == 1:
            piece = _message(inner).decode("utf-8")
        elif number == 2 and isinstance(inner, float):
            score = inner
        elif number == 3 and isinstance(inner, int):
            kind = inner
    if not piece or not math.isfinite(score):
        raise ValueError("a piece without letters or with a score that is no number")
    return piece, score, kind


def _check_kind(value: Any) -> None:
    for number, inner in _fields(_message(value)):
        if number == 3 and inner != UNIGRAM:
            raise ValueError("its words are not cut by likelihood (no unigram model)")


def _rules(value: Any) -> bytes:
    rules, is_usual = b"", True
    for number, inner in _fields(_message(value)):
        if number == 2:
            rules = _message(inner)
        elif number in (3, 4, 5):  # a blank before the text, runs of blanks are one, blanks are U+2581
            is_usual &= inner == 1
    if not is_usual:
        raise ValueError("it treats blanks in another way than SigLIP's")
    return rules


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is of another type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Numbers and values of the fields of a message (protocol buffers: encoding of the wire)."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        value: int | float | bytes
        if kind == 0:
            value, place = _varint(data, place)
        elif kind == 5:
            value, place = float(struct.unpack("<f", _slice(data, place, 4))[0]), place + 4
        elif kind == 1:
            value, place = _slice(data, place, 8), place + 8
        elif kind == 2:
            length, place = _varint(data, place)
            value, place = _slice(data, place, length), place + length
        else:
            raise ValueError("no message of protocol buffers")
        yield key >> 3, value


def _slice(data: bytes, place: int, length: int) -> bytes:
    if place + length > len(data):
        raise ValueError("it is cut short")
    return data[place : place + length]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number of seven bits per byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _slice(data, place, 1)[0]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("no message of protocol buffers")
