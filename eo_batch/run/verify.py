"""Holds a run against its receipts and its marker: finds what is missing, damaged or foreign, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eo_batch.core.digest import ListDigest, sha256
from eo_batch.core.errors import EoBatchError, IntegrityError
from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.store import Store
from eo_batch.run.events import Event, Listener, silent
from eo_batch.run.ledger import failures, get_receipt, receipt_keys, receipt_path
from eo_batch.run.manifest import RunInputs, read_inputs, read_manifest, read_request
from eo_batch.run.merge import read_marker


@dataclass(frozen=True)
class Problem:
    """One thing wrong: an error code, the chunk ("" if none) and the file."""

    code: str
    key: str
    path: str
    text: str


@dataclass(frozen=True)
class Verification:
    """Result of a verification; `ok` means: complete, and every byte is what was written."""

    path: Path
    complete: bool
    chunks: int
    files: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Complete and without a problem."""
        return self.complete and not self.problems

    @property
    def exit_status(self) -> int:
        """0 fine, 3 unfinished, 5 damaged."""
        if self.problems:
            return 5
        return 0 if self.complete else 3

    def as_dict(self) -> dict[str, Any]:
        """The verification as JSON values."""
        return {
            "run": str(self.path),
            "ok": self.ok,
            "complete": self.complete,
            "chunks": self.chunks,
            "files": self.files,
            "problems": [asdict(problem) for problem in self.problems],
        }


def verify_run(out: Path, *, read_data: bool = True, listener: Listener = silent) -> Verification:
    """Check every file of a run.

    Parameters
    ----------
    read_data : read and hash every file; otherwise only check that files are there and not empty.

    Raises
    ------
    ConfigError : there is no run in the folder.
    """
    store = Store(out)
    try:
        if read_manifest(store) is None and not store.exists("items.parquet"):
            read_request(store)
            return Verification(store.root, False, 0, 0, ())  # stopped before its search was done: nothing to check
        inputs = read_inputs(store)
    except IntegrityError as error:
        path = "items.parquet" if error.code == "shard-missing" else "manifest.json"
        return Verification(store.root, False, 0, 0, (Problem(error.code, "", path, str(error)),))
    problems: list[Problem] = []
    chunks = files = 0
    for receipt, problem in _receipts(store):
        chunks += 1
        if problem:
            problems.append(problem)
            continue
        assert receipt is not None
        files += len(receipt.files)
        problems += _damage(store, receipt, read_data=read_data)
        listener(Event("chunk", receipt.key, chunks, inputs.chunk_count))
    marker, found = _check_marker(store, inputs, read_data=read_data)
    return Verification(store.root, marker, chunks, files, (*problems, *found))


def requeue_damaged(store: Store, inputs: RunInputs) -> list[str]:
    """Forget every damaged chunk, so that it is computed again; what was forgotten, one line each."""
    said = []
    for receipt, problem in _receipts(store):
        damage = [problem] if problem else _damage(store, receipt, read_data=True) if receipt else []
        if damage:
            store.delete("COMPLETE.json")
            store.delete(receipt_path(damage[0].key))
            said += [f"repair: {found.text}" for found in damage]
    try:
        _, found = _check_marker(store, inputs, read_data=True)
    except EoBatchError as error:
        found = [Problem("receipt-mismatch", "", "COMPLETE.json", str(error))]
    if found:
        store.delete("COMPLETE.json")
        said += [f"repair: {problem.text}" for problem in found]
    return said


def _receipts(store: Store) -> Iterator[tuple[ChunkReceipt | None, Problem | None]]:
    for key in receipt_keys(store):
        try:
            yield get_receipt(store, key), None
        except IntegrityError as error:
            yield None, Problem(error.code, key, receipt_path(key), str(error))


def _damage(store: Store, receipt: ChunkReceipt, *, read_data: bool) -> list[Problem]:
    problems = []
    for path, expected in receipt.files.items():
        where = f"chunk {receipt.key}: {path}"
        if not store.exists(path):
            problems.append(Problem("shard-missing", receipt.key, path, f"{where} is missing"))
        elif store.size(path) == 0:
            problems.append(Problem("shard-mismatch", receipt.key, path, f"{where} is empty"))
        elif read_data and sha256(store.get(path)) != expected:
            problems.append(Problem("shard-mismatch", receipt.key, path, f"{where} is not what was written"))
    return problems


def _check_marker(store: Store, inputs: RunInputs, *, read_data: bool) -> tuple[bool, list[Problem]]:
    """Whether the run is marked complete, and what contradicts the marker."""
    try:
        marker = read_marker(store)
    except IntegrityError as error:
        return False, [Problem(error.code, "", "COMPLETE.json", str(error))]
    if marker is None:
        return False, []
    problems = []
    for path, expected in marker["files"].items():
        if not store.exists(path):
            problems.append(Problem("shard-missing", "", path, f"{path} is missing"))
        elif read_data and sha256(store.get(path)) != expected:
            problems.append(Problem("shard-mismatch", "", path, f"{path} is not what was written"))
    manifest = read_manifest(store)
    if manifest is None or manifest["digest"] != marker["run"]:
        problems.append(Problem("receipt-mismatch", "", "manifest.json", "manifest.json is not the one of the marker"))
    try:
        chain = ListDigest()
        for key in receipt_keys(store):
            chain.add([key, get_receipt(store, key).digest])
        if chain.hexdigest != marker["receipts"]:
            problems.append(Problem("receipt-mismatch", "", "receipts", "the receipts are not those of the marker"))
    except IntegrityError:
        pass  # named already, chunk by chunk
    planned = inputs.chunk_count
    if marker["chunks"]["total"] != planned or (not marker["partial"] and any(True for _ in failures(store))):
        problems.append(Problem("receipt-mismatch", "", "COMPLETE.json", "the marker does not agree with the plan"))
    return True, problems
