"""Results for tools that read neither Zarr nor GeoParquet: cloud-optimised GeoTIFFs and one GeoPackage."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyogrio
import pyogrio.errors
import rasterio
import rasterio.errors
import rasterio.shutil
import zarr
from pyproj import CRS
from rasterio.windows import Window

from eo_batch.core.arrays import NO, NO_OBSERVATION, NOT_COMPUTED, YES
from eo_batch.core.errors import IntegrityError, StoreError
from eo_batch.core.prompts import Prompt
from eo_batch.outputs.cube import CUBE, MASK
from eo_batch.outputs.footprints import FOOTPRINTS
from eo_batch.outputs.store import Store

COLOURS = {NO: (225, 225, 220, 255), YES: (202, 60, 50, 255), NO_OBSERVATION: (120, 120, 120, 255), NOT_COMPUTED: (0, 0, 0, 0)}
_COG_BLOCK = 512


def export_run(run: Store | str | Path, out: str | Path, *, progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Write `PROMPT_STEP.tif` for each prompt and time step, and `footprints.gpkg`, into the folder `out`.

    Parameters
    ----------
    run : the run, as Store or folder.
    progress : called with (files done, files in all, name of the file that comes next).

    Returns
    -------
    Paths of the files, in the order of prompts, then steps, the GeoPackage last.

    Raises
    ------
    IntegrityError : `shard-missing`: the run has no cube or no footprints.
    StoreError : `out` cannot be written; no file is left half-written.
    """
    store = run if isinstance(run, Store) else Store(run)
    for needed in (f"{CUBE}/zarr.json", FOOTPRINTS):
        if not store.exists(needed):
            fix = f"Finish the run first: `eo-batch resume {store.where}`."
            raise IntegrityError("shard-missing", "there is no result to export", where=needed, fix=fix)
    group = zarr.open_group(store.zarr(CUBE), mode="r")
    prompts = [str(text) for text in group["prompt"][:]]
    steps = [str(label) for label in group["step"][:]]
    names = [(p, t, _file_name(prompt, step)) for p, prompt in enumerate(prompts) for t, step in enumerate(steps)]
    target = Store(out)
    files = []
    for done, (p, t, name) in enumerate([*names, (-1, -1, "footprints.gpkg")]):
        if progress is not None:
            progress(done, len(names) + 1, name)
        with _replacing(target, name) as temporary:
            if p < 0:
                with store.open(FOOTPRINTS) as file:
                    _write_geopackage(file, temporary)
            else:
                _write_cog(group, p, t, temporary, tags={"PROMPT": prompts[p], "STEP": steps[t]})
        files.append(target.named(name))
    return files


def _file_name(prompt: str, step: str) -> str:
    """Name made of safe characters only, whatever the cube says."""
    return f"{Prompt(prompt).id}_{re.sub(r'[^A-Za-z0-9-]', '-', step)[:40]}.tif"


@contextmanager
def _replacing(target: Store, name: str) -> Iterator[Path]:
    """A temporary path that becomes `name` if the block ends without an error; errors of GDAL as StoreError."""
    with target.filling(name) as temporary:
        try:
            yield temporary
        except (OSError, rasterio.errors.RasterioError, pyogrio.errors.DataSourceError) as error:
            free = shutil.disk_usage(temporary.parent).free
            code = "disk-full" if free < 1 << 20 else "store-unreachable"
            why = f"{type(error).__name__}, {free / 1e6:,.1f} MB free"
            fix = "Choose another output folder, or free space."
            raise StoreError(code, "could not write", where=target.named(name), why=why, fix=fix) from None


def _write_cog(group: zarr.Group, prompt: int, t: int, path: Path, *, tags: dict[str, str]) -> None:
    """One layer of the mask as a cloud-optimised GeoTIFF, copied shard by shard."""
    array = group[MASK]
    side, (height, width) = array.shards[2], array.shape[2:]
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 1,
        "dtype": "uint8",
        "nodata": NOT_COMPUTED,
        "crs": group["spatial_ref"].attrs["crs_wkt"],
        "transform": rasterio.Affine(*group.attrs["spatial:transform"]),
        "tiled": True,
        "blockxsize": _COG_BLOCK,
        "blockysize": _COG_BLOCK,
        "compress": "zstd",
        "bigtiff": "if_safer",
    }
    plain = path.with_name(f"{path.stem}.plain.tif")
    with rasterio.open(plain, "w", **profile) as raster:
        raster.write_colormap(1, COLOURS)
        raster.update_tags(**tags, VALUES="0 no, 1 yes, 254 no observation, 255 not computed")
        raster.set_band_description(1, tags["PROMPT"])
        for row in range(0, height, side):
            for col in range(0, width, side):
                values = np.asarray(array[prompt, t, row : row + side, col : col + side])
                raster.write(values, 1, window=Window(col, row, values.shape[1], values.shape[0]))
    rasterio.shutil.copy(
        plain, path, driver="COG", compress="deflate", blocksize=_COG_BLOCK, overview_resampling="mode", bigtiff="if_safer"
    )


def _write_geopackage(source: BinaryIO, path: Path) -> None:
    """All footprints as the layer `footprints`, row group by row group; lists become comma-separated text."""
    with pq.ParquetFile(source) as parquet:
        crs = _crs_wkt(parquet)
        groups = range(parquet.num_row_groups)
        empty = parquet.schema_arrow.empty_table()
        for index, table in enumerate((parquet.read_row_group(i) for i in groups) if groups else (empty,)):
            flat = _flatten(table)
            pyogrio.write_arrow(
                flat,
                path,
                layer="footprints",
                driver="GPKG",
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=crs,
                append=index > 0,
            )


def _flatten(table: pa.Table) -> pa.Table:
    columns = {}
    for name in table.column_names:
        if name == "bbox":
            continue
        column = table[name]
        columns[name] = pc.binary_join(column.cast(pa.list_(pa.string())), ",") if pa.types.is_list(column.type) else column
    return pa.table(columns)


def _crs_wkt(parquet: pq.ParquetFile) -> str:
    geo = json.loads(parquet.metadata.metadata[b"geo"])
    return str(CRS.from_json_dict(geo["columns"]["geometry"]["crs"]).to_wkt())
