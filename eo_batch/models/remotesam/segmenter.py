"""RemoteSAM in a run: windows in, one logit per pixel and prompt out.

A window becomes an 8-bit picture by one fixed recipe (`stretch`), a prompt becomes a sentence (`templates`), the network answers
with two numbers per pixel, and their difference is the logit: 0 where its authors' argmax changes sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.phrases import find_positions
from eo_batch.models.remotesam.pictures import nearest_positions, prepare
from eo_batch.models.remotesam.tokens import TokenisedText, Tokenizer
from eo_batch.models.segmenter import FLOAT_BYTES, SegmenterInfo, band_names
from eo_batch.models.stretch import Stretch
from eo_batch.models.templates import CLASS_TEMPLATE, Question, Wording

if TYPE_CHECKING:
    from eo_batch.models.remotesam.engine import RemoteSAMEngine
    from eo_batch.models.remotesam.network import ImageFeatures, PromptFeatures
    from eo_batch.models.remotesam.outlines import Outlines

ALGORITHM = "remotesam/1"
"""Raise the number when the same window and prompt give another answer; options are in the digest anyway."""
BANDS = ("red", "green", "blue")
SEEN = ("carried", "look", "query")
"""Names under which the tensors of `Seen` are kept."""
WEIGHTS = "remotesam"
"""Published weights that are used where the options name none."""
CALL_BYTES, FEATURE_BYTES = 1000, 130
"""Memory per pixel of the network's side at the published sizes in float32, as measured at 896 px: the peak of a call beside what
it keeps, and what is kept of each window for all prompts."""
PICTURE_BYTES, CEILING_BYTES = 30, 8
"""Memory per pixel of a window as it comes: stretched values and colours; and of what outlines leave of it."""


@dataclass(frozen=True)
class RemoteSAMImages:
    """A batch of windows.

    Parameters
    ----------
    features : entries of one window or several, as they are computed.
    places : for each window of the batch, its place among the windows of `features`.
    shape_yx : of the windows as they came.
    ceiling : the greatest logits that outlines leave, float32 (n, h, w) of the windows of `features`; None without outlines.
    """

    features: tuple[ImageFeatures, ...]
    places: tuple[int, ...]
    shape_yx: tuple[int, int]
    ceiling: NDArray[np.float32] | None


@dataclass(frozen=True)
class RemoteSAMSegmenter:
    """The protocol `Segmenter` around the network.

    Parameters
    ----------
    engine : the network, shared with other segmenters of this process.
    tokenizer, wording, stretch : how prompts and pixels become what the network reads.
    threads : of one call on a CPU; decides the order of sums, so part of the identity.
    sha256 : of the weights.
    window_px : side of the windows of the run, for what `plan` says of memory.
    outlines : where objects end, so that those that touch are parted; None: they stay together.
    """

    engine: RemoteSAMEngine
    tokenizer: Tokenizer
    wording: Wording
    stretch: Stretch
    threads: int
    sha256: str
    window_px: int
    outlines: Outlines | None = None
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "info", _info(self))

    def encode_prompts(self, prompts: PromptSet) -> tuple[PromptFeatures, ...]:
        """Text features and the fusions' keys and values of each prompt, in order.

        Raises
        ------
        ConfigError : `prompt-invalid`: a prompt without a word.
        """
        return tuple(self._encode(text) for text in prompts.texts)

    def encode_images(self, images: NDArray[np.float32]) -> RemoteSAMImages:
        """What no prompt changes: picture, patch embedding, first stage, outlines; float32 (n, 3, h, w), any h and w.

        Raises
        ------
        ModelError : `model-input`, `model-oom`.
        """
        from eo_batch.models.devices import staged

        pictures = list(self.stretch.rgb(images))
        places, kept = self.engine.distinct([picture.tobytes() for picture in pictures])
        pictures = [pictures[number] for number in kept]
        side = self.engine.network.config.window_px
        pixels = staged([prepare(picture, side) for picture in pictures], self.engine.device)
        features = self.engine.encode_pixels(pixels, threads=self.threads)
        ceiling = None
        if self.outlines is not None:
            outlines = self.outlines
            ceiling = self.engine.call(lambda: outlines.ceiling(pictures), threads=self.threads, what="contours of a window")
        return RemoteSAMImages(features, places, (images.shape[2], images.shape[3]), ceiling)

    def decode(self, image_features: RemoteSAMImages, prompt_features: tuple[PromptFeatures, ...]) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w): foreground minus background, one prompt at a time.

        Raises
        ------
        ModelError : `model-oom`.
        """
        side, (h, w) = self.engine.network.config.window_px, image_features.shape_yx
        rows, columns = nearest_positions(h, side), nearest_positions(w, side)
        distinct = np.empty((max(image_features.places) + 1, len(prompt_features), h, w), np.float32)
        done = 0
        for windows in image_features.features:
            for place, prompt in enumerate(prompt_features):
                logits = self.engine.answer(windows, prompt, threads=self.threads).numpy()
                distinct[done : done + len(logits), place] = logits[:, rows[:, None], columns]
            done += len(logits)
        if image_features.ceiling is not None:
            np.minimum(distinct, image_features.ceiling[:, None], out=distinct)
        return distinct[list(image_features.places)]

    def dump_features(self, image_features: RemoteSAMImages) -> list[dict[str, NDArray[Any]]]:
        """See `FeatureKeeper.dump_features`: what the first stage saw, one row of each of its tensors, and the ceiling."""
        from eo_batch.models.kept import array_of

        distinct: list[dict[str, NDArray[Any]]] = []
        for entry in image_features.features:
            (seen,) = entry.windows
            parts = {name: array_of(part) for name, part in zip(SEEN, seen[1:], strict=True)}
            places = {"grid": np.array(seen.grid), "shape_yx": np.array(image_features.shape_yx)}
            distinct += [{**{name: part[row] for name, part in parts.items()}, **places} for row in range(len(seen.look))]
        if image_features.ceiling is not None:
            for window, ceiling in zip(distinct, image_features.ceiling, strict=True):
                window["ceiling"] = ceiling
        return [distinct[place] for place in image_features.places]

    def load_features(self, windows: Sequence[Mapping[str, NDArray[Any]]]) -> RemoteSAMImages:
        """See `FeatureKeeper.load_features`; on a CPU a repeated window is answered once, as in `encode_images`.

        Raises
        ------
        ModelError : `model-oom`.
        """
        names = [place if self.engine.together else id(window) for place, window in enumerate(windows)]
        distinct = list(dict.fromkeys(names))
        some = [windows[names.index(name)] for name in distinct]
        entries = [some] if self.engine.together else [[window] for window in some]
        features = tuple(self.engine.load_seen(entry, threads=self.threads) for entry in entries)
        ceiling = np.stack([window["ceiling"] for window in some]) if self.outlines is not None else None
        h, w = some[0]["shape_yx"]
        return RemoteSAMImages(features, tuple(distinct.index(name) for name in names), (int(h), int(w)), ceiling)

    def explain(self, prompts: PromptSet) -> tuple[str, ...]:
        """The sentence and the word pieces that each prompt is asked with, one line per prompt."""
        return tuple(self._explain(self.wording.ask(text)) for text in prompts.texts)

    def warnings(self, prompts: PromptSet, *, sees_whole: bool = False) -> tuple[str, ...]:
        """What an author may not expect: places that mean a window, sentences that are cut, words that are not known."""
        return tuple(line for text in prompts.texts for line in self._warn(self.wording.ask(text), sees_whole=sees_whole))

    def _encode(self, text: str) -> PromptFeatures:
        import torch

        read = self._read(self.wording.ask(text))
        return self.engine.encode_sentence(torch.from_numpy(read.ids), torch.from_numpy(read.mask), threads=self.threads)

    def _read(self, question: Question) -> TokenisedText:
        if not self.tokenizer(question.text).pieces:
            fix = "Write what to look for, such as water or solar panel."
            raise ConfigError(
                "prompt-invalid", f'the segmenter "remotesam" finds no word in "{question.text}"', where="prompts", fix=fix
            )
        return self.tokenizer(question.sentence)

    def _explain(self, question: Question) -> str:
        read = self._read(question)
        kind = "class name" if question.is_class else "sentence"
        return f'"{question.text}" is asked as "{question.sentence}" ({kind}); read as: {" ".join(read.read)}'

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
            most = len(read.ids) - 2
            lines.append(
                f'prompt "{question.text}" is {len(read.pieces)} word pieces long, the network has room for {most}: '
                f'it is cut off after "{" ".join(read.read[-3:])}"'
            )
        if read.unknown:
            lines.append(f'prompt "{question.text}": the vocabulary does not have {read.unknown} of its words; they mean nothing')
        return lines


def load_remotesam(model: ModelSpec, bands: Sequence[str]) -> RemoteSAMSegmenter:
    """The segmenter that `[model] name = "remotesam"` asks for; options: see docs/guides/remotesam.md.

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid`: an option, or other bands than red, green, blue.
    ModelError : `weights-missing`, `model-load`.
    ResourceError : `no-gpu`.
    """
    options = _options(model.options)
    if tuple(bands) != BANDS:
        raise _other_bands(bands)
    wording = Wording(options.prompts, options.template)  # type: ignore[arg-type]
    from eo_batch.models.remotesam.engine import open_engine
    from eo_batch.models.weights import find_weights, local_path

    vocabulary = local_path(options.vocabulary) if options.vocabulary else None
    files = find_weights(options.weights, vocabulary=vocabulary, architecture=WEIGHTS)
    if files.vocabulary is None:
        fix = "Run eo-batch models fetch remotesam, or set model.options.vocabulary to the vocab.txt of bert-base-uncased."
        raise ModelError("weights-missing", "there is no vocabulary for these weights", where=str(files.weights), fix=fix)
    tokenizer = Tokenizer(files.vocabulary)
    engine = open_engine(files, device=options.device, precision=options.precision)
    tokenizer.tokens = engine.network.config.text_tokens
    if len(tokenizer) > engine.network.config.vocabulary:
        what = f"has {len(tokenizer):,} words, the network knows {engine.network.config.vocabulary:,}"
        fix = "Set model.options.vocabulary to the vocab.txt that belongs to the weights."
        raise ModelError("model-load", what, where=str(files.vocabulary), fix=fix)
    outlines = None
    if options.contours:
        from eo_batch.models.remotesam.outlines import open_outlines

        outlines = open_outlines(options.contours, options.contour_threshold, device=engine.device.type)
    return RemoteSAMSegmenter(
        engine, tokenizer, wording, options.stretch, options.threads, files.sha256, model.window_px, outlines
    )


@dataclass(frozen=True)
class _Options(NetworkOptions):
    """`[model.options]` of RemoteSAM."""

    weights: str = WEIGHTS
    vocabulary: str = ""
    prompts: str = "auto"
    template: str = CLASS_TEMPLATE
    contours: str = ""
    contour_threshold: float = 0.25


def _options(given: Mapping[str, Any]) -> _Options:
    options = read_options(_Options, given, segmenter="remotesam")
    if "contour_threshold" in given and not options.contours:
        fix = 'Set model.options.contours to a contour network, such as "directsam", or leave contour_threshold out.'
        raise ConfigError("config-invalid", "there are no contours", where="model.options.contour_threshold", fix=fix)
    return options


def _other_bands(bands: Sequence[str]) -> ConfigError:
    return ConfigError(
        "config-invalid",
        f'segmenter "remotesam" sees colour pictures, not {band_names(bands)}',
        where="source.bands",
        why="the order matters" if sorted(bands) == sorted(BANDS) else "",
        fix=f"Set bands = {band_names(BANDS)}.",
    )


def _info(segmenter: RemoteSAMSegmenter) -> SegmenterInfo:
    engine, stretch = segmenter.engine, segmenter.stretch
    on_cpu = engine.device.type == "cpu"
    settings = {
        "weights": segmenter.sha256,
        "vocabulary": segmenter.tokenizer.sha256,
        "prompts": segmenter.wording.kind,
        "template": segmenter.wording.template,
        "stretch": stretch.as_dict(),
        "precision": str(engine.dtype),
        "device": engine.device.type,
        "threads": segmenter.threads if on_cpu else 0,
    }
    if segmenter.outlines is not None:
        settings["contours"] = segmenter.outlines.as_dict()
    fixed, call, pixel = _memory(segmenter)
    return SegmenterInfo(
        name="remotesam",
        algorithm=ALGORITHM,
        digest=digest([ALGORITHM, settings]),
        bands=BANDS,
        pixel_range=(float(stretch.low), float(stretch.high)),
        network_px=engine.network.config.window_px,
        shares_image_features=True,
        device=engine.device.type,
        prompt_pixel_bytes=4,
        fixed_bytes=fixed,
        call_bytes=call,
        pixel_bytes=pixel,
        feature_bytes=_kept_bytes(segmenter),
    )


def _kept_bytes(segmenter: RemoteSAMSegmenter) -> int:
    """Bytes of what `dump_features` gives of a window: three tensors of the first stage, four pixels to a token."""
    config, dtype = segmenter.engine.network.config, segmenter.engine.dtype
    ceiling = FLOAT_BYTES * segmenter.window_px**2 if segmenter.outlines else 0
    return len(SEEN) * (-(-config.window_px // 4)) ** 2 * config.embed_dim * dtype.itemsize + ceiling


def _memory(segmenter: RemoteSAMSegmenter) -> tuple[int, int, int]:
    """`fixed_bytes`, `call_bytes`, `pixel_bytes` of main memory; what a GPU holds is not counted."""
    engine, outlines = segmenter.engine, segmenter.outlines
    fixed, call, pixel = 0, 0, PICTURE_BYTES + (CEILING_BYTES if outlines else 0)
    if engine.device.type == "cpu":
        side = engine.network.config.window_px
        size = engine.network.config.embed_dim / 128 * engine.dtype.itemsize / 4
        fixed, call = engine.weight_bytes, int(CALL_BYTES * side * side * size)
        pixel += int(FEATURE_BYTES * size * (side / segmenter.window_px) ** 2)
        if outlines:
            fixed, call = fixed + outlines.model.weight_bytes, max(call, outlines.model.call_bytes)
    return fixed, call, pixel
