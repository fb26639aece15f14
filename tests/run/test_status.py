"""How far a run is, told while a driver works, from its journal, and without reading what there may be a million of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commandline import told
from toy import make_toy, toy_pipeline

from eo_batch.core.records import ChunkFailure
from eo_batch.outputs.store import Store
from eo_batch.run.driver import start_run
from eo_batch.run.lease import acquire
from eo_batch.run.ledger import put_failure
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event, silent
from eo_batch.run.told.journal import journal
from eo_batch.run.told.status import run_status


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run of four chunks whose driver was stopped before it published."""
    make_toy(tmp_path, dates=1, size=200)
    (tmp_path / "pipeline.toml").write_text(toy_pipeline(size=200, prompts=("bright",)))
    assert start_run(load_pipeline(tmp_path / "pipeline.toml"), tmp_path / "run", executor="serial").exit_status == 0
    (tmp_path / "run/COMPLETE.json").unlink()
    return tmp_path / "run"


def test_while_a_driver_works_the_journal_is_believed_and_no_receipt_listed(stopped: Path) -> None:
    shutil.rmtree(stopped / "receipts")
    store = Store(stopped)
    with acquire(store) as lease, journal(store, lease.epoch, silent) as tell:
        tell(Event("start", "", 0, 4))
        for done in range(1, 4):
            facts = {"key": f"t0000/y0000_x000{done}", "worker": "tls://10.0.0.7:4711", "windows": {"computed": 5, "shared": 1}}
            tell(Event("chunk", "", done, 4, done * 2.0, facts))
        tell.__self__._write()  # type: ignore[attr-defined]  # as it does every ten seconds
        status = run_status(stopped)
        assert (status.state, status.finished, status.total) == ("running", 3, 4)
        assert status.pace is not None
        assert status.pace.windows_per_s is not None
        assert [(worker.name, worker.chunks) for worker in status.pace.workers] == [("tls://10.0.0.7:4711", 3)]
        rows = dict(status.rows())
        assert "left" in rows["pace"]
        assert "t0000/y0000_x0003" in rows["worker 10.0.0.7:4711"]
    assert run_status(stopped).finished == 0


def test_a_run_without_a_journal_has_a_status(stopped: Path) -> None:
    shutil.rmtree(stopped / "events")
    status = run_status(stopped)
    assert (status.state, status.finished, status.pace) == ("stopped", 4, None)


def test_failures_are_counted_by_code_and_by_item(stopped: Path) -> None:
    shutil.rmtree(stopped / "receipts")
    for x in range(3):
        text = f'asset-corrupt: band "nir" of item toy/a{x // 2}: could not be read: cut.'
        put_failure(Store(stopped), ChunkFailure(f"t0000/y0000_x000{x}", "asset-corrupt", text, 1))
    facts = told("status", stopped)
    assert facts["failed_by_code"] == {"asset-corrupt": 3}
    assert facts["failing_items"] == {"toy/a0": 2, "toy/a1": 1}
