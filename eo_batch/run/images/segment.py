"""One image and a few prompts through any segmenter: scores, masks, and what they mean.

The image is shown either whole, as RemoteSAM does it (the network resizes it to its own side, whatever the aspect ratio), or
in windows of its own pixels, blended on the lattice as in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.core.grid import Grid, Span, stride_of
from eo_batch.core.prompts import Prompt, PromptSet, normalise_text
from eo_batch.core.spec import ModelSpec
from eo_batch.models.inference import score_chunk, score_image
from eo_batch.models.registry import load_segmenter, with_threads
from eo_batch.models.segmenter import Segmenter, SegmenterInfo, explain_prompts, prompt_warnings
from eo_batch.products.rules import TaskRules
from eo_batch.products.tasks import semantic
from eo_batch.run.crew import cores_here
from eo_batch.run.images.answer import ImageAnswer
from eo_batch.run.images.contours import ContourSegmenter, as_rgb, check_contour, open_contours
from eo_batch.run.told.events import Event, Listener, silent
from eo_batch.sources.picture import MAX_PIXELS, RGB, Picture, picture_of, read_picture

Fit = Literal["auto", "whole", "windows"]
WHOLE_UP_TO = 2
"""With `fit = "auto"`, an image is shown whole while its longer side is at most so many times the side the network works at."""
USED_OF_FREE = 0.8
"""Share of the free memory that an image may take."""
_RULES = TaskRules()
_BANDS = "bands of the image"
_NAME_BANDS = "Name the bands that the image has, in their order (--bands), or choose another model."


def segment_image(
    image: str | Path | NDArray[np.uint8] | Picture,
    prompts: str | Sequence[str] | PromptSet,
    *,
    model: str | ModelSpec | Segmenter = "remotesam",
    fit: Fit = "auto",
    threshold: float = 0.5,
    rules: TaskRules = _RULES,
    contour: str | Path | NDArray[np.floating] | None = None,
    bands: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    max_pixels: int = MAX_PIXELS,
    listener: Listener = silent,
) -> ImageAnswer:
    """What the prompts find in one image.

    Parameters
    ----------
    image : path of a PNG, JPEG or GeoTIFF; an array, uint8 (y, x, 3) red, green, blue; or a `Picture`.
    prompts : class words or sentences, as the segmenter understands them.
    model : name of a segmenter, its `ModelSpec` (window, overlap, batch, options), or a loaded one.
    fit : "whole": the image is one window, which the network resizes to its own side; "windows": windows of the image's own
        pixels, blended; "auto": whole while the longer side is at most twice the network's.
    threshold : a pixel counts as found if its score is above this.
    rules : how masks become boxes, labels and sentences.
    contour : name or folder of a contour network (`load_contours`), or its answer, float (y, x), how likely an outline runs
        through each pixel; parts touching objects.
    bands, low, high, max_pixels : as in `read_picture`.
    listener : told of progress.

    Raises
    ------
    AssetError : the image cannot be read. ConfigError : prompts, bands, stretch or model cannot be served.
    ModelError : the segmenter fails. ResourceError : `plan-too-big`: the answer would not fit in memory.
    """
    wanted = prompts if isinstance(prompts, PromptSet) else prompt_set(prompts, threshold=threshold)
    picture = _picture(image, bands=bands, low=low, high=high, max_pixels=max_pixels)
    outlines = open_contours(contour) if isinstance(contour, str | Path) else None
    found = check_contour(contour, picture) if outlines is None and contour is not None else None
    listener(Event("start", "loading the segmenter"))
    spec, segmenter = load(model, picture.bands)
    shown = picture.select(segmenter.info.bands or picture.bands)
    side = side_of(segmenter.info, spec)
    whole = is_whole(fit, picture.shape, side, segmenter.info)
    check_memory(shown, segmenter.info, prompts=len(wanted), side=side, spec=spec, whole=whole)
    logits = _logits(segmenter, shown, wanted, spec=spec, window_px=None if whole else side, listener=listener)
    scores, masks = decide_scores(logits, wanted)
    if outlines is not None:
        listener(Event("start", "finding contours of objects"))
        found = _contour(outlines, picture, spec=spec, whole=whole, listener=listener)
    if rules.overlap != "independent":
        texts = wanted.texts
        parted = semantic(dict(zip(texts, masks, strict=True)), dict(zip(texts, scores, strict=True)), rules=rules)
        masks = np.stack([parted[text] for text in texts])
    return ImageAnswer(
        picture,
        wanted,
        scores,
        masks,
        rules=rules,
        contour=found,
        fit="whole" if whole else "windows",
        window_px=None if whole else side,
        model=segmenter.info.name,
        model_digest=segmenter.info.digest,
        explanations=explain_prompts(segmenter, wanted),
        warnings=_warnings(segmenter, wanted, whole=whole),
    )


def prompt_set(texts: str | Sequence[str], *, threshold: float = 0.5) -> PromptSet:
    """The prompts, normalised, in order.

    Raises
    ------
    ConfigError : `prompt-invalid`: none, an empty one, the same one twice; `config-invalid`: a threshold that is none.
    """
    if not 0 < threshold < 1:
        raise ConfigError("config-invalid", f"threshold {threshold:g} is not between 0 and 1", where="threshold")
    some = [texts] if isinstance(texts, str) else list(texts)
    return PromptSet(tuple(Prompt(normalise_text(text, number=n), threshold) for n, text in enumerate(some, 1)))


def load(model: str | ModelSpec | Segmenter, bands: Sequence[str]) -> tuple[ModelSpec, Segmenter]:
    """A segmenter for `bands`, or for red, green and blue among them; and the `[model]` table that names it.

    Raises
    ------
    ConfigError, ModelError, ResourceError : as `load_segmenter`; `config-invalid`: it needs bands that are not there.
    """
    if isinstance(model, str):
        model = ModelSpec(name=model, batch=1)
    if isinstance(model, ModelSpec) and model.batch == "auto":
        model = model.model_copy(update={"batch": 1})
    if not isinstance(model, ModelSpec):
        needed = model.info.bands or ()
        if not set(needed) <= set(bands):
            what = f'segmenter "{model.info.name}" sees {", ".join(needed)}, not {", ".join(bands)}'
            raise ConfigError("config-invalid", what, where=_BANDS, fix=_NAME_BANDS)
        return ModelSpec(name=model.info.name, window_px=model.info.window_px or 512, batch=1), model
    model = with_threads(model, cores_here())
    try:
        with _about_an_image():
            return model, load_segmenter(model, bands)
    except ConfigError as error:
        if error.where != _BANDS or not set(RGB) < set(bands):
            raise
        with _about_an_image():
            return model, load_segmenter(model, RGB)


def side_of(info: SegmenterInfo, spec: ModelSpec) -> int:
    """Side of the windows in pixels: as `[model]` says; else the one that the network works at."""
    return spec.window_px if "window_px" in spec.model_fields_set else info.window_px or info.network_px or spec.window_px


def is_whole(fit: str, shape: tuple[int, int], side: int, info: SegmenterInfo) -> bool:
    """The image is shown as one window.

    Raises
    ------
    ConfigError : `config-invalid`: an unknown `fit`, or the segmenter takes no window of this shape.
    """
    if fit not in get_args(Fit):
        raise ConfigError("config-invalid", f'unknown fit "{fit}"', where="fit", fix=f"Known: {', '.join(get_args(Fit))}.")
    possible = info.window_px is None or shape == (info.window_px, info.window_px)
    if fit == "whole" and not possible:
        raise ConfigError(
            "config-invalid",
            f'segmenter "{info.name}" takes windows of {info.window_px} px only, not an image of {shape[1]} x {shape[0]}',
            where="fit",
            fix='Use fit "windows".',
        )
    return fit == "whole" or (fit == "auto" and possible and max(shape) <= WHOLE_UP_TO * (info.network_px or side))


def decide_scores(logits: NDArray[np.float32], prompts: PromptSet) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores float32 (prompt, y, x), the logistic function of the logits, and masks bool (prompt, y, x): score above threshold.

    Masks are told from the logits: for a threshold of 0.5, logit > 0, which is upstream's argmax with ties to the background.
    Where the logit is NaN (not observed), so is the score, and the mask is False.
    """
    with np.errstate(over="ignore"):
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32, copy=False)
    least = np.array([np.log(p.threshold / (1 - p.threshold)) for p in prompts], np.float32)
    return scores, logits > least[:, None, None]


def image_grid(shape: tuple[int, int], *, window_px: int, overlap: float) -> Grid:
    """Lattice for an image, in pixel units: one chunk, and its first pixel where no window reaches that sees only a strip of it.

    The first windows begin with the part that earlier windows would overlap outside the image, so nothing is seen of it.
    """
    stride = stride_of(window_px, overlap)
    margin = window_px - stride
    rows, cols = (Span(margin, margin + side) for side in shape)
    return Grid("", 1.0, rows, cols, max(shape), window_px, stride)


def check_memory(picture: Picture, info: SegmenterInfo, *, prompts: int, side: int, spec: ModelSpec, whole: bool) -> None:
    """Refuse an image whose answer would not fit in memory.

    Raises
    ------
    ResourceError : `plan-too-big`.
    """
    pixels = picture.valid.size
    call = info.memory_bytes(bands=len(picture.bands), prompts=prompts, window_px=side, batch=1 if whole else spec.fixed_batch)
    if whole and info.network_px is None:
        call = info.memory_bytes(bands=len(picture.bands), prompts=prompts, window_px=int(np.sqrt(pixels)) + 1, batch=1)
    needed = call + pixels * (2 * picture.pixels.itemsize * len(picture.bands) + 13 * prompts)
    free = psutil.virtual_memory().available
    if needed > USED_OF_FREE * free:
        raise ResourceError(
            "plan-too-big",
            f"{prompts} prompts on {picture.shape[1]:,} x {picture.shape[0]:,} px take about {needed / 1e9:.1f} GB of memory",
            where=picture.name,
            why=f"{free / 1e9:.1f} GB are free",
            fix="Ask fewer prompts at once, cut the image, or map it as a run.",
        )


def _warnings(segmenter: Segmenter, prompts: PromptSet, *, whole: bool) -> tuple[str, ...]:
    """What the author of the prompts may not expect; where windows are the cause, what to do."""
    told = prompt_warnings(segmenter, prompts, sees_whole=whole)
    if whole or told == prompt_warnings(segmenter, prompts, sees_whole=True):
        return told
    return (*told, 'with fit "whole" the model sees the image at once: words about places then mean the image')


def _picture(image: Any, **options: Any) -> Picture:
    if isinstance(image, Picture):
        return image
    return read_picture(image, **options) if isinstance(image, str | Path) else picture_of(image)


def _logits(
    segmenter: Segmenter, picture: Picture, prompts: PromptSet, *, spec: ModelSpec, window_px: int | None, listener: Listener
) -> NDArray[np.float32]:
    """Logits, float32 (prompt, y, x), NaN where not observed; the image whole where there is no `window_px`."""
    count = "1 prompt" if len(prompts) == 1 else f"{len(prompts)} prompts"
    listener(Event("start", f"encoding {count}"))
    with _about_an_image():
        features = segmenter.encode_prompts(prompts)
    if not picture.valid.any():
        return np.full((len(prompts), *picture.shape), np.nan, np.float32)
    pixels = _physical(picture.pixels, segmenter.info)
    if window_px is None:
        listener(Event("window", f"computing the whole image, {count}", total=1))
        return score_image(segmenter, features, pixels=pixels, valid=picture.valid, prompts=len(prompts), where=picture.name)
    grid = image_grid(picture.shape, window_px=window_px, overlap=spec.overlap)
    return _score_windows(
        segmenter, features, pixels, picture.valid, grid=grid, prompts=len(prompts), batch=spec.fixed_batch, listener=listener
    )


def _contour(
    outlines: ContourSegmenter, picture: Picture, *, spec: ModelSpec, whole: bool, listener: Listener
) -> NDArray[np.float32]:
    """Contour map float32 (y, x), 0 where nothing is observed."""
    side = None if whole else outlines.info.network_px
    logits = _logits(outlines, as_rgb(picture), prompt_set("outline"), spec=spec, window_px=side, listener=listener)
    return np.nan_to_num(decide_scores(logits, prompt_set("outline"))[0][0], nan=0.0)


@contextmanager
def _about_an_image() -> Iterator[None]:
    """Errors about the bands of a pipeline, told as errors about the bands of an image."""
    try:
        yield
    except ConfigError as error:
        if error.where != "source.bands":
            raise
        raise ConfigError(error.code, error.what, where=_BANDS, why=error.why, fix=_NAME_BANDS) from None


def _physical(pixels: NDArray[np.float32], info: SegmenterInfo) -> NDArray[np.float32]:
    """Values 0..1 of a picture as the physical values that the segmenter expects: its black to its white."""
    low, high = info.pixel_range
    if (low, high) == (0.0, 1.0):
        return pixels
    return pixels * np.float32(high - low) + np.float32(low)


def _score_windows(
    segmenter: Segmenter,
    features: Any,
    pixels: NDArray[np.float32],
    valid: NDArray[np.bool_],
    *,
    grid: Grid,
    prompts: int,
    batch: int,
    listener: Listener,
) -> NDArray[np.float32]:
    """Blended logits, float32 (prompt, y, x)."""
    chunk = grid.chunk(0, 0, 0)
    rows, cols = chunk.rows.within(chunk.padded_rows), chunk.cols.within(chunk.padded_cols)
    padded = np.zeros((len(pixels), *chunk.padded_shape), np.float32)
    observed = np.zeros(chunk.padded_shape, bool)
    padded[:, rows, cols], observed[rows, cols] = pixels, valid
    total = len(grid.windows(chunk))
    _tell(listener, 0, total)
    return score_chunk(
        _Counted(segmenter, lambda done: _tell(listener, min(done * batch, total), total)),
        features,
        pixels=padded,
        valid=observed,
        inside=np.ones(chunk.shape, bool),
        grid=grid,
        chunk=chunk,
        prompts=prompts,
        batch=batch,
    )


def _tell(listener: Listener, done: int, total: int) -> None:
    text = f"{done:,} of {total:,} windows" if done else f"{total:,} windows to compute"
    listener(Event("window", text, done=done, total=total))


@dataclass
class _Counted:
    """A segmenter that says after each batch how many it has answered."""

    segmenter: Segmenter
    tell: Callable[[int], None]
    answered: int = 0

    @property
    def info(self) -> SegmenterInfo:
        return self.segmenter.info

    def encode_prompts(self, prompts: PromptSet) -> Any:
        return self.segmenter.encode_prompts(prompts)

    def encode_images(self, images: NDArray[np.float32]) -> Any:
        return self.segmenter.encode_images(images)

    def decode(self, image_features: Any, prompt_features: Any) -> NDArray[np.float32]:
        logits = self.segmenter.decode(image_features, prompt_features)
        self.answered += 1
        self.tell(self.answered)
        return logits
