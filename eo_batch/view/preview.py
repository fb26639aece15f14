"""A picture of a result for people: masks in colour over an image, with legend, scale bar and honest gaps.

Needs pillow only, so that every run can have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from eo_batch.core.arrays import NO_OBSERVATION, YES

PALETTE = ("#2f7ed8", "#e8590c", "#2b9348", "#c2255c", "#f2b705", "#7048e8", "#0ca6a6", "#8d5a2b")
"""Colours of prompts, in order; used again from the ninth prompt on."""

_KNOWN = {
    "water": "#2f7ed8",
    "vegetation": "#2b9348",
    "forest": "#2b9348",
    "built-up": "#e8590c",
    "building": "#e8590c",
    "snow": "#b197fc",
    "bare soil": "#a5673f",
    "burnt": "#c2255c",
}
_PAPER, _INK, _FAINT = (250, 250, 248), (34, 38, 43), (110, 116, 122)
_GROUND = (222, 222, 216)
_MARGIN = 28
_LEAST_PX = 480

Colour = tuple[int, int, int]
Entry = tuple[Colour | None, str]
"""A line of the legend: its colour, None for the hatching of gaps, and its text."""
GAP: Entry = (None, "no observation")


def render_preview(
    masks: Mapping[str, NDArray[np.uint8]],
    *,
    title: str,
    background: NDArray[np.uint8] | None = None,
    resolution_m: float | None = None,
) -> Image.Image:
    """One picture of the masks of several prompts.

    Parameters
    ----------
    masks : prompt text -> uint8 (y, x) of 0, 1, 254 (no observation) and 255 (not computed), all of one shape.
    title : first line of the picture.
    background : uint8 (y, x, 3) of the same size, drawn beneath; plain where it is None.
    resolution_m : side of a pixel of these arrays in metres, for the scale bar; no bar where it is None.

    Raises
    ------
    ValueError : no mask is given, or shapes differ.
    """
    shapes = {mask.shape for mask in masks.values()} | ({background.shape[:2]} if background is not None else set())
    if not masks or len(shapes) != 1:
        raise ValueError(f"masks and background must have one shape, got {sorted(shapes)}")
    colours = colours_of(tuple(masks))
    picture = Image.fromarray(paint_masks(masks, colours, background))
    height, width = next(iter(shapes))
    factor = enlargement(height, width)
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    entries: list[Entry] = [(colours[text], f"{text}  {found_share(mask)}") for text, mask in masks.items()]
    if has_gaps(masks):
        entries.append(GAP)
    return lay_out_page(picture, entries, title=title, resolution_m=resolution_m / factor if resolution_m else None)


def write_preview(
    masks: Any, path: Path, *, title: str = "", background: NDArray[np.uint8] | None = None, time: int = 0, max_px: int = 1024
) -> Path:
    """Write a PNG of one time step of a mask cube.

    Parameters
    ----------
    masks : `xarray.DataArray`, or Dataset with "mask", axes (prompt, time, y, x), as `open_run(...).masks` gives it.
    path : PNG to write. title : first line. background : as in `render_preview`, of the decimated size.
    time : which layer. max_px : longest side of the map; every n-th pixel is read, nothing is averaged.
    """
    if isinstance(masks, str | Path):
        from eo_batch.outputs.cube import open_cube

        masks = open_cube(masks)
    array = masks["mask"] if hasattr(masks, "data_vars") else masks
    step = max(1, -(-max(array.sizes["y"], array.sizes["x"]) // max_px))
    layer = array.isel(time=time, y=slice(step // 2, None, step), x=slice(step // 2, None, step))
    pixel_m = abs(float(layer["y"][1] - layer["y"][0])) if layer.sizes["y"] > 1 else None
    texts = [str(text) for text in layer["prompt"].values]
    planes = {text: np.asarray(layer.isel(prompt=index).values, np.uint8) for index, text in enumerate(texts)}
    picture = render_preview(planes, title=title or path.stem, background=background, resolution_m=pixel_m)
    picture.save(path, format="PNG", optimize=True)
    return path


def true_colour(reflectance: NDArray[np.floating], *, brightest: float = 0.26) -> NDArray[np.uint8]:
    """A background picture of reflectance: uint8 (y, x, 3) of float (band, y, x) in the order red, green, blue.

    Parameters
    ----------
    brightest : reflectance that becomes white. Dark ground is lifted (gamma 1.5); where a band is not finite, black.
    """
    share = np.clip(np.nan_to_num(np.moveaxis(reflectance[:3], 0, -1), nan=0.0) / brightest, 0.0, 1.0)
    return np.rint(255.0 * share ** (1.0 / 1.5)).astype(np.uint8)


def enlargement(height: int, width: int) -> int:
    """How many times a picture of this size is enlarged, so that a page can be read."""
    return max(1, -(-_LEAST_PX // max(height, width)))


def has_gaps(masks: Mapping[str, NDArray[np.uint8]]) -> bool:
    """Some pixel of some mask is not observed or not computed."""
    return any(bool((mask >= NO_OBSERVATION).any()) for mask in masks.values())


def colours_of(texts: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """A colour for each prompt: the expected one where there is one, else the next of the palette."""
    free = [c for c in PALETTE if c not in {_KNOWN.get(text) for text in texts}] or list(PALETTE)
    out, used = {}, 0
    for text in texts:
        known = _KNOWN.get(text)
        out[text] = _rgb(known or free[used % len(free)])
        used += known is None
    return out


def _rgb(code: str) -> tuple[int, int, int]:
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def paint_masks(
    masks: Mapping[str, NDArray[np.uint8]], colours: Mapping[str, tuple[int, int, int]], background: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """The map itself, uint8 (y, x, 3): later prompts lie over earlier ones; outlines are stronger than areas."""
    shape = next(iter(masks.values())).shape
    image = np.full((*shape, 3), _GROUND, np.float32) if background is None else background.astype(np.float32)
    strength = 0.85 if background is None else 0.45
    for text, mask in masks.items():
        found = mask == YES
        rim = found & ~_shrunk(found)
        for part, share in ((found & ~rim, strength), (rim, min(1.0, strength + 0.35))):
            image[part] += share * (np.array(colours[text], np.float32) - image[part])
    gap = np.logical_and.reduce([mask >= NO_OBSERVATION for mask in masks.values()])
    rows, cols = np.indices(shape)
    stripes: NDArray[np.float64] = np.where((rows + cols) % 8 < 2, 176.0, 206.0)
    image[gap] = stripes[gap].reshape(-1, 1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _shrunk(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours are found too; beyond the edge of the picture counts as found."""
    wide = np.pad(found, 1, constant_values=True)
    out: NDArray[np.bool_] = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return out


def lay_out_page(
    picture: Image.Image,
    entries: Sequence[Entry],
    *,
    title: str,
    resolution_m: float | None = None,
    notes: Sequence[str] = (),
) -> Image.Image:
    """The picture on paper: title above; legend, notes and scale bar below.

    Parameters
    ----------
    entries : (colour, text) of the legend; a colour of None is the hatching of gaps.
    resolution_m : side of a pixel of `picture` in metres, for the scale bar; no bar where it is None.
    notes : sentences under the legend, broken into lines of the picture's width.
    """
    size = max(14, picture.width // 55)
    large, plain, small = (ImageFont.load_default(size=s) for s in (size * 1.6, size, size * 0.85))
    told = [line for note in notes for line in _broken(note, plain, picture.width)]
    lines = _wrap(entries, plain, picture.width, size)
    top = int(size * 3.4)
    foot = int(len(lines) * size * 1.9 + len(told) * size * 1.4 + size * (3.6 if resolution_m else 1.2))
    page = Image.new("RGB", (picture.width + 2 * _MARGIN, picture.height + top + foot + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, top / 2), _fitting(title, large, picture.width), fill=_INK, font=large, anchor="lm")
    page.paste(picture, (_MARGIN, top))
    draw.rectangle((_MARGIN - 1, top - 1, _MARGIN + picture.width, top + picture.height), outline=_FAINT)
    y = top + picture.height + size * 1.5
    for line in lines:
        for x, colour, text in line:
            _swatch(draw, page, (_MARGIN + x, int(y - size * 0.5)), size, colour)
            draw.text((_MARGIN + x + size * 1.6, y), text, fill=_INK, font=plain, anchor="lm")
        y += size * 1.9
    for sentence in told:
        draw.text((_MARGIN, y), sentence, fill=_INK, font=plain, anchor="lm")
        y += size * 1.4
    if resolution_m:
        _scale_bar(draw, picture.width, int(y), resolution_m, small, size)
    return page


def found_share(mask: NDArray[np.uint8]) -> str:
    """Found share of the observed pixels, as text."""
    observed = int((mask < NO_OBSERVATION).sum())
    return f"{100.0 * float((mask == YES).sum()) / observed:.1f} %" if observed else "not observed"


def _broken(text: str, font: Any, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitting(line, font, width) for line in lines]


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, its end cut off where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = next((n for n in range(len(text), 0, -1) if font.getlength(text[:n] + "...") <= width), 0)
    return text[:kept] + "..."


def _wrap(entries: Sequence[Entry], font: Any, width: int, size: int) -> list[list[tuple[int, Any, str]]]:
    """Legend entries set into lines: (x, colour, text)."""
    lines: list[list[tuple[int, Any, str]]] = [[]]
    x = 0
    for colour, text in entries:
        text = _fitting(text, font, width - int(size * 1.6))
        wide = int(size * 1.6 + font.getlength(text))
        if lines[-1] and x + wide > width:
            lines.append([])
            x = 0
        lines[-1].append((x, colour, text))
        x += wide + int(size * 1.8)
    return lines


def _swatch(draw: ImageDraw.ImageDraw, page: Image.Image, corner: tuple[int, int], size: int, colour: Any) -> None:
    x, y = corner
    if colour is None:
        rows, cols = np.indices((size, size))
        hatch = np.where((rows + cols) % 8 < 2, 176, 206).astype(np.uint8)
        page.paste(Image.fromarray(np.stack([hatch] * 3, axis=-1)), (x, y))
        draw.rectangle((x, y, x + size - 1, y + size - 1), outline=_FAINT)
    else:
        draw.rounded_rectangle((x, y, x + size - 1, y + size - 1), radius=size // 5, fill=colour)


def _scale_bar(draw: ImageDraw.ImageDraw, width: int, y: int, resolution_m: float, font: Any, size: int) -> None:
    """A bar of a round length, about a quarter of the map."""
    goal = width * resolution_m / 4.0
    power = 10.0 ** np.floor(np.log10(goal))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= goal))
    pixels = round(length / resolution_m)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    half = pixels // 2
    draw.rectangle((_MARGIN, y, _MARGIN + half, y + size // 3), fill=_INK)
    draw.rectangle((_MARGIN + half, y, _MARGIN + pixels, y + size // 3), fill=_PAPER, outline=_INK)
    draw.text((_MARGIN + pixels + size * 0.6, y + size // 6), text, fill=_INK, font=font, anchor="lm")
