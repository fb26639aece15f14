"""SAM 3 in a run: all objects that a short noun phrase names, as one score per pixel.

The image encoder sees each window once, the text encoder reads each prompt once; the detector and the mask decoder answer for
each window and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import LEAST, FinderSegmenter, Sayings
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.refusals import check_bands, check_words
from eo_batch.models.tokens import CLIP, Tokenizer

NAME = "sam3"
ARCHITECTURES = ("sam3", "sam3_video")
"""`model_type` of its config."""
ANSWERS = ("instances", "semantic")
SAYS = Sayings(
    NAME,
    "sam3/1",
    question="{}",
    shared="the image encoder sees each window once for all prompts, the detector answers each prompt alone",
    least=LEAST,
)


@dataclass(frozen=True)
class _Options(NetworkOptions):
    """`[model.options]` of SAM 3."""

    weights: str = NAME
    answer: str = "instances"
    instances: bool = False


def load_sam3(model: ModelSpec, bands: Sequence[str]) -> FinderSegmenter:
    """The segmenter that `[model] name = "sam3"` asks for; options: see docs/guides/open-models.md.

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid`: an option, or other bands than red, green, blue.
    ModelError : `weights-missing`, `model-load`. PolicyError : `weights-hash`. ResourceError : `no-gpu`.
    """
    options = read_options(_Options, model.options, segmenter=NAME)
    if options.answer not in ANSWERS:
        fix = f"Use one of: {', '.join(ANSWERS)}."
        raise ConfigError("config-invalid", f"unknown answer {options.answer!r}", where="model.options.answer", fix=fix)
    if options.instances and options.answer != "instances":
        what, fix = "the semantic answer has no objects to keep apart", 'Set answer = "instances", or leave this out.'
        raise ConfigError("config-invalid", what, where="model.options.instances", fix=fix)
    check_bands(NAME, bands)
    from eo_batch.models.sam3.engine import Sam3Rules, open_engine
    from eo_batch.models.weights.folders import find_folder

    files = find_folder(options.weights, architecture=ARCHITECTURES)
    if files.tokenizer is None:
        fix = "Put the tokenizer.json that was published with the weights beside them."
        raise ModelError("weights-missing", "there is no tokenizer for these weights", where=str(files.folder), fix=fix)
    engine = open_engine(files, device=options.device, precision=options.precision)
    tokenizer = Tokenizer(files.tokenizer, reading=CLIP, positions=engine.positions)
    check_words(tokenizer, engine.network.config.text_config.vocab_size)
    rules = Sam3Rules(semantic=options.answer == "semantic", apart=options.instances)
    return FinderSegmenter(SAYS, engine, tokenizer, options.stretch, rules, options.threads, (files.sha256,), model.window_px)
