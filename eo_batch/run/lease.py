"""One driver per run: numbered, create-only lease files, and a counter that only the owner moves.

Epoch n belongs to whoever creates `lease/00000n.json` first. The owner rewrites `lease/00000n.beat` every few
seconds. A contender takes epoch n + 1 when the owner is provably gone: its process has ended on this very machine,
or its counter has not moved for `patience_s` on the contender's own monotonic clock. Clocks of two machines are
never compared, and no compare-and-swap is needed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import EoBatchError, LockError, StoreError
from eo_batch.outputs.store import Store

BEAT_S = 5.0
PATIENCE_S = 60.0


_held: set[tuple[str, int]] = set()
"""Where and which epoch: what this process holds. It may have let go of a run without being able to say so there."""


class Lease:
    """The right to write a run; a context manager that beats in the background while held.

    `swept`: partial files of a killed driver that were removed when it was entered, before the first beat.
    """

    def __init__(self, store: Store, epoch: int) -> None:
        self.store, self.epoch, self.swept = store, epoch, 0
        _held.add((store.where, epoch))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="eo-batch-lease", daemon=True)

    def __enter__(self) -> Lease:
        try:
            self.swept = self.store.sweep()
        except EoBatchError:
            self._release()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._release()

    def _release(self) -> None:
        _held.discard((self.store.where, self.epoch))
        with suppress(EoBatchError):  # a full disk must not hide why the run ended; the next driver sees a dead process
            self.store.put(_beat_path(self.epoch), b"released")

    def check(self) -> None:
        """Make sure that nobody took over.

        Raises
        ------
        LockError : `lease-lost`.
        """
        newest = _newest(self.store)
        if newest != self.epoch:
            raise LockError(
                "lease-lost",
                f"another driver took over (epoch {newest}, this one is {self.epoch})",
                where=self.store.where,
                fix="Let the other one finish; everything this one finished is kept.",
            )

    def _beat(self) -> None:
        counter = 0
        while True:
            counter += 1
            with suppress(EoBatchError):  # a missed beat is no news: a full or absent disk shows up in the work itself
                self.store.put(_beat_path(self.epoch), str(counter).encode())
            if self._stop.wait(BEAT_S):
                return


def acquire(store: Store, *, patience_s: float = PATIENCE_S, say: Callable[[str], None] = lambda text: None) -> Lease:
    """The lease of a run, newly created or taken over from a driver that is provably gone.

    Raises
    ------
    LockError : `run-locked`: another driver is alive.
    StoreError : `store-denied`: where the run is, nothing keeps a second driver out.
    """
    epoch = _newest(store)
    if epoch:
        _wait_until_gone(store, epoch, patience_s, say)
    owner = {"epoch": epoch + 1, "id": uuid4().hex, **_me()}
    try:
        created = store.create(_lease_path(epoch + 1), canonical_json(owner))
    except StoreError:
        if _newest(store) == epoch or _owner(store, epoch + 1) == owner:  # not made, or made and not synced
            raise
        created = False  # the driver that was faster sweeps partial files, also of this lease
    if not created:
        raise LockError("run-locked", "another driver was faster", where=store.where, fix="Let it finish.")
    if store.create(_lease_path(epoch + 1), canonical_json(owner)):
        what = "the same file can be created twice there, so nothing would keep a second driver out"
        fix = "Choose another place: an object store must honour If-None-Match."
        raise StoreError("store-denied", what, where=store.where, fix=fix)
    return Lease(store, epoch + 1)


def holder(store: Store) -> dict[str, Any] | None:
    """Who holds or held the run last: epoch, host, pid, `alive` (True, False, or None if it cannot be known here)."""
    epoch = _newest(store)
    if not epoch:
        return None
    owner = _owner(store, epoch)
    if _beat(store, epoch) == b"released":
        alive: bool | None = False
    elif owner.get("boot") == _me()["boot"]:
        is_mine = owner.get("pid") == os.getpid()
        alive = _is_running(owner) and (not is_mine or (store.where, epoch) in _held)
    else:
        alive = None
    return {"epoch": epoch, "host": owner.get("host", "?"), "pid": owner.get("pid", 0), "alive": alive}


def check_free(store: Store) -> dict[str, Any] | None:
    """Who held the run last, as `holder`, without taking the lease.

    Raises
    ------
    LockError : `run-locked`: a driver on this machine is alive.
    """
    owner = holder(store)
    if owner is not None and owner["alive"]:
        who = f"host {owner['host']}, pid {owner['pid']}"
        raise LockError("run-locked", f"held by {who}", where=store.where, fix="Let it finish, or end that process first.")
    return owner


def _wait_until_gone(store: Store, epoch: int, patience_s: float, say: Callable[[str], None]) -> None:
    owner = check_free(store)
    if owner is None or owner["alive"] is False:
        return
    who = f"host {owner['host']}, pid {owner['pid']}"
    say(f"another driver ({who}) may be alive: watching it for {patience_s:.0f} s")
    seen, started = _beat(store, epoch), time.monotonic()
    while time.monotonic() - started < patience_s:
        time.sleep(min(1.0, patience_s / 20))
        now = _beat(store, epoch)
        if now == b"released":
            return
        if now != seen:
            raise LockError("run-locked", f"held by {who}, which is working", where=store.where, fix="Let it finish.")


def _me() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "boot": f"{platform.node()}:{_boot_id()}:{_pid_namespace()}",
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _pid_namespace() -> str:
    """Where process numbers are counted: two containers of one machine do not see each other's processes."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since the machine did: unlike psutil's time, setting the clock does not move it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return f"{psutil.Process(pid).create_time():.2f}"


def _is_running(owner: dict[str, Any]) -> bool:
    try:
        pid = int(owner["pid"])
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and _started(pid) == owner["started"]
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return False


def _owner(store: Store, epoch: int) -> dict[str, Any]:
    try:
        owner = json.loads(store.get(_lease_path(epoch)))
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _beat(store: Store, epoch: int) -> bytes:
    try:
        return store.get(_beat_path(epoch))
    except FileNotFoundError:
        return b""


def _newest(store: Store) -> int:
    names = (re.fullmatch(r"lease/([0-9]+)\.json", path) for path in store.list("lease"))
    return max((int(name[1]) for name in names if name), default=0)


def _lease_path(epoch: int) -> str:
    return f"lease/{epoch:06d}.json"


def _beat_path(epoch: int) -> str:
    return f"lease/{epoch:06d}.beat"
