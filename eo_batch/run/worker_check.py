"""Proves that the workers of a cluster can do the work of a pipeline, before hours are spent on finding out that they cannot.

Each worker does once what a run has it do: read an asset of each host, load the segmenter, write to the run. What it finds is
compared with the driver's.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import EoBatchError
from eo_batch.core.hrefs import redact
from eo_batch.core.records import BandAsset, Item
from eo_batch.models.registry import has_device, load_segmenter
from eo_batch.models.visible import visible_gpus
from eo_batch.outputs.store import Store
from eo_batch.run.cost.plan import halo_region
from eo_batch.run.executors import make_executor
from eo_batch.run.executors.pool import Say, silence
from eo_batch.run.generations import newest
from eo_batch.run.manifest import read_inputs
from eo_batch.run.request import Request, request_from_json
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.items import resolve_items
from eo_batch.sources.reachable import one_of_each_host, read_one_header
from eo_batch.sources.search import search_items

PACKAGES = ("eo-batch", "dask", "distributed", "numpy", "rasterio", "zarr", "torch")
FOLDER = "worker-check"
"""In the run; nothing stays in it."""
ANSWER_S = 600.0
CHECKS = ("versions", "assets", "model", "gpu", "store")


@dataclass(frozen=True)
class Check:
    """One thing that was tried on one worker.

    status : 0, or the exit status of what is wrong.
    """

    name: str
    status: int
    text: str


@dataclass(frozen=True)
class WorkerReport:
    """What one worker can do."""

    worker: str
    host: str
    checks: tuple[Check, ...]
    wrote: str = ""
    was_first: bool = False

    @property
    def status(self) -> int:
        """Exit status of the first thing that is wrong, or 0."""
        return next((check.status for check in self.checks if check.status), 0)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"worker": self.worker, "host": self.host, "status": self.status, "checks": [asdict(c) for c in self.checks]}


@dataclass(frozen=True)
class Expected:
    """What the driver has found, and asks of each worker.

    Parameters
    ----------
    request : as `Request.to_json`.
    assets : host -> owner and asset to open.
    segmenter : its digest on a CPU, which is that of its weights and settings.
    wants_gpu : the cluster was asked for GPUs.
    out : where the run will be; "": nothing is written.
    token : names what is written by this check.
    """

    request: bytes
    assets: Mapping[str, tuple[str, BandAsset]]
    segmenter: str
    wants_gpu: bool
    out: str
    token: str = field(default_factory=lambda: uuid4().hex)
    versions: Mapping[str, str] = field(default_factory=lambda: versions_here())


def check_workers(request: Request, cluster: ClusterSpec, *, out: str = "", say: Say = silence) -> list[WorkerReport]:
    """What every worker of `cluster` can do of `request`.

    Parameters
    ----------
    out : where the run will be, or is: then its frozen items are used. "": nothing is written.
    say : told what is done.

    Raises
    ------
    EoBatchError : what stands in the driver's own way.
    """
    digest = _weights_digest(request)
    say("asking the catalog")
    assets = one_of_each_host(_items_of(request, out))
    wants_gpu = bool(cluster.gpus) or cluster.kind == "gpus"
    expected = Expected(request.to_json(), assets, digest, wants_gpu, out)
    say("asking for workers")
    with make_executor(cluster, say=say) as pool:
        say("asking the workers")
        try:
            answers = pool.on_each_worker(examine, expected, timeout_s=ANSWER_S)
            reports = [_report_of(name, answers[name]) for name in sorted(answers, key=lambda name: (len(name), name))]
            return _seen_from_here(reports, expected) if out else reports
        finally:
            if out:
                _leave_nothing(expected)


def versions_here() -> dict[str, str]:
    """Package -> version in this process; what a build adds (`+cpu`) is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def examine(expected: Expected) -> WorkerReport:
    """Runs on a worker: try all that a run will need."""
    request = request_from_json(expected.request, where="worker-check")
    own = f"{FOLDER}/{expected.token}/{uuid4().hex}"
    was_first = [False]
    tried: tuple[tuple[str, Callable[[], tuple[int, str]]], ...] = (
        ("versions", lambda: _versions(expected)),
        ("assets", lambda: _assets(expected, request)),
        ("model", lambda: _model(expected, request)),
        ("gpu", lambda: _gpu(expected)),
        ("store", lambda: _store(expected, own, was_first)),
    )
    checks = tuple(_try(name, check) for name, check in tried if name != "store" or expected.out)
    return WorkerReport("", platform.node(), checks, own if expected.out else "", was_first[0])


def _try(name: str, check: Callable[[], tuple[int, str]]) -> Check:
    try:
        return Check(name, *check())
    except EoBatchError as error:
        return Check(name, error.exit_status, str(error))
    except Exception as error:  # whatever it is, the user must learn on which worker
        return Check(name, 1, redact(f"unexpected {type(error).__name__}: {error}")[:500])


def _versions(expected: Expected) -> tuple[int, str]:
    here = versions_here()
    wrong = [f"{name} {here[name]} (driver: {asked})" for name, asked in expected.versions.items() if here[name] != asked]
    if not wrong:
        return 0, f"eo-batch {here['eo-batch']}, Python {here['python']}"
    return 7, f"{', '.join(wrong)}. Install the same versions everywhere: one environment or one container image."


def _assets(expected: Expected, request: Request) -> tuple[int, str]:
    retry, grid = Retry(tries=2, base_s=0.5), request.grid()[0]
    for owner, asset in expected.assets.values():
        read_one_header(asset, owner, catalog=request.catalog, grid=grid, retry=retry)
    return 0, f"read from {', '.join(expected.assets) or 'no host: there are no items'}"


def _model(expected: Expected, request: Request) -> tuple[int, str]:
    found = load_segmenter(request.spec.model, request.spec.source.bands).info
    digest = found.digest if found.device == "cpu" else _weights_digest(request)
    if digest != expected.segmenter:
        fix = "Give all workers the same weights: eo-batch models show NAME says which."
        return 5, f'"{found.name}" is another one here: {digest[:12]} (driver: {expected.segmenter[:12]}). {fix}'
    return 0, f"{found.name} {digest[:12]} on {found.device}"


def _weights_digest(request: Request) -> str:
    """Digest of the segmenter on a CPU: the same wherever its weights and settings are the same."""
    model = request.spec.model
    if has_device(model):
        model = model.model_copy(update={"options": {**model.options, "device": "cpu"}})
    return load_segmenter(model, request.spec.source.bands).info.digest


def _gpu(expected: Expected) -> tuple[int, str]:
    seen, allowed = visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    told = "" if allowed is None else f" (CUDA_VISIBLE_DEVICES={allowed})"
    if seen or not expected.wants_gpu:
        return 0, ("; ".join(seen) or "none, and none is asked for") + told
    return 7, f"torch sees none{told}. Install a driver and a torch with CUDA on the workers, and ask for gpus."


def _store(expected: Expected, own: str, was_first: list[bool]) -> tuple[int, str]:
    store = Store(expected.out)
    made, again = store.create(own, expected.token.encode()), store.create(own, b"other")
    was_first[0] = store.create(f"{FOLDER}/{expected.token}/first", own.encode())
    if not made or again or store.get(own) != expected.token.encode():
        fix = "Choose a place that can create a file only if it is not there: runs rely on it."
        return 7, f"a file that was there was created again. {fix}"
    return 0, "written, read, not written twice"


def _report_of(worker: str, answer: Any) -> WorkerReport:
    if isinstance(answer, WorkerReport):
        return WorkerReport(worker, answer.host, answer.checks, answer.wrote, answer.was_first)
    text = f"{type(answer).__name__}: {redact(answer)}"[:500]
    return WorkerReport(
        worker, "", (Check("versions", 7, f"it cannot be asked: {text}. Is eo-batch installed there, the same?"),)
    )


def _seen_from_here(reports: list[WorkerReport], expected: Expected) -> list[WorkerReport]:
    """The reports, where what a worker has written is not seen by the driver, or two have created one file."""
    store, first = Store(expected.out), 0
    out = []
    for report in reports:
        text = ""
        if report.wrote and not any(check.status for check in report.checks if check.name == "store"):
            first += report.was_first
            if not store.exists(report.wrote):
                text = "the driver does not see what this worker has written. Use a folder that all see, or s3://."
            elif report.was_first and first > 1:
                text = "two workers have created one file. Choose a place where one of them alone can."
        wrong = (Check("store", 7, text),) if text else ()
        checks = tuple(check for check in report.checks if not (wrong and check.name == "store")) + wrong
        out.append(WorkerReport(report.worker, report.host, checks))
    return out


def _leave_nothing(expected: Expected) -> None:
    store = Store(expected.out)
    try:
        for path in list(store.list(f"{FOLDER}/{expected.token}")):
            store.delete(path)
    except EoBatchError:
        return  # it could not be written either, which the workers have said


def _items_of(request: Request, out: str) -> tuple[Item, ...]:
    if out and _holds_items(out):
        return read_inputs(newest(out)).items.items
    found = search_items(request.spec, request.catalog, region=halo_region(request.region, *request.grid()))
    return resolve_items(found.documents, request.spec, request.catalog).items


def _holds_items(out: str) -> bool:
    try:
        return newest(out).exists("items.parquet")
    except EoBatchError:
        return False
