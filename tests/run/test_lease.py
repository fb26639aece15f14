"""One driver per run, without comparing clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eo_batch.core.errors import LockError, StoreError
from eo_batch.outputs.disk import Disk
from eo_batch.outputs.store import Store
from eo_batch.run import lease as leases
from eo_batch.run.lease import acquire, holder


def foreign_owner(store: Store, beat: bytes = b"1") -> None:
    store.create("lease/000001.json", json.dumps({"epoch": 1, "host": "elsewhere", "boot": "elsewhere:1", "pid": 41}).encode())
    store.put("lease/000001.beat", beat)


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with acquire(store), pytest.raises(LockError, match=rf"run-locked: .*pid {os.getpid()}"):
        acquire(store)


def test_a_released_run_can_be_taken_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with acquire(store) as first:
        pass
    with acquire(store, patience_s=1000) as second:
        assert (first.epoch, second.epoch) == (1, 2)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from eo_batch.outputs.store import Store; from eo_batch.run.lease import acquire\n"
        "acquire(Store(sys.argv[1])).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    store = Store(tmp_path)
    assert holder(store)["alive"] is False
    with acquire(store, patience_s=1000) as lease:
        assert lease.epoch == 2


def test_a_silent_driver_elsewhere_is_replaced_after_patience(tmp_path: Path) -> None:
    store = Store(tmp_path)
    foreign_owner(store)
    said: list[str] = []
    assert holder(store)["alive"] is None
    with acquire(store, patience_s=0.2, say=said.append) as lease:
        assert lease.epoch == 2
    assert "elsewhere" in said[0]


def test_a_working_driver_elsewhere_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    foreign_owner(store)
    stop = threading.Event()

    def beat() -> None:
        count = 1
        while not stop.wait(0.02):
            count += 1
            store.put("lease/000001.beat", str(count).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockError, match="run-locked.*which is working"):
            acquire(store, patience_s=5)
    finally:
        stop.set()
        thread.join()


def test_the_old_owner_notices_that_it_was_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with acquire(store) as lease:
        lease.check()
        store.create("lease/000002.json", b"{}")
        with pytest.raises(LockError, match=r"lease-lost: .*epoch 2, this one is 1"):
            lease.check()


def test_of_many_drivers_at_once_one_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    won, lost = [], []
    barrier = threading.Barrier(8)

    def contend() -> None:
        barrier.wait()
        try:
            won.append(acquire(store))
        except LockError as error:
            lost.append(error.code)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert lost == ["run-locked"] * 7


def test_a_driver_in_another_container_of_this_machine_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    code = (
        "import sys; from eo_batch.outputs.store import Store; from eo_batch.run.lease import acquire\n"
        "acquire(Store(sys.argv[1])).__enter__(); import os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert holder(store)["alive"] is False
    monkeypatch.setattr(leases, "_pid_namespace", lambda: "pid:[1]")  # its process numbers mean nothing here
    assert holder(store)["alive"] is None


def test_a_living_driver_stays_alive_when_the_clock_of_the_machine_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    with acquire(store):
        monkeypatch.setattr("psutil.Process.create_time", lambda self: 1.0)  # derived from the wall clock of the machine
        assert holder(store)["alive"] is True


def test_partial_files_are_swept_before_the_first_beat_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[bool] = []
    sweep = Store.sweep

    def watched(store: Store) -> int:
        threading.Event().wait(0.05)  # a beat that had begun would be on disk by now
        beats.append(store.exists("lease/000001.beat"))
        return sweep(store)

    monkeypatch.setattr(Store, "sweep", watched)
    with acquire(Store(tmp_path)) as lease:
        assert (beats, lease.swept) == ([False], 0)


def test_a_driver_whose_lease_is_swept_by_a_faster_one_is_told_of_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, store = Disk._link, Store(tmp_path)

    def overtaken(self: Disk, source: Path, target: Path) -> None:
        monkeypatch.setattr(Disk, "_link", link)
        acquire(Store(tmp_path)).__enter__().__exit__()
        link(self, source, target)

    monkeypatch.setattr(Disk, "_link", overtaken)
    with pytest.raises(LockError, match="run-locked.*another driver was faster"):
        acquire(store)


def test_a_lease_that_could_not_be_synced_is_no_faster_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    (tmp_path / "lease").mkdir()

    def broken(disk: Disk, folder: Path) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(Disk, "_fsync_directory", broken)
    with pytest.raises(StoreError, match="store-unreachable"):
        acquire(store)
