"""Boxes on a picture, the same way wherever boxes are drawn: outlines that stand out, labels that cover no other one."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from eo_batch.view.preview import Colour

MANY = 60
"""With more boxes than this a label is the score alone, as the colour tells the class, and boxes narrower than it have none."""
RIM_FROM = 15
"""Outlines have a dark rim, to stand out on any ground; boxes of fewer line widths than this would be nothing but rim."""
Area = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the picture."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """One box on a picture.

    Parameters
    ----------
    points : its corners in pixels of the picture.
    text, score : its class and score.
    """

    points: Sequence[Point]
    text: str
    score: float


def draw_marks(
    picture: Image.Image, marks: Sequence[Mark], colours: Mapping[str, Colour], *, plates: Sequence[tuple[Point, str]] = ()
) -> None:
    """Outlines of all marks, then texts on plates, then as many labels as find room, best first.

    Parameters
    ----------
    plates : (middle, text) of what must be readable; one that would cover another is left out.
    """
    draw, font = ImageDraw.Draw(picture), label_font(picture)
    line = max(2, max(picture.size) // 500)
    for mark in marks:
        points = [*mark.points, mark.points[0], mark.points[1]]
        red, green, blue = colours[mark.text]
        x0, y0, x1, y1 = _bounds(mark.points)
        if min(x1 - x0, y1 - y0) > RIM_FROM * line:
            draw.line(points, fill=(red // 4, green // 4, blue // 4), width=line + 2, joint="curve")
        draw.line(points, fill=colours[mark.text], width=line, joint="curve")
    taken: list[Area] = []
    for (x, y), text in plates:
        wide, high = _size(text, font)
        left = float(round(max(0, min(x - wide / 2, picture.width - 1 - wide))))
        top = float(round(max(0, min(y - high / 2, picture.height - 1 - high))))
        area = (left, top, left + wide, top + high)
        if not _meets(area, taken):
            taken.append(area)
            _label(draw, area, text, (250, 250, 248), font)
    is_crowd = len(marks) > MANY
    for mark in sorted(marks, key=lambda mark: -mark.score):
        name = "" if is_crowd else f"{mark.text if len(mark.text) <= 24 else mark.text[:22] + '...'} "
        label = printable(f"{name}{mark.score:.2f}")
        bounds, size_xy = _bounds(mark.points), _size(label, font)
        if is_crowd and bounds[2] - bounds[0] < size_xy[0]:
            continue
        room = _room(mark.points, size_xy, picture.size, taken)
        if room is not None:
            taken.append(room)
            _label(draw, room, label, colours[mark.text], font)


def label_font(picture: Image.Image) -> Any:
    """Font of labels on a picture of this size."""
    return ImageFont.load_default(size=max(11, max(picture.size) // 80))


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()


def printable(text: str) -> str:
    """The text without characters that no font can show."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _size(text: str, font: Any) -> Point:
    return float(round(font.getlength(text) + 6)), float(round(font.size + 4))


def _label(draw: ImageDraw.ImageDraw, area: Area, text: str, colour: Colour, font: Any) -> None:
    draw.rectangle(area, fill=colour)
    draw.text((area[0] + 3, (area[1] + area[3]) / 2), text, fill=_ink_on(colour), font=font, anchor="lm")


def _room(points: Sequence[Point], size_xy: Point, picture_xy: tuple[int, int], taken: Sequence[Area]) -> Area | None:
    """Where a label fits that covers no other one: above the topmost corner, below the lowest one, or beneath the topmost."""
    x0, y0 = min(points, key=lambda point: (point[1], point[0]))
    x1, y1 = min(points, key=lambda point: (-point[1], point[0]))
    for x, top in ((x0, y0 - size_xy[1]), (x1, y1), (x0, y0)):
        left = max(0.0, min(x, picture_xy[0] - 1 - size_xy[0]))
        area = (left, top, left + size_xy[0], top + size_xy[1])
        fits = top >= 0 and area[3] < picture_xy[1] and area[2] < picture_xy[0]
        if fits and not _meets(area, taken):
            return area
    return None


def _meets(area: Area, taken: Sequence[Area]) -> bool:
    return any(a[0] < area[2] and area[0] < a[2] and a[1] < area[3] and area[1] < a[3] for a in taken)


def _bounds(points: Sequence[Point]) -> Area:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is read more easily on the colour (luma of ITU-R BT.601)."""
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luma > 140 else (255, 255, 255)
