"""From the pixels of a chunk to the logits of its interior: lattice windows, fixed batches, one order of sums.

Every number here depends on a window's own content and on absolute positions. So the logits of a pixel are the same
bits whatever chunk it is computed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import IntegrityError, ModelError
from eo_batch.core.grid import Chunk, Grid, Window
from eo_batch.core.prompts import PromptSet
from eo_batch.models.busy import counted
from eo_batch.models.fill import FILL_BYTES, fill_missing
from eo_batch.models.segmenter import FLOAT_BYTES, Segmenter, SegmenterInfo, feature_keeper
from eo_batch.models.shared_windows import Answer, Claim, SharedWindows, Visit

TAPER_FLOOR = 0.01
"""Smallest weight of the taper before it is normalised: at the outermost pixel of a window."""
PROBE_SEED = 20150623
"""Seed of the windows that `probe_segmenter` shows; any fixed number does."""

Encode = Callable[[NDArray[np.float32]], Any]
"""Image features of windows: what `Segmenter.encode_images` is, or what gives the same from somewhere else."""

Ask = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Logits of windows, float32 (window, prompt, y, x)."""


@dataclass(frozen=True)
class ProbeReport:
    """What `probe_segmenter` found.

    Parameters
    ----------
    position_independent : a window gives the same bytes in every place of a batch, whatever its batch mates.
    logit_range : smallest and largest logit seen.
    """

    position_independent: bool
    logit_range: tuple[float, float]


def score_chunk(
    segmenter: Segmenter,
    prompt_features: Any,
    *,
    pixels: NDArray[np.float32],
    valid: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    grid: Grid,
    chunk: Chunk,
    prompts: int,
    batch: int,
    encode: Encode | None = None,
    visit: Visit | None = None,
) -> NDArray[np.float32]:
    """Blended logits of the interior of `chunk`, float32 (prompt, y, x); NaN where not `valid` or not `inside`.

    A pixel's logit is the sum over all windows that cover it of window_weight x logit, in row-major window order.
    The weights of the windows over a pixel sum to 1 (`window_weights`). Inside a window, pixels without observation
    mirror the observed ones (`fill.mirror_fill`); for a `pixelwise` segmenter they hold the window's band means.

    Parameters
    ----------
    prompt_features : what `segmenter.encode_prompts` gave for the `prompts` prompts.
    pixels : float32 (band, y, x) over the padded chunk, finite where `valid`.
    valid : bool (y, x) over the padded chunk.
    inside : bool (y, x) over the interior: pixel centre lies in the region.
    batch : windows per call of the segmenter; the last batch repeats its last window, and its answers are dropped.
    encode : what gives the features of a batch; None: the segmenter's own `encode_images`.
    visit : turn of the chunk among those that share answers, entered; None: it computes all of them for itself.

    Raises
    ------
    ModelError : `model-shape`, `model-not-finite`, `model-oom`.
    """
    assert pixels.shape[1:] == valid.shape == chunk.padded_shape
    assert inside.shape == chunk.shape
    rows, cols = chunk.rows.within(chunk.padded_rows), chunk.cols.within(chunk.padded_cols)
    kept = valid[rows, cols] & inside
    logits = np.zeros((prompts, *chunk.shape), np.float32)
    weights = window_weights(grid.window_px, grid.stride_px)
    windows = [window for window in grid.windows(chunk) if _keeps(window, chunk, kept)]
    scoring = _Scoring(
        segmenter,
        prompt_features,
        encode,
        pixels=pixels,
        valid=valid,
        chunk=chunk,
        prompts=prompts,
        images=np.empty((batch, len(pixels), grid.window_px, grid.window_px), np.float32),
    )
    visit = visit or SharedWindows(grid, budget=0).visit(chunk)
    for window, answer in scoring.answers(windows, visit):
        _add(logits, answer, weights, window=window, chunk=chunk)
        del answer  # it is part of a whole batch, which is let go before the next one is computed
    logits[:, ~kept] = np.nan
    return logits


def score_image(
    segmenter: Segmenter, prompt_features: Any, *, pixels: NDArray[np.float32], valid: NDArray[np.bool_], prompts: int, where: str
) -> NDArray[np.float32]:
    """Logits of an image shown as one window, square or not, float32 (prompt, y, x); NaN where not `valid`.

    Parameters
    ----------
    pixels : float32 (band, y, x), finite where `valid`.
    valid : bool (y, x), True somewhere; other pixels are filled as in `score_chunk`.

    Raises
    ------
    ModelError : `model-shape`, `model-not-finite`, `model-oom`.
    """
    images = pixels[None]
    if not valid.all():
        images = images.copy()
        fill_missing(images[0], ~valid, pixelwise=segmenter.info.pixelwise)
    logits = _ask(segmenter, images, prompt_features, prompts=prompts, where=where)[0]
    if not np.isfinite(logits).all():
        raise _not_finite(logits, where=where)
    return logits if valid.all() else np.where(valid, logits, np.float32(np.nan))


@lru_cache(maxsize=8)
def window_weights(window_px: int, stride_px: int) -> NDArray[np.float32]:
    """Blending weights of a window, float32 (window_px, window_px), read-only.

    Separable: along each axis a smoothstep ramp (3 t^2 - 2 t^3, near a raised cosine) with a floor, divided by the sum of the
    tapers of all lattice windows over the pixel. So the weights of the windows over any pixel sum to 1, and a window alone
    over a pixel has weight exactly 1. Only sums, products and quotients: the same bits on every CPU.
    """
    nearness = 1.0 - np.abs((2 * np.arange(window_px) + 1) / window_px - 1.0)
    ramp = nearness * nearness * (3.0 - 2.0 * nearness)
    taper = TAPER_FLOOR + (1.0 - TAPER_FLOOR) * (ramp + ramp[::-1]) / 2
    total = np.zeros(stride_px)
    for start in range(0, window_px, stride_px):
        part = taper[start : start + stride_px]
        total[: len(part)] += part
    share = taper / total[np.arange(window_px) % stride_px]
    weights = np.outer(share, share).astype(np.float32)
    weights.flags.writeable = False
    return weights


def inference_bytes(
    info: SegmenterInfo, grid: Grid, *, bands: int, prompts: int, batch: int, keeps_features: bool = False
) -> int:
    """Estimated peak memory in bytes of `score_chunk` for a full chunk, its inputs not included.

    Parameters
    ----------
    keeps_features : features of windows are read from files and written there: a batch of them, and one on its way.
    """
    logits = FLOAT_BYTES * prompts * grid.chunk_px * grid.chunk_px
    call = info.memory_bytes(bands=bands, prompts=prompts, window_px=grid.window_px, batch=batch)
    filling = 0 if info.pixelwise else FILL_BYTES * grid.window_px * grid.window_px
    keeping = (batch + 1) * info.feature_bytes if keeps_features else 0
    return logits + call + filling + keeping + 2 * grid.chunk_px * grid.chunk_px


def probe_segmenter(
    segmenter: Segmenter,
    prompts: PromptSet,
    bands: Sequence[str],
    *,
    window_px: int,
    batch: int,
    keeps_features: bool = False,
) -> ProbeReport:
    """Show a segmenter made-up windows once before a run, and see whether its answers can be trusted.

    Parameters
    ----------
    keeps_features : also see whether features that were written down and read back give the same answers.

    Raises
    ------
    ConfigError : a prompt that it cannot serve.
    ModelError : `model-shape`, `model-not-finite`.
    IntegrityError : `nondeterministic-output`: the same batch gave other bytes the second time.
    """
    images = made_up_windows(segmenter, bands=len(bands), window_px=window_px, batch=batch)
    features = segmenter.encode_prompts(prompts)
    where = f'segmenter "{segmenter.info.name}"'
    first = _ask(segmenter, images, features, prompts=len(prompts), where=where).copy()
    if not np.isfinite(first).all():
        raise _not_finite(first, where=f"{where}, made-up window")
    if _ask(segmenter, images, features, prompts=len(prompts), where=where).tobytes() != first.tobytes():
        raise IntegrityError(
            "nondeterministic-output",
            "the same windows gave other logits the second time",
            where=where,
            fix="A run could not be resumed or checked. Switch off what is random in it (dropout, autotuning, atomics).",
        )
    if keeps_features:
        _probe_kept(segmenter, images, features, first, where=where)
    independent = batch == 1 or stands_alone(
        images, first, lambda mixed: _ask(segmenter, mixed, features, prompts=len(prompts), where=where)
    )
    return ProbeReport(independent, (float(first.min()), float(first.max())))


def probe_company(
    segmenter: Segmenter, prompts: PromptSet, *, known: int, bands: Sequence[str], window_px: int, batch: int
) -> None:
    """Show a segmenter made-up windows, and see whether its answers to some prompts depend on the prompts asked with them.

    Parameters
    ----------
    known : the first so many `prompts` were answered before; the rest is asked with them and alone.

    Raises
    ------
    ConfigError : a prompt that it cannot serve.
    ModelError : `model-shape`, `model-not-finite`.
    IntegrityError : `nondeterministic-output`: with others, a prompt is answered otherwise.
    """
    images = made_up_windows(segmenter, bands=len(bands), window_px=window_px, batch=batch)
    later = PromptSet(prompts.prompts[known:])
    where = f'segmenter "{segmenter.info.name}"'
    seen = segmenter.encode_images(images)
    together, alone = (
        _ask(segmenter, images, segmenter.encode_prompts(asked), prompts=len(asked), where=where, encode=lambda _: seen)
        for asked in (prompts, later)
    )
    together = together[:, known:]
    if not np.isfinite(together).all():
        raise _not_finite(together, where=f"{where}, made-up window")
    if together.tobytes() != alone.tobytes():
        raise IntegrityError(
            "nondeterministic-output",
            "it answers a prompt otherwise when others are asked with it",
            where=where,
            fix="Start a new run with all prompts: answers that are computed apart would not be those of one run.",
        )


def stands_alone(images: NDArray[np.float32], answers: NDArray[np.float32], ask: Ask) -> bool:
    """Whether the second window of a batch is answered alike, to the bit, in every place of a batch and among its like."""
    return all(np.array_equal(answer, answers[1]) for answer in ask(np.repeat(images[1:2], len(images), axis=0)))


def made_up_windows(segmenter: Segmenter, *, bands: int, window_px: int, batch: int) -> NDArray[np.float32]:
    """Windows in the pixel range of a segmenter, float32 (batch, band, y, x), always the same."""
    shape = (batch, bands, window_px, window_px)
    return np.random.default_rng(PROBE_SEED).uniform(*segmenter.info.pixel_range, shape).astype(np.float32)


def _probe_kept(
    segmenter: Segmenter, images: NDArray[np.float32], features: Any, expected: NDArray[np.float32], *, where: str
) -> None:
    keeper = feature_keeper(segmenter)
    assert keeper is not None
    kept = [
        {name: part.copy() for name, part in window.items()} for window in keeper.dump_features(segmenter.encode_images(images))
    ]
    again = _ask(segmenter, images, features, prompts=expected.shape[1], where=where, encode=lambda _: keeper.load_features(kept))
    if again.tobytes() != expected.tobytes():
        raise IntegrityError(
            "nondeterministic-output",
            "features that were kept gave other logits than those just computed",
            where=where,
            fix="Set cache.features = false. This is a bug of the segmenter: report it to its makers.",
        )


@dataclass(frozen=True, eq=False)
class _Scoring:
    """The windows of one chunk on their way through the segmenter, `len(images)` at a time."""

    segmenter: Segmenter
    prompt_features: Any
    encode: Encode | None
    pixels: NDArray[np.float32] = field(kw_only=True)
    valid: NDArray[np.bool_] = field(kw_only=True)
    chunk: Chunk = field(kw_only=True)
    prompts: int = field(kw_only=True)
    images: NDArray[np.float32] = field(kw_only=True)

    def answers(self, windows: list[Window], visit: Visit) -> Iterator[tuple[Window, Answer]]:
        """Every window with its answer, in order; those that are computed here in as few batches as there can be."""
        waiting: list[Claim] = []
        own: list[Claim] = []
        for window in windows:
            claim = self._claim(window, visit, slot=len(own))
            waiting.append(claim)
            if claim.is_mine:
                own.append(claim)
            if len(own) == len(self.images) or window is windows[-1]:
                computed = iter(self._compute(own, visit))
                for claim in waiting:
                    yield claim.window, next(computed) if claim.is_mine else self._take(claim, visit)
                    claim.release()
                del computed
                waiting, own = [], []

    def _claim(self, window: Window, visit: Visit, *, slot: int) -> Claim:
        """Cut a window into its place in the batch, and see who computes it."""
        rows, cols = window.rows.within(self.chunk.padded_rows), window.cols.within(self.chunk.padded_cols)
        self.images[slot] = self.pixels[:, rows, cols]
        fill_missing(self.images[slot], ~self.valid[rows, cols], pixelwise=self.segmenter.info.pixelwise)
        return visit.claim(window, self.images[slot])

    def _compute(self, own: list[Claim], visit: Visit) -> list[Answer]:
        """Answers to the first windows of `images`, published; the last one is repeated until the batch is full."""
        if not own:
            return []
        where = f"chunk {self.chunk.key}"
        self.images[len(own) :] = self.images[len(own) - 1]
        answers = _ask(self.segmenter, self.images, self.prompt_features, prompts=self.prompts, where=where, encode=self.encode)
        for claim, answer in zip(own, answers, strict=False):
            _check_finite(answer, self.images, window=claim.window, where=where)
            claim.publish(answer)
        visit.computed += len(own)
        return [Answer(answer, claim.window.rows, claim.window.cols) for claim, answer in zip(own, answers, strict=False)]

    def _take(self, claim: Claim, visit: Visit) -> Answer:
        """The answer of a neighbour; where none came of it, it is computed here after all."""
        answer = claim.wait()
        while answer is None:
            claim.release()
            claim = self._claim(claim.window, visit, slot=0)
            if claim.is_mine:
                return self._compute([claim], visit)[0]
            answer = claim.wait()
        visit.taken += 1
        return answer


def _keeps(window: Window, chunk: Chunk, kept: NDArray[np.bool_]) -> bool:
    rows, cols = chunk.rows.intersect(window.rows), chunk.cols.intersect(window.cols)
    return bool(kept[rows.within(chunk.rows), cols.within(chunk.cols)].any())


def _add(logits: NDArray[np.float32], answer: Answer, weights: NDArray[np.float32], *, window: Window, chunk: Chunk) -> None:
    rows, cols = chunk.rows.intersect(window.rows), chunk.cols.intersect(window.cols)
    known = answer.logits[:, rows.within(answer.rows), cols.within(answer.cols)]
    sums = logits[:, rows.within(chunk.rows), cols.within(chunk.cols)]
    share = weights[rows.within(window.rows), cols.within(window.cols)]
    for prompt, logit in zip(sums, known, strict=True):  # one after the other: what is between takes the memory of one
        prompt += logit * share


def _ask(
    segmenter: Segmenter,
    images: NDArray[np.float32],
    features: Any,
    *,
    prompts: int,
    where: str,
    encode: Encode | None = None,
) -> NDArray[np.float32]:
    name = segmenter.info.name
    try:
        with counted():
            answers = segmenter.decode((encode or segmenter.encode_images)(images), features)
    except MemoryError:
        raise ModelError(
            "model-oom",
            f"{len(images)} windows of {images.shape[-1]} px do not fit in memory",
            where=where,
            why=f'segmenter "{name}"',
            fix="Lower model.batch or model.window_px, or use fewer workers.",
        ) from None
    expected = (len(images), prompts, *images.shape[2:])
    found = getattr(answers, "shape", None), str(getattr(answers, "dtype", type(answers).__name__))
    if found != (expected, "float32"):
        raise ModelError(
            "model-shape",
            f'segmenter "{name}" answered with {found[1]} {found[0]} instead of float32 {expected}',
            where=where,
            fix="The axes are (window, prompt, y, x). This is a bug of the segmenter: report it to its makers.",
        )
    return answers


def _check_finite(answer: NDArray[np.float32], images: NDArray[np.float32], *, window: Window, where: str) -> None:
    if not all(np.isfinite(logit).all() for logit in answer):
        assert np.isfinite(images).all(), "pixels given to score_chunk must be finite where valid"
        raise _not_finite(answer, where=f"{where}, window ({window.row}, {window.col})")


def _not_finite(answer: NDArray[np.float32], *, where: str) -> ModelError:
    count = int(np.count_nonzero(~np.isfinite(answer)))
    return ModelError(
        "model-not-finite",
        f"{count:,} of {answer.size:,} logits are NaN or infinite",
        where=where,
        fix="Nothing was written for this chunk. Check the weights, the precision and the pixel range of the segmenter.",
    )
