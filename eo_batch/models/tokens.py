"""From a prompt to the numbers that the text encoder reads: SigLIP's SentencePiece words (or CLIP's), the end mark last.

There is no mask and no padding: the pooled vector is that of the last position, so every prompt is read at its own length
(arXiv 2303.15343 and the published tokenizer settings).
"""

from __future__ import annotations

import base64
import json
import math
import re
import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import sha256
from eo_batch.core.errors import ModelError
from eo_batch.models.weights.disk import read_words

POSITIONS = 64
"""Places of SigLIP's text encoder, the end mark's included."""
UNKNOWN = "<unk>"
BLANK = "\u2581"
"""What SentencePiece writes for a blank."""
FILES = ("tokenizer.json", "spiece.model")
"""Names under which SigLIP's words are published, the first that is there is used."""
MOST_BYTES = 64 << 20
"""A larger file holds no words."""
MOST_GROWTH = 1 << 16
"""A file whose rules may make a letter longer than this is hostile: a few of them would fill all memory."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Reading:
    """How a text encoder was taught to read.

    Parameters
    ----------
    name : of the encoder, for messages.
    begin, end : marks before and behind a text; "": none.
    end_number : what the end mark must be; None: anything.
    drops_punctuation : ASCII punctuation is no part of a text.
    keeps_all : a text is read exactly as it is written.
    """

    name: str
    begin: str
    end: str
    end_number: int | None
    drops_punctuation: bool
    keeps_all: bool = False


SIGLIP = Reading("SigLIP", "", "</s>", 1, drops_punctuation=True)
CLIP = Reading("CLIP", "<|startoftext|>", "<|endoftext|>", None, drops_punctuation=False)


@dataclass(frozen=True)
class TokenisedText:
    """A sentence as the network reads it.

    Parameters
    ----------
    text : the sentence, cleaned.
    pieces : all its word pieces; those that the network does not read included.
    read : pieces that the network reads.
    ids : int64 (tokens,): their numbers between the marks, the end mark last.
    unknown : how many of them the vocabulary does not have.
    """

    text: str
    pieces: tuple[str, ...]
    read: tuple[str, ...]
    ids: NDArray[np.int64]
    unknown: int

    @property
    def is_cut(self) -> bool:
        """Some pieces are not read."""
        return len(self.pieces) > len(self.read)

    @property
    def has_words(self) -> bool:
        """There is more than blanks."""
        return any(piece.strip(BLANK) for piece in self.pieces)


def clean(text: str, reading: Reading = SIGLIP) -> str:
    """What is read of a text: lower case, for SigLIP without ASCII punctuation, one blank between words."""
    if reading.keeps_all:
        return text
    lowered = text.lower()
    return re.sub(r"\s+", " ", lowered.translate(_NO_PUNCTUATION) if reading.drops_punctuation else lowered).strip()


class Tokenizer:
    """Word pieces of cleaned text by a `tokenizer.json`, a `vocab.json` (`merges.txt` beside it), or a SentencePiece file.

    Parameters
    ----------
    path : the file.
    reading : how the text encoder was taught to read.
    positions : most numbers that are made of a sentence.

    Its `end` is the number of the end mark, its `sha256` that of all that it is made from.

    Raises
    ------
    ModelError : `model-load`: not readable, too large, no tokenizer, or one of another text encoder.
    """

    def __init__(self, path: Path, *, reading: Reading = SIGLIP, positions: int = POSITIONS) -> None:
        self.path, self.reading, self.positions = path, reading, positions
        self._tokenizer, data = _open(path)
        self.sha256 = sha256(data)
        self._begin = [self._mark(reading.begin)] if reading.begin else []
        self.end = self._mark(reading.end)
        if reading.end_number not in (None, self.end):
            what = f"numbers the end mark {reading.end} {self.end} instead of {reading.end_number}"
            raise _unusable(path, what, f"it is no tokenizer of {reading.name}")
        self._unknown = self._tokenizer.token_to_id(UNKNOWN)

    def __len__(self) -> int:
        """One more than the largest number of a piece: what the network must know."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, text: str) -> TokenisedText:
        """The numbers of a sentence: its pieces between the marks, cut so that the end mark is the last number that is read."""
        cleaned = clean(text, self.reading)
        with _judging(self.path):
            encoded = self._tokenizer.encode(cleaned, add_special_tokens=False)
        most = max(self.positions - 1 - len(self._begin), 0)
        numbers, pieces = encoded.ids[:most], tuple(encoded.tokens)
        ids = np.array([*self._begin, *numbers, self.end], np.int64)
        return TokenisedText(cleaned, pieces, pieces[:most], ids, sum(number == self._unknown for number in numbers))

    def _mark(self, name: str) -> int:
        number = self._tokenizer.token_to_id(name)
        if number is None:
            raise _unusable(self.path, f"has no mark {name}", f"it is no tokenizer of {self.reading.name}")
        return int(number)


def find_tokenizer(*folders: Path) -> Path | None:
    """The first file of `FILES` in the first of these folders that has one."""
    return next((folder / name for folder in folders for name in FILES if (folder / name).is_file()), None)


def _open(path: Path) -> tuple[Any, bytes]:
    """The `tokenizers.Tokenizer` of a file, without its own padding and cutting, and the bytes that it is made from."""
    from tokenizers import Tokenizer as Library

    from eo_batch.models.byte_pairs import VOCABULARY, read_byte_pairs
    from eo_batch.models.spiece import read_pieces, tokenizer_of

    if path.name == VOCABULARY:
        tokenizer, data = read_byte_pairs(path.parent)
    else:
        data = read_words(path, MOST_BYTES, _unusable, kind="tokenizer")
        with _judging(path):
            is_json = data.lstrip()[:1] == b"{"
            tokenizer = Library.from_str(data.decode("utf-8")) if is_json else tokenizer_of(read_pieces(data))
    with _judging(path):
        growth = _growth(json.loads(tokenizer.normalizer.__getstate__())) if tokenizer.normalizer is not None else 1
    if growth > MOST_GROWTH:
        raise _unusable(path, "is no tokenizer", "its rules make a text too long")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a mark that somebody writes into a prompt is text
    return tokenizer, data


def _growth(rules: Mapping[str, Any]) -> int:
    """How long at most a letter can become by the rules of a `tokenizer.json`, as the library describes them."""
    if rules["type"] == "Sequence":
        return math.prod(_growth(step) for step in rules["normalizers"])
    if rules["type"] == "Precompiled":  # SentencePiece's: the length of a table, the table, then texts, a zero after each
        blob = base64.b64decode(rules["precompiled_charsmap"])
        return max(1, *map(len, blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")))
    return 1 + len(rules.get("content", "")) + len(rules.get("prepend", ""))


@contextmanager
def _judging(path: Path) -> Iterator[None]:
    """Whatever the library says of a damaged or hostile file is an error of that file."""
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of the library's Rust: no Exception, and importable from nowhere
        if not isinstance(error, Exception) and not is_panic:
            raise
        raise _unusable(path, "is no tokenizer", " ".join(str(error).split())[:200]) from None


def _unusable(path: Path, what: str, why: str) -> ModelError:
    fix = f"Give the tokenizer that was published with the text encoder: {FILES[0]}, {FILES[1]}, or vocab.json with merges.txt."
    return ModelError("model-load", what, where=str(path), why=why, fix=fix)
