"""CLIP's words from the two files that are published with it: byte pairs with an end mark on every word (arXiv 2103.00020)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.models.weights.disk import read_words

VOCABULARY, MERGES = "vocab.json", "merges.txt"
BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What a text is cut into before pairs are joined: endings, runs of letters, single digits, runs of anything else."""
MOST_BYTES = 16 << 20
"""A larger file is no vocabulary."""


def read_byte_pairs(folder: Path) -> tuple[Any, bytes]:
    """The `tokenizers.Tokenizer` of `vocab.json` and `merges.txt`, and the bytes that make it what it is.

    The text is normalised to composed characters (NFC), its blanks to single ones, its letters to lower case.

    Raises
    ------
    ModelError : `model-load`: not readable, too large, or no such vocabulary.
    """
    files = (folder / name for name in (VOCABULARY, MERGES))
    vocabulary, merges = (read_words(file, MOST_BYTES, _unusable, kind="vocabulary") for file in files)
    try:
        made = _tokenizer(json.loads(vocabulary), _pairs(merges.decode("utf-8")))
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:  # also no UTF-8, no JSON
        raise _unusable(folder / VOCABULARY, "is no vocabulary of byte pairs", " ".join(str(error).split())[:200]) from None
    except Exception as error:  # the library has no class of its own for a pair that makes no word
        raise _unusable(folder / MERGES, "does not belong to its vocabulary", " ".join(str(error).split())[:200]) from None
    return made, vocabulary + merges


def _tokenizer(numbers: Any, pairs: list[tuple[str, str]]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    if not isinstance(numbers, dict) or not all(type(number) is int and 0 <= number < 1 << 32 for number in numbers.values()):
        raise ValueError("no table of words and their numbers")
    missing = [mark for mark in (BEGIN, END) if mark not in numbers]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    model = models.BPE(
        vocab=numbers,
        merges=pairs,
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
        fuse_unk=False,
        unk_token=END,
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (BEGIN, END)])
    return made


def _pairs(text: str) -> list[tuple[str, str]]:
    """Pairs to join, in their order; the first line names a version."""
    lines = [line for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError("a line that is no pair")
    return pairs  # type: ignore[return-value]


def _unusable(path: Path, what: str, why: str) -> ModelError:
    fix = f"Put the {VOCABULARY} and {MERGES} that were published with the weights beside them."
    return ModelError("model-load", what, where=str(path), why=why, fix=fix)
