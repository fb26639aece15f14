"""A picture of the layers of a run: boxes in the colours of their prompts over the masks, and zones with their counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pyproj import CRS

from eo_batch.outputs.cube import open_cube
from eo_batch.outputs.layers import BOXES, PRODUCTS, ZONES
from eo_batch.outputs.store import Store
from eo_batch.view.marks import Mark, Point, draw_marks, label_font, png_bytes, printable
from eo_batch.view.preview import GAP, Entry, colours_of, enlargement, has_gaps, lay_out_page, paint_masks

MAX_PICTURES = 24
MAX_BOXES, MAX_ZONES = 20_000, 5_000
"""Drawn on one picture: the largest boxes, the first zones."""
_ZONE_INK = (40, 44, 50)
_FADE = 0.55
"""Share of the ground's colour that masks keep beneath boxes."""


def write_pictures(run: str | Path, *, zones: bool, max_px: int = 1024) -> list[str]:
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
        path = f"{PRODUCTS}/{label}.png"
        store.put(path, png_bytes(picture))
        paths.append(store.named(path))
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
    place = _Place(left, top, factor / (pixel * step), picture.size)
    outlines, plates, zone_count = _draw_zones(picture, store, label, place) if zones else (0, [], 0)
    marks, counts = _marks(store, label, texts, place)
    draw_marks(picture, marks, colours, plates=plates)
    entries: list[Entry] = [(colours[text], f"{text}  {_counted(counts[text], 'box', 'boxes')}") for text in texts]
    notes = []
    if zones:
        entries.append((_ZONE_INK, _counted(zone_count, "zone", "zones")))
        notes.append("Numbers: objects counted in each zone, in the order above.")
    if has_gaps(masks):
        entries.append(GAP)
    if len(marks) < sum(counts.values()):
        notes.append(f"The {len(marks):,} largest boxes are drawn.")
    if outlines < zone_count:
        notes.append(f"The first {outlines:,} zones are drawn.")
    crs = CRS.from_wkt(cube["spatial_ref"].attrs["crs_wkt"])
    shown_m = None if crs.is_geographic else pixel * crs.axis_info[0].unit_conversion_factor * step / factor
    title = printable(f"{cube.attrs['title']}, {label}: boxes")
    return lay_out_page(picture, entries, title=title, resolution_m=shown_m, notes=notes)


@dataclass(frozen=True)
class _Place:
    """Where a picture lies: CRS coordinates of its corner, picture pixels per CRS unit, and its size in pixels."""

    left: float
    top: float
    scale: float
    size_xy: tuple[int, int]

    def points(self, shape: Any) -> list[Point]:
        """The vertices of a shape in pixels of the picture."""
        xy: NDArray[np.float64] = (shapely.get_coordinates(shape) - [self.left, self.top]) * [self.scale, -self.scale]
        return [(x, y) for x, y in xy.tolist()]

    def seen(self, shape: Any) -> Any:
        """The part of a shape that the picture shows, in CRS units."""
        wide, high = (side / self.scale for side in self.size_xy)
        return shapely.intersection(shape, shapely.box(self.left, self.top - high, self.left + wide, self.top))


def _marks(store: Store, label: str, texts: list[str], place: _Place) -> tuple[list[Mark], dict[str, int]]:
    """The largest boxes of a time step; how many each prompt has."""
    import geopandas

    columns = ["prompt", "score", "pixels", "geometry"]
    with store.open(BOXES) as file:
        rows = geopandas.read_parquet(file, columns=columns, filters=[("step", "==", label)])
    counts = dict.fromkeys(texts, 0) | rows.groupby("prompt").size().to_dict()
    largest = rows.nlargest(MAX_BOXES, "pixels")[["prompt", "score", "geometry"]]
    marks = [Mark(place.points(shape.exterior)[:-1], prompt, score) for prompt, score, shape in largest.itertuples(index=False)]
    return marks, counts


def _draw_zones(picture: Image.Image, store: Store, label: str, place: _Place) -> tuple[int, list[tuple[Point, str]], int]:
    """Draw outlines of zones: how many; where there is room for the counts of their prompts, middles and texts; zones in all."""
    import geopandas

    columns = ["zone", "prompt", "count", "geometry"]
    with store.open(ZONES) as file:
        rows = geopandas.read_parquet(file, columns=columns, filters=[("step", "==", label)])
    every = list(rows[~rows.geometry.isna()].groupby("zone", sort=False))
    draw, font, plates = ImageDraw.Draw(picture), label_font(picture), []
    for _, zone in every[:MAX_ZONES]:
        shape = zone.geometry.iloc[0]
        for part in shapely.get_parts(shape):
            for ring in (part.exterior, *part.interiors):
                draw.line(place.points(ring), fill=_ZONE_INK)
        seen = place.seen(shape)
        text = "/".join(str(count) for count in zone["count"])
        x0, y0, x1, y1 = seen.bounds if not seen.is_empty else (0.0,) * 4
        if zone["count"].any() and font.getlength(text) + 6 < (x1 - x0) * place.scale and font.size + 4 < (y1 - y0) * place.scale:
            plates.append((place.points(seen.representative_point())[0], text))
    return min(len(every), MAX_ZONES), plates, len(every)


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
