"""The mask cube: one zarr v3 group that opens as it is in xarray, with one shard per chunk, prompt and time.

Metadata and coordinates are written once; after that, a shard is encoded in memory and put as one file by the one task
that owns it. Prompts and times can be appended by rewriting the metadata and their small coordinates only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray
import zarr
from numpy.typing import NDArray
from pyproj import CRS
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from eo_batch.core.arrays import NO, NO_OBSERVATION, NOT_COMPUTED, SCORE_STEPS, YES
from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Chunk, Grid
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import TimeStep
from eo_batch.outputs.store import Store
from eo_batch.outputs.times import microseconds

CUBE = "masks.zarr"
MASK, SCORE = "mask", "score"
INNER_PX = 512
"""Greatest side of the chunks inside a shard: what a reader must fetch to see one pixel."""
_ONE = "c/0/0/0/0"
_COORDINATE_PX = 1 << 20

_CONVENTIONS = [
    {
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/proj/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
        "name": "proj",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
        "name": "spatial",
        "description": "Spatial coordinate information",
    },
]
"""Declarations of the two GeoZarr conventions, as their specifications ask for."""


def create_cube(
    store: Store,
    *,
    grid: Grid,
    prompts: PromptSet,
    steps: Sequence[TimeStep],
    scores: bool,
    attributes: Mapping[str, Any],
) -> None:
    """Write metadata and coordinates of `masks.zarr`; its pixels are all "not computed" until shards are put.

    Parameters
    ----------
    scores : also make the array `score`.
    attributes : JSON values for the group, for example title, licence, digests.
    """
    buffers: dict[str, Buffer] = {}
    memory = MemoryStore(buffers)
    with warnings.catch_warnings():
        # Consolidated metadata is an extension of zarr v3; without it xarray warns on every open.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        group = zarr.create_group(memory, zarr_format=3, attributes={**dict(attributes), **_group_attributes(grid)})
        shape = (len(prompts), len(steps), *grid.shape)
        _create_pixels(group, MASK, shape, grid, _mask_attributes(grid))
        if scores:
            _create_pixels(group, SCORE, shape, grid, _score_attributes(grid))
        _create_coordinates(group, grid, prompts, steps)
        zarr.consolidate_metadata(memory)
    files = {name: buffer.to_bytes() for name, buffer in buffers.items()}
    root = files.pop("zarr.json")
    for name, data in sorted(files.items()):
        store.put(f"{CUBE}/{name}", data)
    store.put(f"{CUBE}/zarr.json", root)


def header_paths(store: Store) -> list[str]:
    """Paths of the files of the cube that belong to no chunk: metadata and coordinates, sorted.

    Found without listing the shards, of which there may be millions.
    """
    names = json.loads(store.get(f"{CUBE}/zarr.json"))["consolidated_metadata"]["metadata"]
    paths = [f"{CUBE}/zarr.json"]
    for name in names:
        paths += [f"{CUBE}/{name}/zarr.json"] if name in (MASK, SCORE) else store.list(f"{CUBE}/{name}")
    return sorted(paths)


def shard_path(array: str, prompt: int, chunk: Chunk) -> str:
    """Path in the run directory of the shard of `chunk` and prompt number `prompt`: `masks.zarr/mask/c/0/2/3/4`."""
    return f"{CUBE}/{array}/c/{prompt}/{chunk.t}/{chunk.iy}/{chunk.ix}"


def forget_shards(store: Store, prompt: int) -> None:
    """Delete all shards of prompt number `prompt`: pixels of a layer that the cube does not have yet are "not computed"."""
    for array in (MASK, SCORE):
        for path in list(store.list(f"{CUBE}/{array}/c/{prompt}")):
            store.delete(path)


def encode_shard(values: NDArray[np.uint8], grid: Grid) -> bytes:
    """One whole shard: the same bytes for the same values.

    Parameters
    ----------
    values : uint8 (y, x) of a chunk's interior; at the far edges of the grid, smaller than `chunk_px` and padded here.
    """
    side = grid.chunk_px
    if values.dtype != np.uint8 or values.ndim != 2 or not 0 < max(values.shape) <= side or min(values.shape) == 0:
        raise ValueError(f"a shard takes uint8 (y, x) of at most {side} x {side}, not {values.dtype} {values.shape}")
    padded = values
    if values.shape != (side, side):
        padded = np.full((side, side), NOT_COMPUTED, np.uint8)
        padded[: values.shape[0], : values.shape[1]] = values
    files: dict[str, Buffer] = {}
    _one_shard(files, grid)[0, 0] = padded
    return files[_ONE].to_bytes()


def decode_shard(data: bytes, grid: Grid) -> NDArray[np.uint8]:
    """uint8 (chunk_px, chunk_px) of the bytes of one shard, padding included.

    Raises
    ------
    IntegrityError : `shard-mismatch`: the bytes are not a shard of this grid, or are damaged.
    """
    fix = "Run `eo-batch resume --repair`."
    if not data:
        raise IntegrityError("shard-mismatch", "the shard is empty", fix=fix)
    files: dict[str, Buffer] = {}
    array = _one_shard(files, grid)
    files[_ONE] = default_buffer_prototype().buffer.from_bytes(data)
    try:
        return np.asarray(array[0, 0], np.uint8)
    except Exception as error:
        # zarr and its codecs raise many kinds of errors for damaged bytes: all mean the same here.
        why = f"{type(error).__name__}: {error}"[:200]
        raise IntegrityError("shard-mismatch", "the shard cannot be decoded", why=why, fix=fix) from None


def open_cube(source: Store | str | Path) -> xarray.Dataset:
    """The cube as a lazy Dataset; `source` is the run (a Store or its folder) or the folder `masks.zarr` itself."""
    store = source if isinstance(source, Store) else Store(source)
    return xarray.open_zarr(store.zarr(CUBE if store.exists(f"{CUBE}/zarr.json") else ""), decode_coords="all")


def inner_px(grid: Grid) -> int:
    """Side of the chunks inside a shard: the largest divisor of `chunk_px` up to 512, or `chunk_px` if that is below 64."""
    largest = max(side for side in range(1, min(INNER_PX, grid.chunk_px) + 1) if grid.chunk_px % side == 0)
    return largest if largest >= 64 else grid.chunk_px


def _pixel_layout(grid: Grid) -> dict[str, Any]:
    inner = inner_px(grid)
    return {
        "shards": (1, 1, grid.chunk_px, grid.chunk_px),
        "chunks": (1, 1, inner, inner),
        "dtype": "uint8",
        "fill_value": NOT_COMPUTED,
        "compressors": ZstdCodec(level=3, checksum=True),
        # A shard without one of its chunks would be read as fill value without an error: nothing is left out.
        "config": {"write_empty_chunks": True},
    }


def _one_shard(files: dict[str, Buffer], grid: Grid) -> zarr.Array:
    """Array of one shard whose files are in `files`."""
    shape = (1, 1, grid.chunk_px, grid.chunk_px)
    return zarr.create_array(MemoryStore(files), shape=shape, zarr_format=3, **_pixel_layout(grid))


def _create_pixels(group: zarr.Group, name: str, shape: tuple[int, ...], grid: Grid, attributes: dict[str, Any]) -> None:
    group.create_array(
        name, shape=shape, dimension_names=("prompt", "time", "y", "x"), attributes=attributes, **_pixel_layout(grid)
    )


def _create_coordinates(group: zarr.Group, grid: Grid, prompts: PromptSet, steps: Sequence[TimeStep]) -> None:
    crs = CRS.from_user_input(grid.crs)
    axes = {axis["axis"]: axis for axis in crs.cs_to_cf()} if crs.cs_to_cf() else {}
    half = grid.resolution / 2
    rows, cols = grid.rows, grid.cols
    _put_1d(group, "y", -np.arange(rows.start, rows.stop) * grid.resolution - half, dims=("y",), attributes=axes.get("Y", {}))
    _put_1d(group, "x", np.arange(cols.start, cols.stop) * grid.resolution + half, dims=("x",), attributes=axes.get("X", {}))
    units = {"units": "microseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    time = {**units, "standard_name": "time", "axis": "T", "bounds": "time_bounds"}
    _put_1d(group, "time", np.array([microseconds(s.start) for s in steps], np.int64), dims=("time",), attributes=time)
    bounds = np.array([[microseconds(s.start), microseconds(s.end)] for s in steps], np.int64).reshape(len(steps), 2)
    _put_1d(group, "time_bounds", bounds, dims=("time", "bound"), attributes=units)
    labels = {"long_name": "name of the time step"}
    _put_1d(group, "step", np.array([s.label for s in steps], object), dims=("time",), attributes=labels)
    _put_1d(group, "prompt", np.array(prompts.texts, object), dims=("prompt",), attributes={"long_name": "prompt"})
    ids = {"long_name": "id of the prompt, made from its text"}
    _put_1d(group, "prompt_id", np.array(prompts.ids, object), dims=("prompt",), attributes=ids)
    thresholds = {"long_name": "score from which a pixel counts as found", "units": "1"}
    _put_1d(group, "threshold", np.array([p.threshold for p in prompts]), dims=("prompt",), attributes=thresholds)
    transform = grid.transform
    mapping = {
        **crs.to_cf(),
        "spatial_ref": crs.to_wkt(),
        "GeoTransform": " ".join(repr(float(v)) for v in transform.to_gdal()),
    }
    group.create_array("spatial_ref", shape=(), dtype="int64", attributes=_plain(mapping), fill_value=0)[...] = 0


def _put_1d(group: zarr.Group, name: str, values: NDArray[Any], *, dims: tuple[str, ...], attributes: Mapping[str, Any]) -> None:
    text = values.dtype == object
    group.create_array(
        name,
        shape=values.shape,
        chunks=tuple(min(max(size, 1), _COORDINATE_PX) for size in values.shape),
        dtype="string" if text else values.dtype,
        dimension_names=dims,
        attributes=_plain(attributes),
        compressors=ZstdCodec(level=3, checksum=True),
        config={"write_empty_chunks": True},
    )[...] = values


def _group_attributes(grid: Grid) -> dict[str, Any]:
    crs = CRS.from_user_input(grid.crs)
    authority = crs.to_authority()
    code = {"proj:code": ":".join(authority)} if authority else {"proj:projjson": crs.to_json_dict()}
    return _plain(
        {
            "Conventions": "CF-1.11",
            "coordinates": "spatial_ref time_bounds step prompt_id threshold",
            "zarr_conventions": _CONVENTIONS,
            **code,
            "spatial:dimensions": ["y", "x"],
            "spatial:shape": list(grid.shape),
            "spatial:bbox": list(grid.bounds),
            "spatial:transform_type": "affine",
            "spatial:transform": list(grid.transform)[:6],
            "spatial:registration": "pixel",
        }
    )


def _mask_attributes(grid: Grid) -> dict[str, Any]:
    return {
        "long_name": "what the prompt asks for",
        "grid_mapping": "spatial_ref",
        "flag_values": [NO, YES, NO_OBSERVATION, NOT_COMPUTED],
        "flag_meanings": "no yes no_observation not_computed",
    }


def _score_attributes(grid: Grid) -> dict[str, Any]:
    return {
        "long_name": "score of the prompt",
        "grid_mapping": "spatial_ref",
        "comment": f"score = value / {SCORE_STEPS} for values up to {SCORE_STEPS}; {NO_OBSERVATION} no observation; "
        f"{NOT_COMPUTED} not computed",
        "valid_range": [0, SCORE_STEPS],
        "flag_values": [NO_OBSERVATION, NOT_COMPUTED],
        "flag_meanings": "no_observation not_computed",
    }


def _plain(value: Any) -> Any:
    """`value` with tuples and numpy numbers turned into what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
