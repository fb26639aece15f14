"""Death of a process at a point that is named, once for each point: nothing of it is known to the package.

A process that is started with `environment(...)` imports `faults/deadly/sitecustomize.py`, as do all processes that it
starts, and dies by SIGKILL when it first comes to one of the points. A point is `stage:NAME` (in a stage of a chunk),
`before:TEXT` or `after:TEXT` (a file whose path holds TEXT gets its name), or `half:TEXT` (half of such a file is written).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
VARIABLE = "EO_BATCH_TEST_POINTS"


def environment(folder: Path, *points: str) -> dict[str, str]:
    """Environment of a process that shall die at `points`; `folder` remembers which of them were met."""
    folder.mkdir(exist_ok=True)
    for number, point in enumerate(points):
        (folder / str(number)).write_text(point)
    return {**os.environ, VARIABLE: str(folder), "PYTHONPATH": str(TESTS / "faults" / "deadly")}


def unmet(folder: Path) -> list[str]:
    """Points at which nobody has died yet."""
    return sorted(path.read_text() for path in folder.iterdir())


def until_heard(stage: str) -> None:
    """Return when the scheduler of this task's Dask worker knows of the stage that it is in; at once where there is none."""
    from distributed import get_worker
    from distributed.utils import sync

    from eo_batch.run.executors.worker import STAGES

    try:
        worker = get_worker()
    except ValueError:
        return
    wanted = {"key": worker.get_current_task(), "stage": stage, "worker": worker.address}
    while wanted not in [told for _, told in sync(worker.loop, worker.scheduler.events, topic=STAGES)]:
        time.sleep(0.01)


def install(folder: Path) -> None:
    """Make this process mortal."""
    points = {path.read_text(): path for path in folder.iterdir()}
    files = [(point.partition(":")[0], point.partition(":")[2], point) for point in points if not point.startswith("stage:")]

    def die(point: str) -> None:
        try:
            points[point].unlink()
        except FileNotFoundError:
            return  # another process has died of it
        if point.startswith("stage:"):
            until_heard(point.partition(":")[2])
        os.kill(os.getpid(), signal.SIGKILL)

    def named(operation: Callable[..., Any]) -> Callable[..., Any]:
        def mortal(source: Any, target: Any, **more: Any) -> Any:
            met = [(when, point) for when, text, point in files if text in str(target)]
            for point in [point for when, point in met if when == "before"]:
                die(point)
            answer = operation(source, target, **more)
            for point in [point for when, point in met if when == "after"]:
                die(point)
            return answer

        return mortal

    def synced(operation: Callable[[int], None]) -> Callable[[int], None]:
        def mortal(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            for point in [point for when, text, point in files if when == "half" and text in path and path.endswith(".partial")]:
                if points[point].exists():
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                die(point)
            operation(descriptor)

        return mortal

    os.rename, os.replace, os.link = named(os.rename), named(os.replace), named(os.link)
    os.fsync = synced(os.fsync)
    stages = [point for point in points if point.startswith("stage:")]
    if stages:
        sys.meta_path.insert(0, _Watch(lambda stage: die(f"stage:{stage}") if f"stage:{stage}" in stages else None))


class _Watch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Tells of each stage that a stopwatch of the package has begun, once its module is imported."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "eo_batch.run.stopwatch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)  # type: ignore[union-attr]

    def exec_module(self, module: Any) -> None:
        self.loader.exec_module(module)  # type: ignore[union-attr]
        begin, tell = module.Stopwatch.__call__, self.tell

        @contextmanager
        def watched(self: Any, stage: str) -> Iterator[None]:
            with begin(self, stage):
                tell(stage)
                yield

        module.Stopwatch.__call__ = watched
