"""The demo region on disk: COGs, a static STAC catalog, the truth, and a pipeline that is ready to run.

Pixels are made in strips and one scene at a time, so memory does not grow with the region. `catalog.json` is written
last: where it is, everything else is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioIOError
from rasterio.shutil import copy as rasterio_copy

from eo_batch.core.errors import StoreError
from eo_batch.core.grid import Span
from eo_batch.sources.synthetic.render import NODATA, OFFSET, PAD_PX, SCALE, render
from eo_batch.sources.synthetic.scenes import DemoRegion, DemoScene
from eo_batch.sources.synthetic.spectra import BANDS, CLASS_NAMES, PROMPT_CLASSES, truth_classes
from eo_batch.sources.synthetic.stac import (
    COLLECTION,
    NOTICE,
    catalog_document,
    collection_document,
    describe_items,
    file_name,
    item_document,
    resolution_of,
)

__all__ = ["COLLECTION", "DemoFiles", "DemoRegion", "DemoScene", "describe_items", "render", "truth_masks", "write_demo"]

Progress = Callable[[int, int, str], None]
"""Called with (pixels made so far, pixels in all, what is being made)."""

_CLOUDS = (8, 9, 10)
_CACHE_MB = 64  # else GDAL takes 5 % of the machine's memory
_CLASS_COLOURS = "000000 2c5c8c 1e5c34 c4be5c 8cbe68 a47652 c84842 46464a f0e0a0 96928c fcfcff 5c5850"


@dataclass(frozen=True)
class DemoFiles:
    """Where `write_demo` put things.

    Parameters
    ----------
    catalog : STAC catalog.json. truth : GeoTIFF of class codes on the primary grid. pipeline : demo.toml.
    """

    catalog: Path
    truth: Path
    pipeline: Path


def write_demo(folder: Path, demo: DemoRegion, *, progress: Progress | None = None) -> DemoFiles:
    """Write scenes, catalog, truth and pipeline of a demo region; files of an earlier one are replaced.

    Parameters
    ----------
    folder : made where it is missing.
    progress : told about every strip of pixels.

    Raises
    ------
    StoreError : `store-denied` or `disk-full`: the folder cannot be written.
    """
    files = DemoFiles(folder / "catalog.json", folder / "truth" / "classes.tif", folder / "demo.toml")
    try:
        files.truth.parent.mkdir(parents=True, exist_ok=True)
        files.catalog.unlink(missing_ok=True)
        scenes = sorted(demo.scenes(), key=_grid_of)
        tell = _Teller(progress, sum(len(s.rows) * len(s.cols) for s in scenes) + demo.size_px**2)
        with tempfile.TemporaryDirectory(prefix=".parts-", dir=folder) as parts, rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
            covers: dict[str, float] = {}
            for _, group in groupby(scenes, key=_grid_of):
                covers |= _write_scenes(folder / COLLECTION, demo, list(group), Path(parts), tell)
            _write_truth(files.truth, demo, Path(parts), tell)
        _write_documents(folder, demo, scenes, covers)
        files.pipeline.write_text(pipeline_text(demo), encoding="utf-8")
        _put_json(files.catalog, catalog_document(demo))
    except (OSError, RasterioIOError) as error:
        raise _not_written(folder, error) from None
    return files


def truth_masks(demo: DemoRegion, prompt_text: str, *, rows: Span | None = None, cols: Span | None = None) -> NDArray[np.bool_]:
    """Where the truth says yes to a prompt, bool (y, x) of the primary grid; the whole region unless told otherwise.

    Raises
    ------
    ConfigError : `prompt-invalid`: the truth does not know the prompt.
    """
    wanted = truth_classes(prompt_text)
    return np.isin(demo.classes(rows or demo.rows, cols or demo.cols), wanted)


def pipeline_text(demo: DemoRegion) -> str:
    """A pipeline (TOML) that maps the demo region into one gap-free layer."""
    west, south, east, north = demo.bounds_lonlat
    first, last = demo.acquisitions[0].datetime.date(), demo.acquisitions[-1].datetime.date() + timedelta(days=1)
    chunk_px = 1024 if demo.size_px >= 2048 else 512
    prompts = "".join(f'\n[[prompts]]\ntext = "{text}"\nmin_area_m2 = {area}\n' for text, area in _DEMO_PROMPTS)
    return f"""# A map of the demo region. {NOTICE}
name = "demo"

[region]
bbox = [{west:.5f}, {south:.5f}, {east:.5f}, {north:.5f}]
start = "{first}"
end = "{last}"

[source]
catalog = "catalog.json"
collections = ["{COLLECTION}"]
bands = ["blue", "green", "red", "nir", "swir16", "swir22"]

[grid]
crs = "{demo.crs}"
resolution = 10
chunk_px = {chunk_px}

[time]
step = "all"
composite = "median"

[model]
name = "spectral"
window_px = 512
overlap = 0.25
{prompts}
[output]
scores = true
"""


_DEMO_PROMPTS = (("water", 1000), ("vegetation", 1000), ("snow", 1000))


class _Teller:
    """Counts pixels for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, pixels: int, what: str) -> None:
        self._done += pixels
        if self._progress:
            self._progress(self._done, self._total, what)


def _grid_of(scene: DemoScene) -> tuple[str, Span, Span]:
    return scene.crs, scene.rows, scene.cols


def _strips(rows: Span, cols: Span) -> Iterator[Span]:
    """Strips of about one million pixels, an even number of rows each."""
    height = max(2, 2 * (500_000 // max(1, len(cols))))
    for start in range(rows.start, rows.stop, height):
        yield Span(start, min(start + height, rows.stop))


def _write_scenes(folder: Path, demo: DemoRegion, scenes: list[DemoScene], parts: Path, tell: _Teller) -> dict[str, float]:
    """Write all scenes of one grid: the ground is made once, kept on disk, and seen by every pass.

    Returns the share of each scene's observed pixels that clouds hide, 0..1.
    """
    crs, rows, cols = _grid_of(scenes[0])
    wide_cols = Span(cols.start - PAD_PX, cols.stop + PAD_PX)
    strips = list(_strips(rows, cols))
    for number, strip in enumerate(strips):
        np.save(parts / f"{number}.npy", demo.layers(crs, Span(strip.start - PAD_PX, strip.stop + PAD_PX), wide_cols))
    covers: dict[str, float] = {}
    for scene in scenes:
        observed = cloudy = 0
        place = folder / scene.id
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            rasters = {asset: stack.enter_context(_open_part(parts, demo, scene, asset)) for asset in (*BANDS, "scl")}
            for number, strip in enumerate(strips):
                layers = np.load(parts / f"{number}.npy", allow_pickle=False)
                rendered = render(demo, scene, strip, cols, layers=layers)
                observed += int((rendered["scl"] > 0).sum())
                cloudy += int(np.isin(rendered["scl"], _CLOUDS).sum())
                for asset, numbers in rendered.items():
                    factor = resolution_of(demo, asset) // 10
                    top = (strip.start - rows.start) // factor
                    rasters[asset].write(numbers, 1, window=((top, top + numbers.shape[0]), (0, numbers.shape[1])))
                tell.add(len(strip) * len(cols), scene.id)
        covers[scene.id] = cloudy / max(1, observed)
        for asset in (*BANDS, "scl"):
            _to_cog(parts / file_name(asset), place / file_name(asset), resampling="MODE" if asset == "scl" else "AVERAGE")
    return covers


def _open_part(parts: Path, demo: DemoRegion, scene: DemoScene, asset: str) -> Any:
    step = resolution_of(demo, asset)
    raster = rasterio.open(
        parts / file_name(asset),
        "w",
        driver="GTiff",
        dtype="uint8" if asset == "scl" else "uint16",
        count=1,
        nodata=NODATA,
        crs=scene.crs,
        width=len(scene.cols) * 10 // step,
        height=len(scene.rows) * 10 // step,
        transform=rasterio.Affine(step, 0.0, scene.cols.start * 10.0, 0.0, -step, -scene.rows.start * 10.0),
    )
    if asset != "scl":
        raster.scales, raster.offsets = (SCALE,), (OFFSET,)
    raster.set_band_description(1, asset)
    raster.update_tags(DESCRIPTION=NOTICE, TIFFTAG_IMAGEDESCRIPTION=NOTICE, SYNTHETIC="YES", DEMO_SEED=str(demo.seed))
    return raster


def _to_cog(part: Path, target: Path, *, resampling: str) -> None:
    """A COG of a plain GeoTIFF, which is removed."""
    rasterio_copy(
        part,
        target,
        driver="COG",
        compress="DEFLATE",
        level=6,
        predictor="YES",
        blocksize=512,
        overview_resampling=resampling,
        bigtiff="IF_SAFER",
        num_threads="ALL_CPUS",
    )
    part.unlink()


def _write_truth(path: Path, demo: DemoRegion, parts: Path, tell: _Teller) -> None:
    """Class codes on the primary grid, and beside them which codes each prompt means."""
    transform = rasterio.Affine(10.0, 0.0, demo.cols.start * 10.0, 0.0, -10.0, -demo.rows.start * 10.0)
    shape = {"width": len(demo.cols), "height": len(demo.rows)}
    part = parts / path.name
    with rasterio.open(part, "w", driver="GTiff", dtype="uint8", count=1, crs=demo.crs, transform=transform, **shape) as raster:
        raster.write_colormap(1, dict(enumerate((*bytes.fromhex(colour), 255) for colour in _CLASS_COLOURS.split())))
        raster.update_tags(DESCRIPTION=NOTICE, TIFFTAG_IMAGEDESCRIPTION=NOTICE, SYNTHETIC="YES", DEMO_SEED=str(demo.seed))
        raster.update_tags(1, **{f"CLASS_{code}": name for code, name in CLASS_NAMES.items()})
        for strip in _strips(demo.rows, demo.cols):
            top = strip.start - demo.rows.start
            window = ((top, top + len(strip)), (0, len(demo.cols)))
            raster.write(demo.classes(strip, demo.cols), 1, window=window)
            tell.add(len(strip) * len(demo.cols), "truth")
    _to_cog(part, path, resampling="MODE")
    names = {str(code): name for code, name in CLASS_NAMES.items()}
    prompts = {text: list(codes) for text, codes in PROMPT_CLASSES.items()}
    _put_json(path.with_name("truth.json"), {"notice": NOTICE, "classes": names, "prompts": prompts})


def _write_documents(folder: Path, demo: DemoRegion, scenes: list[DemoScene], covers: dict[str, float]) -> None:
    for scene in scenes:
        _put_json(folder / COLLECTION / scene.id / f"{scene.id}.json", item_document(demo, scene, cloud_cover=covers[scene.id]))
    ids = sorted(scene.id for scene in scenes)
    _put_json(folder / COLLECTION / "collection.json", collection_document(demo, ids))


def _put_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _not_written(folder: Path, error: Exception) -> StoreError:
    full = "space" in str(error).lower()
    return StoreError(
        "disk-full" if full else "store-denied",
        "the demo region cannot be written",
        where=str(folder),
        why=getattr(error, "strerror", None) or type(error).__name__,
        fix="Free some space or choose another folder." if full else "Choose a folder that you may write.",
    )
