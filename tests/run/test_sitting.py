"""A sitting keeps little in memory, says what is wrong once, and tries again what failed before."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import AssetError
from eo_batch.core.grid import chunk_index, chunk_key
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.executors import Again
from eo_batch.run.executors.dispatch import worker_lost
from eo_batch.run.generations import Generation
from eo_batch.run.ledger import get_receipt, receipt_keys
from eo_batch.run.manifest import read_inputs
from eo_batch.run.request import load_pipeline
from eo_batch.run.sitting import Sitting
from eo_batch.run.told.events import Event, silent

RECEIPTS = 8_000


def toy(folder: Path, *, chunk_px: int = 64) -> Path:
    make_toy(folder, dates=1, size=260)
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(toy_pipeline(size=260, chunk_px=chunk_px))
    return pipeline


def test_keys_and_indices_of_chunks_are_each_others_inverse() -> None:
    for index in ((0, 0, 0), (3, 12, 44), (99_999, 123_456, 7)):
        assert chunk_index(chunk_key(*index)) == index
    for other in ("t0000/y0000_x0000.other", "t00/y0000_x0000", "notes", "t0000/y0000_x-001"):
        assert chunk_index(other) is None


def test_an_item_that_cannot_be_used_is_told_of_once_and_tried_again_by_a_resume(tmp_path: Path) -> None:
    pipeline, events = toy(tmp_path), []
    golden = tmp_path / "golden"
    assert start_run(load_pipeline(pipeline), golden, executor="serial").exit_status == 0
    scene = tmp_path / "b1_nir.tif"
    data = scene.read_bytes()
    scene.write_text("this is no raster")
    run = tmp_path / "run"
    summary = start_run(load_pipeline(pipeline), run, executor="local", workers=2, allow_failed=100, listener=events.append)
    assert 1 < summary.failed < summary.total
    told = [event.text for event in events if event.kind == "warning" and "b1" in event.text]
    assert len(told) == 1
    assert f"failed in {summary.failed} chunks" in told[0]
    assert "asset-" in told[0]
    scene.write_bytes(data)
    assert resume_run(run, executor="local", workers=2).exit_status == 0
    assert file_digests(run) == file_digests(golden)


def test_names_that_are_no_chunks_of_this_run_are_not_counted(tmp_path: Path) -> None:
    pipeline, run = toy(tmp_path), tmp_path / "run"
    total = start_run(load_pipeline(pipeline), run, executor="serial").total
    for name in ("notes", "t0000/y0099_x0000", "t0007/y0000_x0000"):
        (run / "receipts" / f"{name}.json").parent.mkdir(exist_ok=True)
        (run / "receipts" / f"{name}.json").write_text("{}")
    (run / "receipts" / "t0000" / "y0000_x0000.json").unlink()
    store = Generation(run)
    sitting = Sitting(store, read_inputs(store), silent, 0)
    assert (sitting.total, sitting.missing, sitting.counts["done"]) == (total, 1, total - 1)


def test_failures_of_very_many_chunks_take_no_memory_for_each(tmp_path: Path) -> None:
    pipeline, run = toy(tmp_path), tmp_path / "run"
    start_run(load_pipeline(pipeline), run, executor="serial")
    store = Generation(run)
    sitting = Sitting(store, read_inputs(store), silent, allow_failed=RECEIPTS)
    error = AssetError("asset-corrupt", "could not be read", where='band "nir" of item toy/b1')
    sitting.store.put = lambda path, data: ""  # type: ignore[method-assign]  # what is written is not the matter here
    sitting._fail("t0000/y0000_x0000", error)
    tracemalloc.start()
    for number in range(RECEIPTS):
        sitting._fail(chunk_key(0, number, 0), error)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * RECEIPTS  # a key alone takes 67
    assert list(sitting.items.values()) == [RECEIPTS + 1]


def test_a_chunk_that_no_worker_survives_is_told_with_its_stage_and_a_smaller_size(tmp_path: Path) -> None:
    start_run(load_pipeline(toy(tmp_path, chunk_px=300)), tmp_path / "run", executor="serial")
    events: list[Event] = []
    store = Generation(tmp_path / "run")
    sitting = Sitting(store, read_inputs(store), events.append, allow_failed=1)
    sitting._judge(("run", "digest", 0, 1, 2), Again("tcp://a", "score", 2, 4))
    sitting._judge(("run", "digest", 0, 1, 2), worker_lost(4, 4, "score"))
    again, failure = (event.text for event in events)
    assert again == "chunk t0000/y0001_x0002: worker lost (last known stage: score), attempt 2 of 4"
    assert "worker-lost: it ended 4 workers (last known stage: score)" in failure
    assert failure.endswith("make the same map as a new run with chunk_px = 150.")


def test_a_note_of_several_workers_is_told_once(tmp_path: Path) -> None:
    start_run(load_pipeline(toy(tmp_path, chunk_px=300)), tmp_path / "run", executor="serial")
    events: list[Event] = []
    store = Generation(tmp_path / "run")
    sitting = Sitting(store, read_inputs(store), events.append, allow_failed=0)
    receipt = get_receipt(store, next(iter(receipt_keys(store))))
    for notes in (["slower; now 4"], ["slower; now 4", "slower; now 2"], []):
        sitting._judge(("run", "digest", 0, 0, 0), replace(receipt, telemetry={"notes": notes}))
    assert [event.text for event in events if event.kind == "warning"] == ["slower; now 4", "slower; now 2"]


@pytest.mark.parametrize(("kind", "states"), [("local", []), ("local:1", ["joined"])])
def test_worker_processes_are_told_of_and_threads_are_not(tmp_path: Path, kind: str, states: list[str]) -> None:
    events: list[Event] = []
    start_run(load_pipeline(toy(tmp_path, chunk_px=300)), tmp_path / "run", executor=kind, workers=1, listener=events.append)
    assert [event.data["state"] for event in events if event.kind == "worker"] == states
