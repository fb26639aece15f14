"""What "the same run" means in tests: every byte of every result file, and of receipts everything but telemetry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

LEFT_OUT = ("lease/", "failures/", "events/", "features/", "plan.json", "pilot.json", "report.html")
"""What only tells of a run."""


OWN = ("request.json", "manifest.json", "parts", "receipts", "failures", "plan.json")
"""What each generation of an extended run has of its own."""


def file_digests(run: Path) -> dict[str, str]:
    """Relative path -> sha256 of each result file of a run."""
    out = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if name.startswith(LEFT_OUT) or "/failures/" in name or name.endswith("/plan.json"):
            continue
        data = path.read_bytes()
        if "/receipts/" in f"/{name}" and name.endswith(".json"):
            document = json.loads(data)
            data = json.dumps([document["facts"], document["digest"]], sort_keys=True).encode()
        out[name] = hashlib.sha256(data).hexdigest()
    return out


def download(where: str, folder: Path) -> Path:
    """Every object of a run in a bucket as a file below `folder`."""
    from eo_batch.outputs.store import Store

    store = Store(where)
    for name in store.list():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(store.get(name))
    return folder


def newest_digests(run: Path) -> dict[str, str]:
    """`file_digests` of an extended run as if it had never been extended: files of its newest generation, and the shared ones."""
    every = file_digests(run)
    folders = sorted({"/".join(name.split("/")[:2]) for name in every if name.startswith("extensions/")})
    shared = {name: sha for name, sha in every.items() if not name.startswith("extensions/")}
    if not folders:
        return shared
    out = {name: sha for name, sha in shared.items() if name.split("/")[0] not in OWN}
    newest = folders[-1] + "/"
    return out | {name.removeprefix(newest): sha for name, sha in every.items() if name.startswith(newest)}


def mask_array(run: Path, name: str = "mask") -> NDArray[np.uint8]:
    """A whole array of the cube, uint8 (prompt, time, y, x), read with plain xarray."""
    with xr.open_zarr(run / "masks.zarr") as cube:
        return cube[name].values


def footprint_rows(run: Path) -> list[tuple]:
    """Every attribute and the coordinates of every footprint, sorted: what must not depend on the chunk size."""
    import geopandas

    frame = geopandas.read_parquet(run / "footprints.parquet")
    columns = [name for name in sorted(frame.columns) if name not in ("geometry", "bbox")]
    rows = []
    for record, geometry in zip(frame[columns].to_dict("records"), frame.geometry, strict=True):
        values = tuple(tuple(v) if isinstance(v, list | np.ndarray) else str(v) for v in (record[c] for c in columns))
        rows.append((*values, geometry.normalize().wkb_hex))
    return sorted(rows)
