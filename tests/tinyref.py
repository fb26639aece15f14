"""A RSRefSeg network that is some thousand times smaller than the real one, and its tokenizer: for tests of whole runs."""

from __future__ import annotations

from pathlib import Path

_WORDS = "a the of on left dark bright white field fields lake water ship boat boats beside pier solar panel panels image in"
PIECES: tuple[tuple[str, float], ...] = (
    *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)),
    *((f"\u2581{word}", -2.0 - 0.1 * place) for place, word in enumerate(_WORDS.split())),
    *((letter, -9.0 - 0.05 * place) for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789\u2581")),
    *((end, -5.0) for end in ("er", "ing", "ship", "panels", "es")),
)
"""Word pieces and their scores; a piece's number is its place, as in SigLIP's vocabulary </s> is 1."""


def write_tokenizer(folder: Path) -> Path:
    """Write `tokenizer.json` with `PIECES`; returns its path."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(list(PIECES), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<pad>", "</s>", "<unk>")])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
