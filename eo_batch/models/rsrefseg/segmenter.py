"""RSRefSeg in a run: windows in, one logit per pixel and prompt out.

A window becomes an 8-bit picture by one fixed recipe (`eo_batch.models.stretch`), the picture is seen once for all prompts, and
a prompt is read once per run; what it asks of a window is a hundredth of the work. Nothing is ever padded: in this network
padding changes answers, so every prompt is read alone, at its own length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.phrases import find_positions
from eo_batch.models.refusals import BANDS, check_bands, check_words
from eo_batch.models.segmenter import SegmenterInfo
from eo_batch.models.stretch import Stretch
from eo_batch.models.templates import Question, Wording
from eo_batch.models.tokens import CLIP, FILES, SIGLIP, TokenisedText, Tokenizer, find_tokenizer

if TYPE_CHECKING:
    from eo_batch.models.rsrefseg.engine import RSRefSegEngine
    from eo_batch.models.rsrefseg.network import ImageFeatures, PromptFeatures
    from eo_batch.models.weights import WeightFiles

NAME = "rsrefseg"
ALGORITHM = "rsrefseg/1"
"""Raise the number when the same window and prompt give another answer; options are in the digest anyway."""
FOUNDATION = "siglip"
"""Fetched weights whose tokenizer is used where none lies beside a network's own."""
CALL_BYTES = 330
"""Memory per pixel of the network's side in float32, as measured at the sizes of RSRefSeg-b: the peak of a call."""
CALL_CHANNELS = 768
"""Channels of SAM's image encoder there: that peak grows with them."""
PICTURE_BYTES = 30
"""Memory per pixel of a window as it comes: stretched values and colours."""


@dataclass(frozen=True)
class RSRefSegImages:
    """A batch of windows.

    Parameters
    ----------
    features : entries of one window or several, as they are computed together.
    places : for each window of the batch, its place among the windows of `features`.
    shape_yx : of the windows as they came.
    """

    features: tuple[ImageFeatures, ...]
    places: tuple[int, ...]
    shape_yx: tuple[int, int]


@dataclass(frozen=True)
class RSRefSegSegmenter:
    """The protocol `Segmenter` around the network.

    Parameters
    ----------
    engine : the network, shared with other segmenters of this process.
    tokenizer, wording, stretch : how prompts and pixels become what the network reads.
    threads : of one call on a CPU; decides the order of sums, so part of the identity.
    sha256 : of the weights.
    window_px : side of the windows of the run, for what `plan` says of memory.
    """

    engine: RSRefSegEngine
    tokenizer: Tokenizer
    wording: Wording
    stretch: Stretch
    threads: int
    sha256: str
    window_px: int
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "info", _info(self))

    def encode_prompts(self, prompts: PromptSet) -> tuple[PromptFeatures, ...]:
        """Word and sentence vectors of each prompt, in order.

        Raises
        ------
        ConfigError : `prompt-invalid`: a prompt without a word.
        """
        return tuple(self._encode(text) for text in prompts.texts)

    def encode_images(self, images: NDArray[np.float32]) -> RSRefSegImages:
        """What no prompt changes, float32 (n, 3, h, w), any h and w: both image encoders, 99 % of the work.

        Raises
        ------
        ModelError : `model-input`, `model-oom`.
        """
        from eo_batch.models.devices import staged
        from eo_batch.models.rsrefseg.pictures import resize_8bit

        pictures = list(self.stretch.rgb(images))
        places, kept = self.engine.distinct([picture.tobytes() for picture in pictures])
        side = self.engine.network.config.image_px
        resized = [resize_8bit(pictures[number], side, side).transpose(2, 0, 1) for number in kept]
        pixels = staged([picture / np.float32(255) for picture in resized], self.engine.device)
        return RSRefSegImages(self.engine.encode_pixels(pixels, threads=self.threads), places, (images.shape[2], images.shape[3]))

    def decode(self, image_features: RSRefSegImages, prompt_features: tuple[PromptFeatures, ...]) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w), one prompt at a time.

        Raises
        ------
        ModelError : `model-oom`.
        """
        shape, done = image_features.shape_yx, 0
        distinct = np.empty((max(image_features.places) + 1, len(prompt_features), *shape), np.float32)
        for windows in image_features.features:
            for place, prompt in enumerate(prompt_features):
                answer = self.engine.answer(windows, prompt, shape, threads=self.threads)
                distinct[done : done + len(windows), place] = answer.numpy()
            done += len(windows)
        return distinct[list(image_features.places)]

    def dump_features(self, image_features: RSRefSegImages) -> list[dict[str, NDArray[Any]]]:
        """What `decode` needs of each window: SAM's embedding, the directions of patches, their three maps; and its shape."""
        from eo_batch.models.kept import array_of
        from eo_batch.models.rsrefseg.engine import PARTS

        windows = [one for entry in image_features.features for one in entry.split()]
        shape = np.array(image_features.shape_yx, np.int64)
        dumped = [{name: array_of(getattr(window, name)[0]) for name in PARTS} | {"shape_yx": shape} for window in windows]
        return [dict(dumped[place]) for place in image_features.places]

    def load_features(self, windows: Sequence[Mapping[str, NDArray[Any]]]) -> RSRefSegImages:
        """Image features, as `encode_images` gives them, of windows as `dump_features` gave them."""
        from eo_batch.models.kept import tensor_of
        from eo_batch.models.rsrefseg.engine import PARTS
        from eo_batch.models.rsrefseg.network import ImageFeatures

        places, kept = self.engine.distinct([b"".join(window[name].tobytes() for name in PARTS) for window in windows])
        parts = [tuple(tensor_of(windows[number][name])[None] for name in PARTS) for number in kept]
        height, width = (int(length) for length in windows[0]["shape_yx"])
        entries = tuple(ImageFeatures(*entry) for entry in self.engine.join(parts, threads=self.threads))
        return RSRefSegImages(entries, places, (height, width))

    def explain(self, prompts: PromptSet) -> tuple[str, ...]:
        """The sentence and the word pieces that each prompt is asked with, one line per prompt."""
        return tuple(self._explain(self.wording.ask(text)) for text in prompts.texts)

    def warnings(self, prompts: PromptSet, *, sees_whole: bool = False) -> tuple[str, ...]:
        """What an author may not expect: places that mean a window, sentences that are cut, words that are not known."""
        return tuple(line for text in prompts.texts for line in self._warn(self.wording.ask(text), sees_whole=sees_whole))

    def _encode(self, text: str) -> PromptFeatures:
        import torch

        read = self._read(self.wording.ask(text))
        return self.engine.encode_sentence(torch.from_numpy(read.ids), threads=self.threads)

    def _read(self, question: Question) -> TokenisedText:
        if not self.tokenizer(question.text).has_words:
            fix = "Write what to look for, such as ships beside a pier, or water; punctuation alone is no prompt."
            what = f'the segmenter "{NAME}" finds no word in "{question.text}"'
            raise ConfigError("prompt-invalid", what, where="prompts", fix=fix)
        return self.tokenizer(question.sentence)

    def _explain(self, question: Question) -> str:
        read = self._read(question)
        kind = "class name" if question.is_class else "sentence"
        return f'"{question.text}" is asked as "{read.text}" ({kind}); read as: {" ".join(read.read)}'

    def _warn(self, question: Question, *, sees_whole: bool) -> list[str]:
        read, lines = self._read(question), []
        positions = () if sees_whole else find_positions(question.text)
        if positions:
            named = ", ".join(f'"{phrase}"' for phrase in positions)
            lines.append(
                f'prompt "{question.text}": {named} is understood within each window, not within the region; '
                "on the map it will not be what the words mean"
            )
        if read.is_cut:
            lines.append(
                f'prompt "{question.text}" is {len(read.pieces)} word pieces long, the network has room for {len(read.read)}: '
                f'it is cut off after "{" ".join(read.read[-3:])}"'
            )
        if read.unknown:
            lines.append(f'prompt "{question.text}": the vocabulary does not have {read.unknown} of its words; they mean nothing')
        return lines


@dataclass(frozen=True)
class _Options(NetworkOptions):
    """`[model.options]` of RSRefSeg."""

    tokenizer: str = ""
    prompts: str = "auto"
    template: str = "{}"


def load_rsrefseg(model: ModelSpec, bands: Sequence[str]) -> RSRefSegSegmenter:
    """The segmenter that `[model] name = "rsrefseg"` asks for; options: see docs/guides/rsrefseg.md.

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid`: an option, or other bands than red, green, blue.
    ModelError : `weights-missing`, `model-load`.
    ResourceError : `no-gpu`.
    """
    options = read_options(_Options, model.options, segmenter=NAME)
    check_bands(NAME, bands)
    wording = Wording(options.prompts, options.template)  # type: ignore[arg-type]
    files = _find_weights(options.weights)
    words = _find_tokenizer(options.tokenizer, files)
    from eo_batch.models.rsrefseg.engine import open_engine

    engine = open_engine(files, device=options.device, precision=options.precision)
    config = engine.network.config
    tokenizer = Tokenizer(words, reading=SIGLIP if config.clip is None else CLIP, positions=config.most_tokens)
    check_words(tokenizer, config.vocabulary)
    return RSRefSegSegmenter(engine, tokenizer, wording, options.stretch, options.threads, files.sha256, model.window_px)


def _find_weights(named: str) -> WeightFiles:
    from eo_batch.models.rsrefseg.conversion import find_converted

    fix = "Convert a checkpoint of its training: eo-batch models convert FILE --network rsrefseg (docs/guides/rsrefseg.md)."
    absent = "nobody has published a checkpoint of RSRefSeg, so there is none to fetch, and none of your own is here"
    return find_converted(NAME, named, absent=absent, fix=fix)


def _find_tokenizer(named: str, files: WeightFiles) -> Path:
    """The file that the option names (or one in that folder), else the one beside the weights, else the fetched one."""
    from eo_batch.models.weights import local_path, regular_file
    from eo_batch.models.weights.folders import fetched_folders

    path = local_path(named) if named else None
    if path is not None and not path.is_dir():
        regular_file(path)
        return path
    found = find_tokenizer(path) if path else find_tokenizer(files.weights.parent, *fetched_folders(FOUNDATION))
    if found is None:
        what = f"there is no tokenizer ({' or '.join(FILES)}) for these weights"
        fix = f"Put SigLIP's {FILES[0]} beside them, set model.options.tokenizer, or run eo-batch models fetch {FOUNDATION}."
        raise ModelError("weights-missing", what, where=str(path or files.weights), fix=fix)
    return found


def _info(segmenter: RSRefSegSegmenter) -> SegmenterInfo:
    engine, stretch, config = segmenter.engine, segmenter.stretch, segmenter.engine.network.config
    on_cpu = engine.device.type == "cpu"
    settings = {
        "weights": segmenter.sha256,
        "tokenizer": segmenter.tokenizer.sha256,
        "prompts": segmenter.wording.kind,
        "template": segmenter.wording.template,
        "stretch": stretch.as_dict(),
        "precision": str(engine.dtype),
        "device": engine.device.type,
        "threads": segmenter.threads if on_cpu else 0,
    }
    fixed, call, pixel = 0, 0, PICTURE_BYTES  # what a GPU holds is not counted
    if on_cpu:
        width = config.sam["vision_config"]["hidden_size"]
        fixed, call = engine.weight_bytes, int(CALL_BYTES * config.image_px**2 * width / CALL_CHANNELS)
        pixel += -(-engine.feature_bytes // segmenter.window_px**2)
    return SegmenterInfo(
        name=NAME,
        algorithm=ALGORITHM,
        digest=digest([ALGORITHM, settings]),
        bands=BANDS,
        pixel_range=(float(stretch.low), float(stretch.high)),
        network_px=config.image_px,
        shares_image_features=True,
        device=engine.device.type,
        prompt_pixel_bytes=4,
        fixed_bytes=fixed,
        call_bytes=call,
        pixel_bytes=pixel,
        feature_bytes=engine.feature_bytes,
    )
