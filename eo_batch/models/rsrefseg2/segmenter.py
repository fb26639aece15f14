"""RSRefSeg 2 in a run: windows in, one logit per pixel and prompt out.

Both image encoders see a window once for all prompts, a prompt is read once per run, alone and at its own length. What is left
for each window and prompt is 53 GFLOP beside the 2,799 of a window: nine times what the first RSRefSeg leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eo_batch.core.errors import ModelError
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import FinderSegmenter, Sayings
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.phrases import find_positions
from eo_batch.models.refusals import check_bands, check_words
from eo_batch.models.rsrefseg2.tokens import FILE, REPOSITORY, open_tokenizer

if TYPE_CHECKING:
    from eo_batch.models.weights import WeightFiles

NAME = "rsrefseg2"
SAYS = Sayings(
    NAME,
    "rsrefseg2/1",
    question="{}",
    shared="both image encoders see each window once for all prompts; each prompt then costs about 2 % of that",
    looks_for="looks for what a sentence refers to",
)


@dataclass(frozen=True)
class Plain:
    """No rules: the answer of the network is the score."""

    def as_dict(self) -> dict[str, Any]:
        """What decides an answer."""
        return {}


class RSRefSeg2Segmenter(FinderSegmenter):
    """A prompt is read exactly as it is written, and sentences are what the network was trained with."""

    def _question(self, text: str) -> str:
        return text

    def _warn(self, text: str, *, sees_whole: bool) -> list[str]:
        read, lines = self._read(text), []
        positions = () if sees_whole else find_positions(text)
        if positions:
            named = ", ".join(f'"{phrase}"' for phrase in positions)
            lines.append(
                f'prompt "{text}": {named} is understood within each window, not within the region; '
                "on the map it will not be what the words mean"
            )
        if read.is_cut:
            lines.append(
                f'prompt "{text}" is {len(read.pieces)} word pieces long, the network has room for {len(read.read)}: '
                f'it is cut off after "{" ".join(read.read[-3:])}"'
            )
        return lines


@dataclass(frozen=True)
class _Options(NetworkOptions):
    """`[model.options]` of RSRefSeg 2."""

    tokenizer: str = ""


def load_rsrefseg2(model: ModelSpec, bands: Sequence[str]) -> RSRefSeg2Segmenter:
    """The segmenter that `[model] name = "rsrefseg2"` asks for; options: see docs/guides/rsrefseg2.md.

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid`: an option, or other bands than red, green, blue.
    ModelError : `weights-missing`, `model-load`.
    ResourceError : `no-gpu`.
    """
    options = read_options(_Options, model.options, segmenter=NAME)
    check_bands(NAME, bands)
    files = _find_weights(options.weights)
    words = _find_tokenizer(options.tokenizer, files)
    from eo_batch.models.rsrefseg2.engine import open_engine

    engine = open_engine(files, device=options.device, precision=options.precision)
    tokenizer = open_tokenizer(words, positions=engine.network.config.most_tokens)
    check_words(tokenizer, engine.network.config.vocabulary)
    identity = (files.sha256, tokenizer.sha256)
    return RSRefSeg2Segmenter(SAYS, engine, tokenizer, options.stretch, Plain(), options.threads, identity, model.window_px)


def _find_weights(named: str) -> WeightFiles:
    from eo_batch.models.rsrefseg.conversion import find_converted

    fix = "Convert refsegrs.pth or rrsisd.pth: eo-batch models convert FILE --network rsrefseg2 (docs/guides/rsrefseg2.md)."
    absent = "no converted weights of RSRefSeg 2 are here"
    return find_converted(NAME, named, absent=absent, fix=fix)


def _find_tokenizer(named: str, files: WeightFiles) -> Path:
    """The file that the option names (or the one in that folder), else the one beside the weights."""
    from eo_batch.models.weights import local_path

    path = local_path(named) if named else files.weights.parent
    found = path / FILE if path.is_dir() else path
    if not found.is_file():
        what = "there is no tokenizer for these weights"
        fix = f"Put the {FILE} of {REPOSITORY} beside them, or set model.options.tokenizer."
        raise ModelError("weights-missing", what, where=str(found), fix=fix)
    return found
