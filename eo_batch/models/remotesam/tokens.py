"""From a sentence to the numbers that the text encoder reads: WordPiece as BERT was trained with it (arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import sha256
from eo_batch.core.errors import ModelError
from eo_batch.models.weights.disk import read_words

TOKENS = 20
"""Tokens that the network reads, [CLS] and [SEP] included."""
PADDING, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
MOST_BYTES = 16 << 20
"""A larger file is no vocabulary."""


@dataclass(frozen=True)
class TokenisedText:
    """A sentence as the network reads it.

    Parameters
    ----------
    text : the sentence.
    pieces : all its word pieces; those that the network does not read included.
    ids, mask : int64 (tokens,): numbers, zero behind the end; 1 where there is a token.
    """

    text: str
    pieces: tuple[str, ...]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]

    @property
    def read(self) -> tuple[str, ...]:
        """Pieces that the network reads."""
        return self.pieces[: len(self.ids) - 1]

    @property
    def is_cut(self) -> bool:
        """The end of the sentence is not read, or at least the [SEP] that marks it."""
        return len(self.pieces) + 2 > len(self.ids)

    @property
    def unknown(self) -> int:
        """Pieces that the vocabulary does not have."""
        return sum(piece == UNKNOWN for piece in self.read)


class Tokenizer:
    """Word pieces of lower-case text by a vocabulary file with one piece per line.

    Parameters
    ----------
    vocabulary : the file.
    tokens : length of what is made of a sentence.

    Raises
    ------
    ModelError : `model-load`: not readable, not text, too large, or a piece without which BERT cannot read is not there.
    """

    def __init__(self, vocabulary: Path, *, tokens: int = TOKENS) -> None:
        self.tokens = tokens
        self.path = vocabulary
        data = read_words(vocabulary, MOST_BYTES, _unusable, kind="vocabulary")
        self.sha256 = sha256(data)
        self._numbers = _numbers(data, vocabulary)

    def __len__(self) -> int:
        """Number of pieces in the vocabulary."""
        return max(self._numbers.values()) + 1

    def __call__(self, text: str) -> TokenisedText:
        """The numbers of a sentence: [CLS], its pieces, [SEP], cut at the last number that is read, then zeros."""
        pieces = tuple(self._pieces.tokenize(text))
        numbers = [self._numbers[BEGIN], *self._pieces.convert_tokens_to_ids(list(pieces)), self._numbers[END]][: self.tokens]
        ids = np.zeros(self.tokens, np.int64)
        ids[: len(numbers)] = numbers
        return TokenisedText(text, pieces, ids, (np.arange(self.tokens) < len(numbers)).astype(np.int64))

    @cached_property
    def _pieces(self) -> Any:
        from transformers import BertTokenizer

        return BertTokenizer(vocab=dict(self._numbers), do_lower_case=True)


def stack(texts: Sequence[TokenisedText]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers and masks of sentences, each int64 (sentence, tokens)."""
    return np.stack([text.ids for text in texts]), np.stack([text.mask for text in texts])


def _numbers(data: bytes, path: Path) -> dict[str, int]:
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise _unusable(path, "is not text", "it is no vocabulary") from None
    numbers = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    missing = [piece for piece in (PADDING, UNKNOWN, BEGIN, END) if piece not in numbers]
    if missing:
        raise _unusable(path, f"has no {', '.join(missing)}", "it is no vocabulary of BERT")
    return numbers


def _unusable(path: Path, what: str, why: str) -> ModelError:
    fix = "Fetch it again with eo-batch models fetch remotesam, or set model.options.vocabulary to a vocab.txt of BERT."
    return ModelError("model-load", what, where=str(path), why=why, fix=fix)
