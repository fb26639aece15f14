"""The answer to prompts on one image, for people: the image, masks in colour, boxes with class and score, legend, caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eo_batch.products.rules import Box
from eo_batch.run.images.answer import ImageAnswer
from eo_batch.view.marks import Mark, draw_marks, printable
from eo_batch.view.preview import (
    GAP,
    Colour,
    Entry,
    colours_of,
    enlargement,
    found_share,
    has_gaps,
    lay_out_page,
    paint_masks,
)

LONGEST_PX = 1600
"""Longest side of the picture on the page; larger images are shown smaller."""
NARROWEST_PX = 360
"""A picture of fewer columns gets paper beside it, so that the legend has room."""
_PAPER = (250, 250, 248)


def overlay_of(answer: ImageAnswer, *, shows_boxes: bool = True, caption: str = "", longest_px: int = LONGEST_PX) -> Image.Image:
    """One page for an answer.

    Parameters
    ----------
    shows_boxes : also draw the objects, with class and score.
    caption : sentences below the legend.
    """
    boxes = answer.boxes if shows_boxes else {}
    codes = dict(zip(answer.prompts.texts, answer.codes, strict=True))
    how = answer.fit if answer.window_px is None else f"windows of {answer.window_px} px"
    title = f"{answer.picture.name} ({answer.model}, {how})"
    return render_overlay(brightened(answer.picture.rgb()), codes, boxes, title=title, caption=caption, longest_px=longest_px)


def render_overlay(
    rgb: NDArray[np.uint8],
    masks: Mapping[str, NDArray[np.uint8]],
    boxes: Mapping[str, Sequence[Box]],
    *,
    title: str,
    caption: str = "",
    longest_px: int = LONGEST_PX,
) -> Image.Image:
    """One page: masks and boxes over an image.

    Parameters
    ----------
    rgb : uint8 (y, x, 3).
    masks : prompt text -> uint8 (y, x) of 0, 1 and 254 (not observed), all of the image's shape.
    boxes : prompt text -> boxes in pixels of the image.
    title, caption : first line; sentences below the legend.
    longest_px : a longer image is shown smaller.

    Raises
    ------
    ValueError : no mask is given, or shapes differ.
    """
    if not masks or {mask.shape for mask in masks.values()} != {rgb.shape[:2]}:
        raise ValueError(f"masks and image must have one shape, got {[m.shape for m in masks.values()]} and {rgb.shape[:2]}")
    colours = colours_of(tuple(masks))
    picture, factor_xy = _painted(rgb, masks, colours, longest_px)
    draw_marks(picture, [_mark(box, text, factor_xy) for text, found in boxes.items() for box in found], colours)
    entries: list[Entry] = [(colours[text], _legend(text, mask, boxes.get(text))) for text, mask in masks.items()]
    if has_gaps(masks):
        entries.append(GAP)
    if picture.width < NARROWEST_PX:
        paper = Image.new("RGB", (NARROWEST_PX, picture.height), _PAPER)
        paper.paste(picture, (0, 0))
        picture = paper
    return lay_out_page(picture, entries, title=printable(title), notes=[printable(caption)] if caption else ())


def brightened(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A dark image, such as reflectance from 0 to 1, made brighter so that people see it; others as they are.

    Dark means that all but the brightest hundredth lies in the lower half; that becomes the whole range.
    """
    high = float(np.percentile(rgb[:: max(1, rgb.shape[0] // 512), :: max(1, rgb.shape[1] // 512)], 99))
    if not 0 < high < 128:
        return rgb
    return np.clip(np.rint(rgb * np.float32(255 / high)), 0, 255).astype(np.uint8)


def _painted(
    rgb: NDArray[np.uint8], masks: Mapping[str, NDArray[np.uint8]], colours: Mapping[str, Colour], longest_px: int
) -> tuple[Image.Image, tuple[float, float]]:
    """The image with masks in the size in which it is shown, and how many times larger (x, y) that is."""
    height, width = rgb.shape[:2]
    if max(height, width) <= longest_px:
        factor = enlargement(height, width)
        picture = Image.fromarray(paint_masks(masks, colours, rgb))
        if factor > 1:
            picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
        return picture, (factor, factor)
    share = longest_px / max(height, width)
    shown = max(1, round(height * share)), max(1, round(width * share))
    ground = np.asarray(Image.fromarray(rgb).resize((shown[1], shown[0]), Image.Resampling.LANCZOS))
    # Masks are thinned, not averaged: every pixel shown is the answer of one pixel.
    at = np.ix_(*((np.arange(n) * 2 + 1) * side // (2 * n) for n, side in zip(shown, (height, width), strict=True)))
    picture = Image.fromarray(paint_masks({text: mask[at] for text, mask in masks.items()}, colours, ground))
    return picture, (shown[1] / width, shown[0] / height)


def _mark(box: Box, text: str, factor_xy: tuple[float, float]) -> Mark:
    corners = box.corners or ((box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1))
    return Mark([(x * factor_xy[0], y * factor_xy[1]) for x, y in corners], text, box.score)


def _legend(text: str, mask: NDArray[np.uint8], found: Sequence[Box] | None) -> str:
    objects = "" if found is None else f", {len(found)} object{'' if len(found) == 1 else 's'}"
    return f"{text}  {found_share(mask)}{objects}"
