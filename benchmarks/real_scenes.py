"""Maps of real scenes against labels that others made: how well `spectral` does, and what a run costs.

    python benchmarks/real_scenes.py --data FOLDER

FOLDER holds `stac/catalog.json`, `labels/` and `chips/` (default: `data/` in EO_BATCH_SHARED or in ../shared). Every pipeline
of pipelines/real is run over that catalog into a temporary folder. A mask on another grid than its label is looked up at the
centre of each label pixel (nearest); pixels that were not observed are left out. docs/measured.md quotes what this prints.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from machine import machine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.warp import reproject

import eo_batch
from eo_batch.core.arrays import NO_OBSERVATION, YES
from eo_batch.notebook import Run
from eo_batch.outputs.store import Store
from eo_batch.run.driver import start_run
from eo_batch.run.manifest import read_request
from eo_batch.run.request import load_pipeline
from eo_batch.view.preview import render_preview, true_colour

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "pipelines" / "real"
PICTURE_BYTES = 280_000
"""Larger pictures are written with 256 colours."""
Bool = NDArray[np.bool_]

SCL_WATER, SCL_VEGETATION, SCL_CLOUD = (6,), (4,), (8, 9)
SCL_UNCLEAR = (3, 8, 9, 10)
"""Shadow, cloud of medium and high probability, cirrus: the ground is not seen."""


@dataclass(frozen=True)
class Agreement:
    """One row of the table: how a mask and a label agree."""

    scene: str
    prompt: str
    against: str
    pixels: int
    both: int
    mask_only: int
    label_only: int

    @classmethod
    def of(cls, scene: str, prompt: str, against: str, *, found: Bool, truth: Bool, where: Bool) -> Agreement:
        """Counts over the pixels `where`."""
        counts = [int((part & where).sum()) for part in (found & truth, found & ~truth, truth & ~found)]
        return cls(scene, prompt, against, int(where.sum()), *counts)

    def __str__(self) -> str:
        """A row of a markdown table."""
        figures = (
            _ratio(self.both, self.both + self.mask_only + self.label_only),
            _ratio(self.both, self.both + self.mask_only),
            _ratio(self.both, self.both + self.label_only),
        )
        return f"| {self.scene} | {self.prompt} | {self.against} | {self.pixels:,} | {' | '.join(figures)} |"


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def main() -> None:
    """Run all pipelines, print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("EO_BATCH_SHARED", ROOT.parent / "shared")) / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the real scenes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pictures", type=Path, help="also draw the maps over the scenes into this folder")
    chosen = parser.parse_args()
    data: Path = chosen.data if (chosen.data / "stac").is_dir() else chosen.data / "data"
    if not (data / "stac" / "catalog.json").is_file():
        print(f"skipped: no stac/catalog.json in {chosen.data}")
        return
    print(f"{machine()}; {chosen.workers} workers\n")
    with TemporaryDirectory() as name:
        runs = {}
        print("| pipeline | grid | layers | chunks | seconds |\n|---|---|---|---|---|")
        for pipeline in sorted(PIPELINES.glob("*.toml")):
            runs[pipeline.stem] = make(pipeline, data, Path(name) / pipeline.stem, workers=chosen.workers)
        print("\n| scene | prompt | against | pixels | IoU | precision | recall |\n|---|---|---|---|---|---|---|")
        for row in agreements(runs, data):
            print(row)
        print()
        for line in [*unlabelled(runs), *mosaic(runs["geneva-32tls"], data)]:
            print(f"- {line}")
        if chosen.pictures:
            draw_pictures(runs, data, chosen.pictures)


def make(pipeline: Path, data: Path, out: Path, *, workers: int) -> Run:
    """Run a pipeline over the catalog of real scenes; prints its row."""
    summary = start_run(load_pipeline(pipeline, catalog=str(data / "stac" / "catalog.json")), out, workers=workers)
    if summary.exit_status:
        raise SystemExit(f"{pipeline.name} ended with status {summary.exit_status}")
    run = eo_batch.open_run(out)
    sizes = run.masks.sizes
    grid = f"{sizes['x']:,} x {sizes['y']:,} px, {run.crs}"
    print(f"| {pipeline.stem} | {grid} | {sizes['time']} | {summary.total} | {summary.seconds:.1f} |", flush=True)
    return run


def agreements(runs: dict[str, Run], data: Path) -> Iterator[Agreement]:
    """Every comparison, in the order of the table."""
    for name in ("boadella-water", "boadella-water-degrees"):
        yield from _boadella(runs[name], data)
    yield from _ireland(runs["ireland-29unu"], data)
    yield from _california(runs["california-burnt"], data)
    for name in ("naip-zones-17-18", "naip-zones-17-18-nearest"):
        yield from _naip(runs[name], data)


def _boadella(run: Run, data: Path) -> Iterator[Agreement]:
    for day in ("2019-06-07", "2020-02-02"):
        label = data / "labels" / f"s2-l2a-boadella-{day.replace('-', '')}" / "water.tif"
        with rasterio.open(label) as source:
            truth = source.read(1) == 1
            mask = look_up(run, "water", day, like=source)
        scene = f"Boadella {day}, {run.crs}"
        yield Agreement.of(scene, "water", "drawn by hand", found=mask == YES, truth=truth, where=mask < NO_OBSERVATION)


def _ireland(run: Run, data: Path) -> Iterator[Agreement]:
    with rasterio.open(data / "scenes" / "s2-l2a-29unu-20221005" / "SCL_60m.tif") as source:
        scl = source.read(1)
        masks = {prompt: look_up(run, prompt, run.steps[0], like=source) for prompt in run.prompts}
    seen = (masks["water"] < NO_OBSERVATION) & (scl > 0)
    clear = seen & ~np.isin(scl, SCL_UNCLEAR)
    for prompt, classes, where, against in (
        ("water", SCL_WATER, clear, "SCL 6, clear pixels"),
        ("water", SCL_WATER, seen, "SCL 6, all pixels"),
        ("vegetation", SCL_VEGETATION, clear, "SCL 4, clear pixels"),
        ("vegetation", SCL_VEGETATION, seen, "SCL 4, all pixels"),
        ("cloud", SCL_CLOUD, seen, "SCL 8-9, all pixels"),
        ("cloud", (*SCL_CLOUD, 10), seen, "SCL 8-10, all pixels"),
    ):
        truth = np.isin(scl, classes)
        yield Agreement.of("29UNU 2022-10-05", prompt, against, found=masks[prompt] == YES, truth=truth, where=where)


def _california(run: Run, data: Path) -> Iterator[Agreement]:
    rows = []
    for label in sorted((data / "chips" / "ca-wildfires").glob("*_burnt.tif")):
        with rasterio.open(label) as source:
            truth = source.read(1) == 1
            mask = look_up(run, "burnt ground", run.steps[0], like=source)
        scene = label.stem.removeprefix("s2-fire-").removesuffix("_burnt")
        scene, against, where = f"fire {scene}", "CAL FIRE perimeter", mask < NO_OBSERVATION
        rows.append(Agreement.of(scene, "burnt ground", against, found=mask == YES, truth=truth, where=where))
    yield from rows
    sums = [sum(getattr(row, name) for row in rows) for name in ("pixels", "both", "mask_only", "label_only")]
    yield Agreement(f"all {len(rows)} fires", "burnt ground", "CAL FIRE perimeter", *sums)


def _naip(run: Run, data: Path) -> Iterator[Agreement]:
    """NDVI of each photograph in its own zone: the same formula, so the figures tell about the joining alone."""
    resampling = read_request(Store(run.path)).spec.grid.resampling
    for name, zone in (("naip-va-3607824-utm17", 17), ("naip-va-3607717-utm18", 18)):
        with rasterio.open(data / "scenes" / name / "rgbn.tif") as source:
            red, nir = source.read([1, 4]).astype(np.float64)
            mask = look_up(run, "vegetation", run.steps[0], like=source)
        truth = (nir - red) > 0.35 * (nir + red)
        scene, against, where = f"NAIP zone {zone}, {resampling}", "NDVI > 0.35 in its own zone", mask < NO_OBSERVATION
        yield Agreement.of(scene, "vegetation", against, found=mask == YES, truth=truth, where=where)


def unlabelled(runs: dict[str, Run]) -> Iterator[str]:
    """What the maps say where nobody made a label."""
    run = runs["boadella-water"]
    for day in run.steps:
        layer = run.masks["mask"].sel(prompt=["water", "cloud"]).isel(time=run.steps.index(day)).values
        water, cloud = (100.0 * (plane == YES).sum() / (plane < NO_OBSERVATION).sum() for plane in layer)
        area = run.footprints(prompt="water", time=day)["area_m2"].sum() / 1e4
        yield f"Boadella {day}: water {water:.2f} % of the pixels ({area:,.1f} ha in footprints), cloud {cloud:.2f} %"


def mosaic(run: Run, data: Path) -> Iterator[str]:
    """Does each footprint of the two orbits name the scenes that its pixels came from, and no other?"""
    valid = {}
    for day in ("20220618", "20220620"):
        with rasterio.open(data / "scenes" / f"s2-l2a-32tls-{day}" / "B01_60m.tif") as source:
            valid[f"s2-l2a-32tls-{day}"] = source.read(1) > 0
            transform = source.transform
            mask = look_up(run, run.prompts[0], run.steps[0], like=source)
    one, two = valid.values()
    yield f"32TLS: {one.sum():,} pixels seen by the first orbit, {two.sum():,} by the second, {(one & two).sum():,} by both"
    yield f"32TLS: {int(((mask < NO_OBSERVATION) == (one | two)).sum()):,} of {mask.size:,} pixels observed as the two files say"
    footprints = run.footprints()
    number = rasterize(
        zip(footprints.geometry, range(len(footprints)), strict=True), one.shape, -1, transform=transform, dtype="int32"
    )
    gave = {key: set(np.unique(number[where])) for key, where in valid.items()}
    wrong = sum({key for key in gave if n in gave[key]} != set(ids) for n, ids in enumerate(footprints["item_ids"]))
    counts = [int((footprints["item_ids"].map(len) == n).sum()) for n in (1, 2)]
    yield f"32TLS: {len(footprints):,} footprints: {counts[0]:,} name one scene, {counts[1]:,} name both, {wrong} name wrong ones"


def draw_pictures(runs: dict[str, Run], data: Path, folder: Path) -> None:
    """PNGs of the maps over the scenes they were made from. All scenes are Copernicus Sentinel data or NAIP."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes, chips = data / "scenes", data / "chips" / "ca-wildfires"
    for day in ("2019-06-07", "2020-01-18", "2020-02-02", "2021-07-16"):
        stack = scenes / f"s2-l2a-boadella-{day.replace('-', '')}" / "stack.tif"
        view = View(runs["boadella-water"], day, ("water",), 10.0)
        view.draw(folder / f"boadella-{day}.png", f"Boadella reservoir, {day}", [(stack, 4), (stack, 3), (stack, 2)])
    ireland = scenes / "s2-l2a-29unu-20221005"
    bands = [(ireland / f"{band}_60m.tif", 1) for band in ("B04", "B03", "B02")]
    view = View(runs["ireland-29unu"], runs["ireland-29unu"].steps[0], ("vegetation", "cloud", "water"), 60.0)
    view.draw(folder / "ireland-29unu.png", "West of Ireland, 2022-10-05", bands, brightest=0.6)
    run = runs["naip-zones-17-18"]
    photographs = [scenes / name / "rgbn.tif" for name in ("naip-va-3607717-utm18", "naip-va-3607824-utm17")]
    pair = View(run, run.steps[0], ("vegetation",), 1.0)
    pair.draw(folder / "naip-zones-17-18.png", "UTM 17 and 18 in one map", photographs, scale=1 / 255, brightest=1.0)
    run = runs["california-burnt"]
    for label in sorted(chips.glob("*_burnt.tif")):
        chip = label.with_name(label.name.replace("_burnt", ""))
        with rasterio.open(chip) as source:
            pixel_m = 20.0 * np.cos(np.radians(source.lnglat()[1]))  # west to east, as the scale bar lies
        title = chip.stem.removeprefix("s2-fire-")
        view = View(run, run.steps[0], ("burnt ground", "water"), pixel_m, like=chip)
        view.draw(folder / f"fire-{title}.png", f"California wildfire {title}", [(chip, 3), (chip, 2), (chip, 1)])


@dataclass(frozen=True)
class View:
    """What is seen in a picture: masks of one layer of a run, all of it or the part that a file covers."""

    run: Run
    step: str
    prompts: tuple[str, ...]
    pixel_m: float
    like: Path | None = None

    def draw(self, path: Path, title: str, bands: list, *, scale: float = 1e-4, brightest: float = 0.26) -> None:
        """Write a PNG; `bands` are red, green and blue as (file, band number), or files that begin with these three."""
        grid, masks = self._masks()
        sources = bands if isinstance(bands[0], tuple) else [(bands, number) for number in (1, 2, 3)]
        picture = np.stack([_warped(source, number, grid) for source, number in sources]) * scale
        step = -(-max(grid["height"], grid["width"]) // 1000)
        page = render_preview(
            {prompt: mask[::step, ::step] for prompt, mask in masks.items()},
            title=title,
            background=true_colour(picture[:, ::step, ::step], brightest=brightest),
            resolution_m=self.pixel_m * step,
        )
        page.save(path, optimize=True)
        if path.stat().st_size > PICTURE_BYTES:
            page.quantize(256, kmeans=2).save(path, optimize=True)

    def _masks(self) -> tuple[dict, dict[str, NDArray[np.uint8]]]:
        cube = self.run.masks["mask"].isel(time=self.run.steps.index(self.step))
        if self.like is not None:
            with rasterio.open(self.like) as source:
                grid = {"crs": source.crs, "transform": source.transform, "width": source.width, "height": source.height}
                return grid, {prompt: look_up(self.run, prompt, self.step, like=source) for prompt in self.prompts}
        transform = rasterio.Affine(*self.run.masks.attrs["spatial:transform"])
        grid = {"crs": self.run.crs, "transform": transform, "width": cube.sizes["x"], "height": cube.sizes["y"]}
        return grid, {prompt: cube.sel(prompt=prompt).values for prompt in self.prompts}


def _warped(source: Path | list[Path], number: int, grid: dict) -> NDArray[np.float32]:
    """A band on the grid, float32 (y, x), for the eye: of one file, or of the first that has a pixel there."""
    out = np.zeros((grid["height"], grid["width"]), np.float32)
    for path in source if isinstance(source, list) else [source]:
        with rasterio.open(path) as opened:
            layer = np.zeros_like(out)
            pixels = opened.read(number).astype(np.float32)
            goal = {"dst_transform": grid["transform"], "dst_crs": grid["crs"]}
            reproject(pixels, layer, src_transform=opened.transform, src_crs=opened.crs, **goal)
        out = np.where(out == 0, layer, out)
    return out


def look_up(run: Run, prompt: str, step: str, *, like: rasterio.DatasetReader) -> NDArray[np.uint8]:
    """The mask at the centres of the pixels of `like`, uint8 of its shape; 255 beyond the grid of the run."""
    columns, rows = np.meshgrid(np.arange(like.width) + 0.5, np.arange(like.height) + 0.5)
    x, y = like.transform.c + like.transform.a * columns, like.transform.f + like.transform.e * rows
    if like.crs != rasterio.CRS.from_user_input(run.crs):
        x, y = Transformer.from_crs(like.crs, run.crs, always_xy=True).transform(x, y)
    grid = run.manifest["grid"]
    at = (_index(-y, grid["resolution"], grid["rows"][0]), _index(x, grid["resolution"], grid["cols"][0]))
    layer = run.masks["mask"].sel(prompt=prompt).isel(time=run.steps.index(step))
    inside = (at[0] >= 0) & (at[0] < layer.sizes["y"]) & (at[1] >= 0) & (at[1] < layer.sizes["x"])
    first = [int(axis[inside].min()) for axis in at]
    last = [int(axis[inside].max()) + 1 for axis in at]
    part = layer.isel(y=slice(first[0], last[0]), x=slice(first[1], last[1])).values
    out = np.full(like.shape, 255, np.uint8)
    out[inside] = part[at[0][inside] - first[0], at[1][inside] - first[1]]
    return out


def _index(position: NDArray[np.float64], resolution: float, start: int) -> NDArray[np.int64]:
    """Row or column of each position, counted from the first one of the run."""
    return np.floor(position / resolution).astype(np.int64) - start


if __name__ == "__main__":
    main()
