"""CLIPSeg in a run: what words name, as one logit per pixel, coarse and fast enough for a laptop.

Each window becomes an 8-bit picture (`models.stretch`), squeezed to the network's square; the picture encoder looks at it once,
and for each prompt a small decoder draws what it means. The answer is stretched back over the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import FinderSegmenter, Sayings
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.refusals import check_bands, check_words
from eo_batch.models.templates import Wording
from eo_batch.models.tokens import CLIP, Tokenizer

NAME = "clipseg"
ALGORITHM = "clipseg/1"
"""Raise the number when the same window and prompt give another answer; options are in the digest anyway."""
LAST_OF_ALL = 2
"""Number that older configs of CLIP give for the end mark; the library then takes the greatest number of a prompt: the same."""
SHARED = "the picture encoder looks at each window once for all prompts, the decoder draws each prompt alone"
LOOKS_FOR = "was trained on short phrases that name things"


@dataclass(frozen=True)
class _Options(NetworkOptions):
    """`[model.options]` of CLIPSeg.

    The template is the plain text: its authors trained with nine wordings, that of the text alone among them.
    """

    weights: str = NAME
    template: str = "{}"


@dataclass(frozen=True)
class ClipSegRules:
    """How a prompt is worded."""

    template: str

    def as_dict(self) -> dict[str, Any]:
        """What decides an answer."""
        return {"template": self.template}


def load_clipseg(model: ModelSpec, bands: Sequence[str]) -> FinderSegmenter:
    """The segmenter that `[model] name = "clipseg"` asks for; options: see docs/guides/clipseg.md.

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid`: an option, or other bands than red, green, blue.
    ModelError : `weights-missing`, `model-load`.
    PolicyError : `weights-hash`. ResourceError : `no-gpu`.
    """
    options = read_options(_Options, model.options, segmenter=NAME)
    question = Wording("class", options.template).template
    check_bands(NAME, bands)
    from eo_batch.models.clipseg.engine import open_engine
    from eo_batch.models.weights.folders import find_folder

    files = find_folder(options.weights, architecture=NAME)
    if files.tokenizer is None:
        fix = "Put the tokenizer.json, or the vocab.json and merges.txt, that were published with the weights beside them."
        raise ModelError("weights-missing", "there is no tokenizer for these weights", where=str(files.folder), fix=fix)
    engine = open_engine(files, device=options.device, precision=options.precision)
    tokenizer = Tokenizer(files.tokenizer, reading=CLIP, positions=engine.positions)
    told = engine.network.config.text_config
    check_words(tokenizer, told.vocab_size)
    if told.eos_token_id not in (
        LAST_OF_ALL,
        tokenizer.end,
    ):  # else one token would speak for every prompt
        what = f"looks for the end of a prompt at number {told.eos_token_id}, its tokenizer writes {tokenizer.end}"
        raise ModelError("model-load", what, where=str(files.folder), fix="Give a network and a tokenizer that belong together.")
    says, rules = Sayings(NAME, ALGORITHM, question, SHARED, looks_for=LOOKS_FOR), ClipSegRules(question)
    return FinderSegmenter(says, engine, tokenizer, options.stretch, rules, options.threads, (files.sha256,), model.window_px)
