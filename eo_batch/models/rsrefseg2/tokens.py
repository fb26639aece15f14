"""Prompts to numbers as RSRefSeg 2 was trained: SigLIP 2's words, of a sentence exactly as it is written.

SigLIP 2 itself learnt from lower case. But its tokenizer, as the library had it when RSRefSeg 2 was trained (transformers 4.53),
changed nothing of a text, and sentences of that training have capitals and full stops. So nothing is changed here.
"""

from __future__ import annotations

from pathlib import Path

from eo_batch.core.errors import ModelError
from eo_batch.models.tokens import Reading, Tokenizer

FILE = "tokenizer.json"
REPOSITORY = "google/siglip2-so400m-patch16-512"
"""Where SigLIP 2's words are published."""
SIGLIP_2 = Reading("SigLIP 2", "", "<eos>", 1, drops_punctuation=False, keeps_all=True)


def open_tokenizer(path: Path, *, positions: int) -> Tokenizer:
    """Word pieces by a `tokenizer.json`, the end mark last.

    Parameters
    ----------
    positions : most numbers that are made of a sentence.

    Raises
    ------
    ModelError : `model-load`: not readable, too large, no tokenizer, or one of another text encoder.
    """
    try:
        return Tokenizer(path, reading=SIGLIP_2, positions=positions)
    except ModelError as error:
        fix = f"Set model.options.tokenizer to the {FILE} of {REPOSITORY}."
        raise ModelError(error.code, error.what, where=error.where, why=error.why, fix=fix) from None
