"""A picture of the layers of a run: boxes in the colours of their prompts over the masks, and zones with their counts."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pyproj import CRS

from eo_batch.outputs.cube import open_cube
from eo_batch.outputs.layers import BOXES, PRODUCTS, ZONES
from eo_batch.outputs.store import Store
from eo_batch.view.preview import GAP, Entry, colours_of, enlargement, has_gaps, lay_out_page, paint_masks

MAX_PICTURES = 24
MAX_BOXES, MAX_ZONES = 20_000, 5_000
"""Drawn on one picture: the largest boxes, the first zones."""
_ZONE_INK = (40, 44, 50)
_FADE = 0.55
"""Share of the ground's colour that masks keep beneath boxes."""


def write_pictures(run: str | Path, *, zones: bool, max_px: int = 1024) -> list[Path]:
    """Write `products/STEP.png` for each time step, of at most the first 24; their paths.

    Parameters
    ----------
    run : folder of a run that has `products/boxes.parquet`.
    zones : draw the zones of `products/zones.parquet`, too.
    max_px : longest side of the map; every n-th pixel of the mask is shown.
    """
    store = Store(run)
    cube = open_cube(store)
    paths = []
    for time, label in enumerate([str(label) for label in cube["step"].values][:MAX_PICTURES]):
        picture = draw_layers(store, cube, time=time, label=label, zones=zones, max_px=max_px)
        target = BytesIO()
        picture.save(target, format="PNG", optimize=True)
        path = f"{PRODUCTS}/{label}.png"
        store.put(path, target.getvalue())
        paths.append(store.local_path(path))
    return paths


def draw_layers(store: Store, cube: Any, *, time: int, label: str, zones: bool, max_px: int = 1024) -> Image.Image:
    """Boxes and zones of one time step over its masks; parameters as `write_pictures`."""
    step = max(1, -(-max(cube.sizes["y"], cube.sizes["x"]) // max_px))
    layer = cube["mask"].isel(time=time, y=slice(step // 2, None, step), x=slice(step // 2, None, step))
    texts = [str(text) for text in cube["prompt"].values]
    masks = {text: np.asarray(layer.isel(prompt=index).values, np.uint8) for index, text in enumerate(texts)}
    colours = colours_of(tuple(texts))
    ground = paint_masks(masks, colours, None).astype(np.float32)
    picture = Image.fromarray(np.rint(255 - _FADE * (255 - ground)).astype(np.uint8))
    factor = enlargement(*next(iter(masks.values())).shape)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    left, _, _, top = cube.attrs["spatial:bbox"]
    pixel = abs(float(cube.attrs["spatial:transform"][0]))
    scale = factor / (pixel * step)
    draw = ImageDraw.Draw(picture)
    numbers = _draw_zones(draw, store, label, left=left, top=top, scale=scale) if zones else []
    counts = _draw_boxes(draw, store, label, colours, left=left, top=top, scale=scale)
    for place, text in numbers:
        draw.text(place, text, fill=_ZONE_INK, font=_font(), anchor="mm", stroke_width=2, stroke_fill="white")
    entries: list[Entry] = [(colours[text], f"{text}  {counts[text]:,} boxes") for text in texts]
    if has_gaps(masks):
        entries.append(GAP)
    notes = ("Numbers: objects counted in each zone, in the order above.",) if zones else ()
    crs = CRS.from_wkt(cube["spatial_ref"].attrs["crs_wkt"])
    shown_m = None if crs.is_geographic else pixel * crs.axis_info[0].unit_conversion_factor * step / factor
    return lay_out_page(picture, entries, title=f"{label}: boxes", resolution_m=shown_m, notes=notes)


def _draw_boxes(
    draw: ImageDraw.ImageDraw, store: Store, label: str, colours: dict[str, Any], *, left: float, top: float, scale: float
) -> dict[str, int]:
    """Draw the boxes of a time step; how many each prompt has."""
    import geopandas

    rows = geopandas.read_parquet(
        store.local_path(BOXES), columns=["prompt", "pixels", "geometry"], filters=[("step", "==", label)]
    )
    counts = dict.fromkeys(colours, 0) | rows.groupby("prompt").size().to_dict()
    for prompt, shape in rows.nlargest(MAX_BOXES, "pixels")[["prompt", "geometry"]].itertuples(index=False):
        draw.polygon(_on_picture(shape.exterior, left, top, scale), outline=colours[prompt], width=2)
    return counts


def _draw_zones(
    draw: ImageDraw.ImageDraw, store: Store, label: str, *, left: float, top: float, scale: float
) -> list[tuple[tuple[float, float], str]]:
    """Draw outlines of zones; where there is room for the counts of their prompts, their places and texts."""
    import geopandas

    rows = geopandas.read_parquet(
        store.local_path(ZONES), columns=["zone", "prompt", "count", "geometry"], filters=[("step", "==", label)]
    )
    numbers = []
    for number, (_, zone) in enumerate(rows[~rows.geometry.isna()].groupby("zone", sort=False)):
        if number == MAX_ZONES:
            break
        shape = zone.geometry.iloc[0]
        for part in shapely.get_parts(shape):
            draw.polygon(_on_picture(part.exterior, left, top, scale), outline=_ZONE_INK)
        text = "/".join(str(count) for count in zone["count"])
        x0, _, x1, _ = shape.bounds
        if zone["count"].any() and _font().getlength(text) + 6 < (x1 - x0) * scale:
            numbers.append((_on_picture(shape.representative_point(), left, top, scale)[0], text))
    return numbers


def _font() -> Any:
    return ImageFont.load_default(size=12)


def _on_picture(shape: Any, left: float, top: float, scale: float) -> list[tuple[float, float]]:
    xy: NDArray[np.float64] = (shapely.get_coordinates(shape) - [left, top]) * [scale, -scale]
    return [(x, y) for x, y in xy.tolist()]
