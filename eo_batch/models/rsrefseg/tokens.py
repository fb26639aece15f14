"""From a prompt to the numbers that SigLIP's text tower reads: its SentencePiece words, and the end mark last.

There is no mask and no padding: the tower's pooled vector is that of the last position, so every prompt is read at its
own length (arXiv 2303.15343 and the published tokenizer settings).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import sha256
from eo_batch.core.errors import ModelError

POSITIONS = 64
"""Places of the text tower, the end mark's included."""
END, END_NUMBER = "</s>", 1
UNKNOWN = "<unk>"
BLANK = "\u2581"
"""What SentencePiece writes for a blank."""
FILES = ("tokenizer.json", "spiece.model")
"""Names under which SigLIP's words are published, the first that is there is used."""
MOST_BYTES = 64 << 20
"""A larger file holds no words."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TokenisedText:
    """A sentence as the network reads it.

    Parameters
    ----------
    text : the sentence, cleaned.
    pieces : all its word pieces; those that the network does not read included.
    ids : int64 (tokens,): numbers of the pieces that are read, the end mark last.
    unknown : pieces among them that the vocabulary does not have.
    """

    text: str
    pieces: tuple[str, ...]
    ids: NDArray[np.int64]
    unknown: int

    @property
    def read(self) -> tuple[str, ...]:
        """Pieces that the network reads."""
        return self.pieces[: len(self.ids) - 1]

    @property
    def is_cut(self) -> bool:
        """Some pieces are not read."""
        return len(self.pieces) >= len(self.ids)

    @property
    def has_words(self) -> bool:
        """There is more than blanks."""
        return any(piece.strip(BLANK) for piece in self.pieces)


def clean(text: str) -> str:
    """What SigLIP reads of a text: lower case, without ASCII punctuation, one blank between words."""
    return " ".join(re.split(r"\s+", text.lower().translate(_NO_PUNCTUATION))).strip()


class Tokenizer:
    """Word pieces of cleaned text by a `tokenizer.json` or a SentencePiece file (any other name).

    Parameters
    ----------
    path : the file.
    positions : most numbers that are made of a sentence.

    Raises
    ------
    ModelError : `model-load`: not readable, too large, no tokenizer, or one without SigLIP's end mark.
    """

    def __init__(self, path: Path, *, positions: int = POSITIONS) -> None:
        self.path, self.positions = path, positions
        data = _read(path)
        self.sha256 = sha256(data)
        self._tokenizer = _open(data, path)
        if self._tokenizer.token_to_id(END) != END_NUMBER:
            raise _unusable(path, f"has no end mark {END} with the number {END_NUMBER}", "it is no tokenizer of SigLIP")
        self._unknown = self._tokenizer.token_to_id(UNKNOWN)

    def __len__(self) -> int:
        """One more than the largest number of a piece: what the network must know."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, text: str) -> TokenisedText:
        """The numbers of a sentence: its pieces and the end mark, cut so that the end mark is the last number that is read."""
        cleaned = clean(text)
        with _judging(self.path):
            encoded = self._tokenizer.encode(cleaned, add_special_tokens=False)
        numbers = encoded.ids[: self.positions - 1]
        unknown = sum(number == self._unknown for number in numbers)
        return TokenisedText(cleaned, tuple(encoded.tokens), np.array([*numbers, END_NUMBER], np.int64), unknown)


def find_tokenizer(*folders: Path) -> Path | None:
    """The first file of `FILES` in the first of these folders that has one."""
    return next((folder / name for folder in folders for name in FILES if (folder / name).is_file()), None)


def _open(data: bytes, path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file, without its own padding and cutting."""
    from tokenizers import Tokenizer as Library

    from eo_batch.models.rsrefseg.spiece import read_pieces, tokenizer_of

    with _judging(path):
        is_json = data.lstrip()[:1] == b"{"
        tokenizer = Library.from_str(data.decode("utf-8")) if is_json else tokenizer_of(read_pieces(data))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


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


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _unusable(path, "could not be read", error.strerror or "") from None
    if len(data) > MOST_BYTES:
        raise _unusable(path, f"is larger than {MOST_BYTES >> 20} MiB", "it is no tokenizer")
    return data


def _unusable(path: Path, what: str, why: str) -> ModelError:
    fix = f"Set model.options.tokenizer to the {' or '.join(FILES)} of google/siglip-so400m-patch14-384."
    return ModelError("model-load", what, where=str(path), why=why, fix=fix)
