"""Command `demo`: a region that does not exist, mapped and compared with its truth, in under two minutes."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eo_batch.cli.progress import Progress
from eo_batch.cli.report import Json, Quiet, check_on_disk, command, epilog, print_json, print_table
from eo_batch.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eo_batch.notebook import Run
    from eo_batch.sources.synthetic import DemoRegion

MARK = ".eo-batch-demo"
STRIP_PX = 512
PICTURE_PX = 1024


@dataclass(frozen=True)
class PromptFigures:
    """How one prompt compares with the truth, over the observed pixels of the region. Areas in km2."""

    prompt: str
    mapped_km2: float
    truth_km2: float
    iou: float
    footprints: int


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("demo", epilog=epilog("eo-batch demo", "eo-batch demo --out /tmp/demo --size 4096"))(demo)


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything; an earlier demo there is replaced.")] = Path("demo"),
    size: Annotated[int, typer.Option(min=256, max=16384, help="Side of the region in pixels of 10 m.")] = 2048,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Chunks computed at once.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Map a synthetic region and print figures.

    Writes scenes, a STAC catalog and the truth, runs the main job on them, and compares the map with the truth.
    """
    from eo_batch import open_run
    from eo_batch.run.driver import start_run
    from eo_batch.run.request import load_pipeline
    from eo_batch.sources.synthetic import DemoRegion, write_demo
    from eo_batch.view.preview import write_preview

    began = time.monotonic()
    check_on_disk(out)
    _make_room(out)
    region = DemoRegion(size_px=size)
    with Progress(as_json=False, quiet=quiet or json) as progress:
        files = write_demo(out / "region", region, progress=lambda done, total, what: progress.share(done / total, what))
        written = time.monotonic()
        summary = start_run(load_pipeline(files.pipeline), out / "run", workers=workers, listener=progress.tell)
        seconds, peak_mb = time.monotonic() - written, _peak_mb()
    if summary.interrupted:
        return summary.exit_status  # the driver has said how to go on
    run = open_run(out / "run")
    figures = compare(run, region)
    background = _background(files.catalog.parent, run)
    title = f"synthetic demo region, {size} x {size} px"
    picture = write_preview(run.masks, out / "preview.png", title=title, background=background, max_px=PICTURE_PX)
    totals = {
        "seconds_region": round(written - began, 1),
        "seconds_run": round(seconds, 1),
        "seconds_in_all": round(time.monotonic() - began, 1),
        "peak_memory_mb": round(peak_mb),
        "chunks": summary.total,
    }
    paths = {
        "picture": picture,
        "masks": out / "run" / "masks.zarr",
        "footprints": out / "run" / "footprints.parquet",
        "scenes": files.catalog,
    }
    if json:
        shown = {name: str(path) for name, path in paths.items()}
        print_json({"prompts": [vars(row) for row in figures], **totals, "paths": shown, "exit_status": summary.exit_status})
    else:
        _print(figures, totals, paths)
    return summary.exit_status


def compare(run: Run, region: DemoRegion) -> list[PromptFigures]:
    """Area and intersection over union of every prompt against the truth, strip by strip."""
    import numpy as np

    from eo_batch.core.arrays import NO_OBSERVATION, YES
    from eo_batch.core.grid import Span
    from eo_batch.sources.synthetic import truth_masks

    grid = run.manifest["grid"]
    cols, pixel_km2 = Span(*grid["cols"]), float(grid["resolution"]) ** 2 / 1e6
    counts = np.zeros((len(run.prompts), 3), np.int64)
    for start in range(grid["rows"][0], grid["rows"][1], STRIP_PX):
        rows = Span(start, min(start + STRIP_PX, grid["rows"][1]))
        here = slice(rows.start - grid["rows"][0], rows.stop - grid["rows"][0])
        masks = run.masks["mask"].isel(time=0, y=here).values
        for index, prompt in enumerate(run.prompts):
            observed = masks[index] < NO_OBSERVATION
            found, true = masks[index] == YES, truth_masks(region, prompt, rows=rows, cols=cols) & observed
            counts[index] += [found.sum(), true.sum(), (found & true).sum()]
    rows_of = run.footprints().groupby("prompt").size()
    return [
        PromptFigures(
            prompt,
            round(float(found * pixel_km2), 3),
            round(float(true * pixel_km2), 3),
            round(float(both / (found + true - both)), 3) if found + true else 1.0,
            int(rows_of.get(prompt, 0)),
        )
        for prompt, (found, true, both) in zip(run.prompts, counts, strict=True)
    ]


def _make_room(out: Path) -> None:
    """An empty folder with our mark, or what an earlier demo left, emptied. Nothing else is ever removed."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ConfigError("config-invalid", "there is something else already", where=str(out), fix="Give another --out.")
    for name in ("region", "run"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("An eo-batch demo: the next one in this folder replaces it.\n", encoding="utf-8")


def _background(region: Path, run: Run) -> NDArray[np.uint8]:
    """True colour beneath the map, uint8 (y, x, 3): the median of all scenes, on the pixels that the picture shows."""
    import json as documents

    import numpy as np
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.transform import Affine
    from rasterio.warp import reproject

    from eo_batch.view.preview import true_colour

    grid = run.masks
    step = max(1, -(-max(grid.sizes["y"], grid.sizes["x"]) // PICTURE_PX))
    ys, xs = grid["y"].values[step // 2 :: step], grid["x"].values[step // 2 :: step]
    pixel = float(run.manifest["grid"]["resolution"]) * step
    transform = Affine(pixel, 0.0, float(xs[0]) - pixel / 2, 0.0, -pixel, float(ys[0]) + pixel / 2)
    items = [
        documents.loads(path.read_text(encoding="utf-8")) | {"folder": path.parent} for path in sorted(region.rglob("*.json"))
    ]
    middle = []
    for band in ("red", "green", "blue"):
        seen = []
        for item in (item for item in items if item.get("type") == "Feature"):
            layer = np.zeros((len(ys), len(xs)), np.float32)
            with rasterio.open(item["folder"] / item["assets"][band]["href"], driver="GTiff") as raster:
                reproject(
                    rasterio.band(raster, 1),
                    layer,
                    dst_transform=transform,
                    dst_crs=run.crs,
                    dst_nodata=0,
                    resampling=Resampling.average,
                )
            seen.append(np.where(layer > 0, layer, np.nan))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # nobody saw it: black
            middle.append(np.nanmedian(np.stack(seen), axis=0))
    return true_colour(np.stack(middle) * 1e-4 - 0.1)


def _peak_mb() -> float:
    """Peak resident memory of this process and its largest child, megabytes."""
    import resource

    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # bytes there, kibibytes on Linux
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def _print(figures: list[PromptFigures], totals: dict[str, Any], paths: dict[str, Path]) -> None:
    rows = [(f.prompt, f"{f.mapped_km2:.2f}", f"{f.truth_km2:.2f}", f"{f.iou:.3f}", str(f.footprints)) for f in figures]
    print_table(
        rows, header=("prompt", "mapped km2", "truth km2", "IoU", "footprints"), title="synthetic region, against its truth"
    )
    print()
    labels = {
        "seconds_region": "seconds to write the region",
        "seconds_run": "seconds for the run",
        "seconds_in_all": "seconds in all",
        "peak_memory_mb": "peak memory in MB",
        "chunks": "chunks",
    }
    print_table([(labels[name], f"{value:,}") for name, value in totals.items()])
    print()
    print_table([(name, str(path)) for name, path in paths.items()])
