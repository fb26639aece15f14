"""Whether workers that somebody else has started run the same software as this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eo_batch.core.errors import ResourceError
from eo_batch.run.executors.scheduler import ANSWER_S, cluster_lost, told_of

WIRE = ("python", "dask", "distributed", "cloudpickle", "msgpack")
"""What speaks between processes."""
BYTES = ("eo-batch", "numpy", "scipy", "numba", "torch", "rasterio", "pyproj", "zarr", "numcodecs", "pyarrow", "shapely")
"""What decides the bytes of results: two versions in one run would be two maps."""


def check_versions(client: Any) -> None:
    """Refuse workers with other software.

    Raises
    ------
    ResourceError : `cluster-versions`, naming the packages; `cluster-unreachable`: a worker does not answer; `cluster-lost`.
    """
    try:
        found = client.sync(client._get_versions, packages=list(BYTES), callback_timeout=ANSWER_S)
    except TimeoutError:
        what = f"not every worker tells its versions in {ANSWER_S:g} s"
        fix = "Restart the workers that are frozen; a scheduler forgets them after worker-ttl, by default 5 minutes."
        raise ResourceError("cluster-unreachable", what, why=_most_silent(client), fix=fix) from None
    except OSError:
        raise cluster_lost("the connection to the scheduler has broken") from None
    here = found["client"]["packages"]
    differing: dict[str, str] = {}
    for worker in found["workers"].values():
        there = worker["packages"] if isinstance(worker, Mapping) else {}
        for name in (*WIRE, *BYTES):
            ours, theirs = _release(name, here.get(name)), _release(name, there.get(name))
            if ours != theirs:
                differing.setdefault(name, f"{name} {ours} here, {theirs} on a worker")
    if differing:
        fix = "Install the same versions everywhere: one environment or one container image."
        why = "; ".join(sorted(differing.values()))
        raise ResourceError("cluster-versions", "workers run other software than this process", why=why, fix=fix)


def _most_silent(client: Any) -> str:
    """The worker that the scheduler has not heard of for the longest time, beside the others."""
    beats = {str(told["name"]): float(told["last_seen"]) for told in told_of(client).values()}
    first = min(beats, key=beats.__getitem__, default="")
    return f"worker {first} was last heard of {max(beats.values()) - beats[first]:.0f} s before the others" if beats else ""


def _release(name: str, version: Any) -> str:
    """The version without what a build adds (`+cpu`); of Python, the first two numbers: that is what pickled code needs."""
    if version is None:
        return "missing"
    text = str(version).partition("+")[0]
    return ".".join(text.split(".")[:2]) if name == "python" else text
