"""The door for Python: `eo_batch.open_run(path)` gives masks, scores, footprints, boxes and items of a run, lazily, and
`eo_batch.segment_image(image, prompts)` asks a segmenter about one image.

Reading a run needs no model and no network. Nothing here writes into a run.
"""

from __future__ import annotations

import difflib
import html
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from eo_batch.core.arrays import SCORE_STEPS
from eo_batch.core.digest import sha256
from eo_batch.core.errors import ConfigError
from eo_batch.outputs.cube import open_cube
from eo_batch.outputs.layers import read_notes
from eo_batch.outputs.store import Store
from eo_batch.run.generations import published, with_manifest
from eo_batch.run.images.answer import ImageAnswer
from eo_batch.run.manifest import read_manifest, read_request
from eo_batch.run.told.status import Status, run_status, status_of

if TYPE_CHECKING:
    import geopandas
    import xarray
    from numpy.typing import NDArray
    from PIL.Image import Image

    from eo_batch.sources.picture import Picture
    from eo_batch.view.report import Page

LONLAT = "EPSG:4326"


def open_run(path: str | Path) -> Run:
    """The run in a folder, to look at: finished, unfinished or still working.

    While prompts are being added to a finished run, it is shown as it was before; open it again when they are.

    Parameters
    ----------
    path : what `eo-batch run --out` was given: a folder, or `s3://bucket/prefix`.

    Raises
    ------
    ConfigError : `config-invalid`: there is no run in the folder, or it has not got as far as a mask cube.
    ResumeError : `format-newer`: it was written by a newer eo-batch.
    IntegrityError : `receipt-mismatch`: its manifest was changed.

    Warns
    -----
    UserWarning : the run is not complete: pixels that are not computed yet are 255.
    """
    store = published(path)
    folder = store.where
    read_request(store)
    manifest = read_manifest(store)
    if manifest is None or not store.exists("masks.zarr/zarr.json"):
        raise ConfigError(
            "config-invalid",
            "the run has no mask cube yet",
            where=folder,
            fix=f"Wait until it computes, or continue it: eo-batch resume {folder}.",
        )
    run = Run(folder, manifest)
    status = status_of(store)
    if status.state != "complete":
        warnings.warn(
            f"the run in {folder} is partial ({status.state}: {status.finished:,} of {status.total:,} chunks): "
            f"pixels that are not computed are 255. Continue it: eo-batch resume {folder}",
            UserWarning,
            stacklevel=2,
        )
    elif status.failures:
        warnings.warn(
            f"{len(status.failures):,} of {status.total:,} chunks of the run in {folder} failed: their pixels are 255. "
            f"Try them again: eo-batch resume {folder}",
            UserWarning,
            stacklevel=2,
        )
    return run


@dataclass(frozen=True, repr=False)
class Run:
    """A run on disk, as `open_run` gives it.

    Parameters
    ----------
    path : where it is.
    manifest : what it was made from: grid, prompts, steps, digests.
    """

    path: str
    manifest: dict[str, Any] = field(compare=False)

    @property
    def status(self) -> Status:
        """How far the run is now; while prompts are being added to it, how far that is."""
        return run_status(self.path)

    @property
    def name(self) -> str:
        """Name that the pipeline gives it."""
        return str(self.manifest["name"])

    @property
    def prompts(self) -> tuple[str, ...]:
        """Texts of the prompts, in order."""
        return tuple(text for _, text, *_ in self.manifest["prompts"])

    @property
    def steps(self) -> tuple[str, ...]:
        """Labels of the time steps, in order: "2019-06-07", "2019-06", "2019" or "all"."""
        return tuple(self.manifest["steps"])

    @property
    def crs(self) -> str:
        """CRS of masks and footprints."""
        return str(self.manifest["grid"]["crs"])

    @cached_property
    def masks(self) -> xarray.Dataset:
        """Lazy cube with axes (prompt, time, y, x): `mask` and, where it was kept, `score` as stored.

        `mask` holds 0 no, 1 yes, 254 no valid observation or outside the region, 255 not computed. One dask chunk is one
        file on disk. `.rio.crs` works after `import rioxarray`.
        """
        side = self.manifest["grid"]["chunk_px"]
        return open_cube(self.path).chunk({"prompt": 1, "time": 1, "y": side, "x": side})

    def scores(self) -> xarray.DataArray:
        """Lazy scores in 0..1, float32 (prompt, time, y, x); NaN where there is no observation.

        Raises
        ------
        ConfigError : `config-invalid`: the run kept no scores.
        """
        masks = self.masks
        if "score" not in masks:
            raise ConfigError(
                "config-invalid", "the run kept no scores", where=self.path, fix="Run it with scores = true in [output]."
            )
        stored = masks["score"]
        decoded = (stored.astype(np.float32) / np.float32(SCORE_STEPS)).where(stored <= SCORE_STEPS)
        decoded.attrs = {"long_name": "score of the prompt", "units": "1", "grid_mapping": "spatial_ref"}
        return decoded.rename("score")

    def footprints(
        self,
        prompt: str | Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        *,
        time: str | Sequence[str] | None = None,
        bbox_crs: str = LONLAT,
    ) -> geopandas.GeoDataFrame:
        """Polygons of the map, in the CRS of the grid; only what is asked for is read.

        Parameters
        ----------
        prompt : text or id of one prompt, or several; None for all.
        bbox : (west, south, east, north) that polygons must touch, in degrees as everywhere in STAC and in pipelines;
            west > east crosses the antimeridian. In another CRS where `bbox_crs` says so (`run.crs` for the grid's).
        time : label of one time step, or several; None for all.

        Raises
        ------
        ConfigError : unknown prompt or time step, a bbox that is none, or a run without merged footprints.
        """
        return self._layer("footprints.parquet", prompt, bbox, time, bbox_crs)

    def boxes(
        self,
        prompt: str | Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        *,
        time: str | Sequence[str] | None = None,
        bbox_crs: str = LONLAT,
    ) -> geopandas.GeoDataFrame:
        """Boxes of objects that `eo-batch products` made; parameters and errors as `footprints`."""
        return self._layer("products/boxes.parquet", prompt, bbox, time, bbox_crs)

    def zones(
        self,
        prompt: str | Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        *,
        time: str | Sequence[str] | None = None,
        bbox_crs: str = LONLAT,
    ) -> geopandas.GeoDataFrame:
        """Figures of zones that `eo-batch products` made, a row per zone, time and prompt; parameters as `footprints`."""
        return self._layer("products/zones.parquet", prompt, bbox, time, bbox_crs)

    def _layer(
        self,
        name: str,
        prompt: str | Sequence[str] | None,
        bbox: Sequence[float] | None,
        time: str | Sequence[str] | None,
        bbox_crs: str,
    ) -> geopandas.GeoDataFrame:
        """Rows of a GeoParquet file of the run."""
        import geopandas

        store = Store(self.path)
        if not store.exists(name):
            kind = PurePosixPath(name).stem
            fix = {
                "boxes": f"Make them: eo-batch products {self.path}.",
                "zones": f"Make them: eo-batch products {self.path} --cells SIZE, or --zones FILE.",
            }.get(kind, f"They are made at the end: eo-batch resume {self.path}.")
            raise ConfigError("config-invalid", f"the run has no {kind} yet", where=self.path, fix=fix)
        self._warn_if_outdated(store, name)
        filters = []
        if prompt is not None:
            filters.append(("prompt", "in", self._prompt_texts(prompt)))
        if time is not None:
            filters.append(("step", "in", _known(time, self.steps, "time step")))
        area = None if bbox is None else _area(tuple(bbox), bbox_crs, self.crs)
        bounds = None if area is None else area.bounds
        with store.open(name) as file:
            found = geopandas.read_parquet(file, bbox=bounds, filters=filters or None)
        return found if area is None else found[found.intersects(area)].reset_index(drop=True)

    def _warn_if_outdated(self, store: Store, name: str) -> None:
        notes = read_notes(store, name)
        if notes is not None and (not store.exists("COMPLETE.json") or notes.get("run") != sha256(store.get("COMPLETE.json"))):
            text = f"{name} was made from an earlier state of the run in {self.path}. Make it again: eo-batch products"
            warnings.warn(text, UserWarning, stacklevel=4)

    @cached_property
    def items(self) -> geopandas.GeoDataFrame:
        """The frozen search result: one row per scene, with its outline in longitude and latitude."""
        import geopandas
        from shapely.geometry import shape

        from eo_batch.run.manifest import read_inputs

        table = read_inputs(with_manifest(self.path, self.manifest["digest"])).items
        rows = {
            "collection": [item.collection for item in table.items],
            "id": [item.id for item in table.items],
            "datetime": [item.datetime for item in table.items],
            "cloud_cover": [document["properties"].get("eo:cloud_cover") for document in table.documents],
        }
        return geopandas.GeoDataFrame(rows, geometry=[shape(dict(item.geometry)) for item in table.items], crs=LONLAT)

    def preview(self, path: str | Path | None = None, *, time: int = 0, max_px: int = 1024) -> Image:
        """Picture of one time step: masks in colour, legend, scale bar; also written as PNG where `path` is given."""
        from PIL import Image as images

        from eo_batch.view.preview import write_preview

        title = f"{self.name}, {self.steps[time]}"
        with tempfile.TemporaryDirectory() as folder:
            file = write_preview(self.masks, Path(folder) / "preview.png", title=title, time=time, max_px=max_px)
            if path is not None:
                shutil.copyfile(file, path)
            with images.open(file) as picture:
                return picture.copy()

    def report(self) -> Page:
        """The report of the run as it is now, shown in a notebook; `.html` is the page that `eo-batch report` writes."""
        from eo_batch.run.told.report import report_facts
        from eo_batch.view.report import Page, report_html

        return Page(report_html(Store(self.path), report_facts(self.path)))

    def _prompt_texts(self, asked: str | Sequence[str]) -> list[str]:
        by_id = {identity: text for identity, text, *_ in self.manifest["prompts"]}
        names = [asked] if isinstance(asked, str) else list(asked)
        return _known([by_id.get(name, name) for name in names], self.prompts, "prompt")

    def __repr__(self) -> str:
        return "\n".join(f"{label:<12}{value}" for label, value in self._rows())

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>" for label, value in self._rows())
        return f"<table>{cells}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        grid, status = self.manifest["grid"], self.status
        rows, cols = (stop - start for start, stop in (grid["rows"], grid["cols"]))
        return [
            ("run", f"{_shown(self.name)} in {_shown(self.path)}"),
            ("state", f"{status.state}, {status.finished:,} of {status.total:,} chunks"),
            *(("adding", _shown(text)) for text in status.adding),
            ("grid", f"{cols:,} x {rows:,} px of {grid['resolution']:g}, {_shown(self.crs)}"),
            ("prompts", ", ".join(_shown(text) for text in self.prompts)),
            ("time steps", f"{len(self.steps):,}: {', '.join(self.steps[:3])}{', ...' if len(self.steps) > 3 else ''}"),
            ("items", f"{self.manifest['item_count']:,}"),
        ]


class ImageView(ImageAnswer):
    """An `ImageAnswer` that shows itself: in a notebook as its overlay picture."""

    def overlay(self, path: str | Path | None = None, *, shows_boxes: bool = True) -> Image:
        """Picture of the image with masks, boxes, legend and caption; also written as PNG where `path` is given."""
        from eo_batch.view.marks import png_bytes
        from eo_batch.view.overlay import overlay_of

        picture = overlay_of(self, shows_boxes=shows_boxes, caption=self.caption() if shows_boxes else "")
        if path is not None:
            target = Path(path).absolute()
            Store(target.parent).put(target.name, png_bytes(picture))
        return picture

    def save(self, folder: str | Path) -> list[Path]:
        """Write the overlay, the masks, the boxes and `answer.json` into a folder, as `eo-batch segment` does; their paths."""
        from eo_batch.run.images.files import write_image_files

        self.overlay(Path(folder) / "overlay.png")
        return [Path(folder) / "overlay.png", *write_image_files(self, folder)]

    def _repr_png_(self) -> bytes:
        from eo_batch.view.marks import png_bytes

        return png_bytes(self.overlay())

    def __repr__(self) -> str:
        height, width = self.picture.shape
        found = ", ".join(f"{_shown(text)}: {number}" for text, number in self.counts.items())
        return f"{_shown(self.picture.name)}, {width:,} x {height:,} px, {self.model} ({self.fit}); objects: {found}"


def segment_image(image: str | Path | NDArray[np.uint8] | Picture, prompts: str | Sequence[str], **options: Any) -> ImageView:
    """What the prompts find in one image, ready to be looked at.

    Parameters
    ----------
    image : path of a PNG, JPEG or GeoTIFF; or an array, uint8 (y, x, 3), red, green, blue.
    prompts : words or sentences.
    options : `model`, `fit`, `threshold`, `rules`, `contour`, `bands`, `low`, `high`, as in `run.images.segment.segment_image`.
    """
    from eo_batch.run.images.segment import segment_image as ask

    answer = ask(image, prompts, **options)
    return ImageView(**{part.name: getattr(answer, part.name) for part in fields(answer)})


def _shown(text: str) -> str:
    """`text` with control characters and such as escapes."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _known(asked: str | Sequence[str], known: Sequence[str], kind: str) -> list[str]:
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean "{close[0]}"? ' if close else ""
            listed = ", ".join(known[:20])
            raise ConfigError("config-invalid", f'the run has no {kind} "{_shown(name)}"', fix=f"{hint}It has: {listed}.")
    return names


def _area(bbox: tuple[float, ...], crs: str, target: str) -> Any:
    """The box as a shapely geometry in the CRS of the grid, its edges followed point by point."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError
    from shapely import box, segmentize, transform, union_all

    fix = "Give (west, south, east, north) in degrees, or name the CRS of the numbers with bbox_crs."
    if len(bbox) != 4 or not np.isfinite(bbox).all():
        raise ConfigError("config-invalid", f"bbox needs four finite numbers, got {list(bbox)}", fix=fix)
    try:
        source = CRS.from_user_input(crs)
    except CRSError:
        raise ConfigError("config-invalid", f'unknown CRS "{_shown(crs)}"', where="bbox_crs", fix=fix) from None
    west, south, east, north = bbox
    degrees = source.is_geographic
    if degrees and not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise ConfigError("config-invalid", f"bbox {list(bbox)} is not in degrees", fix=fix)
    if south > north or (west > east and not degrees):
        raise ConfigError("config-invalid", f"bbox {list(bbox)} is empty", fix=fix)
    pieces = [box(west, south, 180.0, north), box(-180.0, south, east, north)] if west > east else [box(*bbox)]
    if source == CRS.from_user_input(target):
        return union_all(pieces)
    longest = 0.01 if degrees else max(east - west, north - south, 1.0) / 64
    forward = Transformer.from_crs(source, target, always_xy=True)

    def move(points: Any) -> Any:
        return np.stack(forward.transform(points[:, 0], points[:, 1]), axis=1)

    return union_all([transform(segmentize(piece, longest), move) for piece in pieces])
