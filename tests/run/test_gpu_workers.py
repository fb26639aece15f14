"""Workers whose GPU fails, or that have none: they are replaced or sent away, and no chunk is computed elsewise instead."""

from __future__ import annotations

import threading
from pathlib import Path

from gpuwork import has_a_gpu_but_for_one, loses_its_gpu, never_has_a_gpu

from eo_batch.core.clusters import ClusterSpec
from eo_batch.run.executors import make_executor
from eo_batch.run.executors.dispatch import outcome_of


def outcomes(work, tasks) -> dict:
    with make_executor(ClusterSpec(kind="local:2")) as pool:
        groups = [[task] for task in tasks]
        told = pool.outcomes(work, groups, stop=threading.Event(), tell=lambda worker, state: None)
        return {task[0]: result for task, result in told}


def test_a_worker_whose_gpu_failed_is_replaced_and_its_chunk_computed() -> None:
    found = outcomes(loses_its_gpu, [(number,) for number in range(12)])
    assert {number: result[0] for number, result in found.items()} == {number: number for number in range(12)}


def test_a_worker_without_the_gpu_that_the_run_needs_is_sent_away(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    found = outcomes(has_a_gpu_but_for_one, [(number, str(mark)) for number in range(12)])
    assert {number: result[0] for number, result in found.items()} == {number: number for number in range(12)}
    assert int(mark.read_text()) not in {process for _, process in found.values()}


def test_where_nobody_has_a_gpu_it_is_said_and_not_waited_for() -> None:
    found = outcomes(never_has_a_gpu, [(0,), (1,)])
    assert {result.code for result in found.values()} == {"no-gpu"}


def test_a_process_that_nobody_would_replace_does_not_end() -> None:
    result = outcome_of(loses_its_gpu, 3)
    assert result.code == "gpu-lost"
