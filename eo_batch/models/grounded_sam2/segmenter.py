"""Grounding DINO and SAM 2 in a run: boxes around what a prompt names, a mask in each box, one score per pixel.

Grounding DINO fuses words and picture early: of it only the Swin backbone sees a window once for all prompts, its encoder and
decoder answer for each window and prompt. SAM 2 embeds each window once; its mask decoder answers for each box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import LEAST, FinderSegmenter, Sayings
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.refusals import check_bands, check_share, check_words
from eo_batch.models.tokens import Reading, Tokenizer

NAME = "grounded-sam2"
DETECTOR, MASKS = "grounding-dino", "sam2"
"""Names of the published weights."""
SAM2 = ("sam2", "sam2_video")
"""`model_type` of its config."""
BERT = Reading("Grounding DINO", "[CLS]", "[SEP]", 102, drops_punctuation=False)
ANSWERS = ("masks", "boxes")
MOST_BOXES = 900
"""More are never found."""
SAYS = Sayings(
    NAME,
    "grounded-sam2/1",
    question="{}.",
    shared="the Swin backbone and SAM 2's encoder see each window once for all prompts, the detector answers each prompt alone",
    parts=".?",
    least=LEAST,
)


@dataclass(frozen=True)
class _Options(NetworkOptions):
    """`[model.options]`: `weights` are those of SAM 2."""

    weights: str = MASKS
    detector: str = DETECTOR
    box_threshold: float = 0.25
    text_threshold: float = 0.25
    max_boxes: int = 100
    answer: str = "masks"
    instances: bool = False


def load_grounded_sam2(model: ModelSpec, bands: Sequence[str]) -> FinderSegmenter:
    """The segmenter that `[model] name = "grounded-sam2"` asks for; options: see docs/guides/open-models.md.

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid`: an option, or other bands than red, green, blue.
    ModelError : `weights-missing`, `model-load`. PolicyError : `weights-hash`. ResourceError : `no-gpu`.
    """
    options = read_options(_Options, model.options, segmenter=NAME)
    check_share(options, "box_threshold")
    check_share(options, "text_threshold")
    if not 1 <= options.max_boxes <= MOST_BOXES:
        what, where = f"{options.max_boxes} is not in 1..{MOST_BOXES}", "model.options.max_boxes"
        raise ConfigError("config-invalid", what, where=where, fix=f"Use {_Options.max_boxes}.")
    if options.answer not in ANSWERS:
        fix = f"Use one of: {', '.join(ANSWERS)}."
        raise ConfigError("config-invalid", f"unknown answer {options.answer!r}", where="model.options.answer", fix=fix)
    check_bands(NAME, bands)
    from eo_batch.models.grounded_sam2.engine import BoxRules, open_engine
    from eo_batch.models.weights.folders import find_folder

    detector = find_folder(options.detector, architecture="grounding-dino")
    masks = find_folder(options.weights, architecture=SAM2)
    if detector.tokenizer is None:
        fix = "Put the tokenizer.json that was published with the weights beside them."
        raise ModelError("weights-missing", "there is no tokenizer for these weights", where=str(detector.folder), fix=fix)
    engine = open_engine(detector, masks, device=options.device, precision=options.precision)
    tokenizer = Tokenizer(detector.tokenizer, reading=BERT, positions=engine.positions - 1)  # one is kept for the full stop
    check_words(tokenizer, engine.detector.config.text_config.vocab_size)
    thresholds, graded = (options.box_threshold, options.text_threshold), options.answer == "boxes"
    rules = BoxRules(*thresholds, options.max_boxes, graded=graded, apart=options.instances)
    sums = detector.sha256, masks.sha256
    return FinderSegmenter(SAYS, engine, tokenizer, options.stretch, rules, options.threads, sums, model.window_px)
