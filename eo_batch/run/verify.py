"""Holds a run against its receipts and its marker: finds what is missing, damaged or foreign, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eo_batch.core.digest import ListDigest, sha256
from eo_batch.core.errors import ConfigError, EoBatchError, IntegrityError
from eo_batch.run.generations import Generation, check_no_gap, generations, published
from eo_batch.run.ledger import failures, get_receipt, receipt_keys, receipt_path
from eo_batch.run.manifest import RunInputs, read_inputs, read_manifest, read_request
from eo_batch.run.merge import read_marker
from eo_batch.run.told.events import Event, Listener, silent


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

    path: str
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


def verify_run(out: str | Path, *, read_data: bool = True, listener: Listener = silent) -> Verification:
    """Check every file of a run.

    Parameters
    ----------
    read_data : read and hash every file; otherwise only check that files are there and not empty.

    Raises
    ------
    ConfigError : there is no run in the folder.
    """
    chain = generations(out)
    store = chain[0]
    if not (store.exists("manifest.json") or store.exists("items.parquet")):
        read_request(store)
        return Verification(store.where, False, 0, 0, ())  # stopped before its search was done: nothing to check
    inputs, problems = _check_inputs(chain)
    if problems:
        return Verification(store.where, False, 0, 0, tuple(problems))
    chunks = files = done = 0
    total = sum(frozen.chunk_count for frozen in inputs)
    for store in chain:
        for key, count, found in _check_chunks(store, read_data=read_data):
            done += 1
            chunks += store.number == 0
            files += count
            problems += found
            listener(Event("chunk", key, done, total))
    complete, found = _check_marker(chain, inputs, read_data=read_data)
    return Verification(chain[0].where, complete, chunks, files, (*problems, *found))


def forget_damaged_manifests(chain: Sequence[Generation]) -> list[str]:
    """Delete manifests that are damaged, so that they are written again; one line each.

    One that is whole must be left: it says who answered, and holds the others to it.
    """
    damaged = {}
    for store in chain:
        try:
            read_manifest(store)
        except IntegrityError as error:
            damaged[store] = f"repair: {error.what}: {store.place('manifest.json')}"
    if len(damaged) == len(chain):
        return []
    for store in damaged:
        store.delete("manifest.json")
    return list(damaged.values())


def requeue_damaged(chain: Sequence[Generation], inputs: Sequence[RunInputs]) -> list[str]:
    """Forget every damaged chunk, so that it is computed again; what was forgotten, one line each.

    Parameters
    ----------
    chain : all generations of the run, oldest first. What a later one made of a chunk rests on the earlier ones: a chunk
        that is damaged in one is forgotten in all that follow.
    """
    said = []
    for store in chain:
        for key, _, found in _check_chunks(store, read_data=True):
            if found:
                store.delete("COMPLETE.json")
                for later in reversed(chain[store.number :]):
                    later.delete(receipt_path(key))
                said += [f"repair: {problem.text}" for problem in found]
    try:
        _, found = _check_marker(chain, inputs, read_data=True)
    except EoBatchError as error:
        found = [Problem("receipt-mismatch", "", "COMPLETE.json", str(error))]
    if found:
        chain[0].delete("COMPLETE.json")
        said += [f"repair: {problem.text}" for problem in found]
    return said


def _check_inputs(chain: Sequence[Generation]) -> tuple[list[RunInputs], list[Problem]]:
    """Inputs of all generations, and what is wrong with the files that say what the run is."""
    inputs: list[RunInputs] = []
    problems: dict[str, Problem] = {}
    for store in chain:
        try:
            inputs.append(read_inputs(store))
        except (ConfigError, IntegrityError) as error:
            is_config = isinstance(error, ConfigError)
            path = store.place("request.json") if is_config else error.where.removeprefix(f"{store.where}/")
            problems.setdefault(path, Problem(error.code, "", path, str(error)))
        path = store.place("manifest.json")
        if store is not chain[-1] and not store.exists("manifest.json"):
            problems[path] = Problem("shard-missing", "", path, f"{path} is missing")
    try:
        check_no_gap(chain[-1])
    except IntegrityError as error:
        path = chain[-1].following.place("request.json")
        problems[path] = Problem(error.code, "", path, str(error))
    return inputs, list(problems.values())


def _check_chunks(store: Generation, *, read_data: bool) -> Iterator[tuple[str, int, list[Problem]]]:
    """Of every chunk of a generation: its key, how many files were checked, and what is wrong.

    Shards that an earlier generation wrote are checked there; here, that both receipts name the same ones.
    """
    for key in receipt_keys(store):
        try:
            receipt = get_receipt(store, key)
        except IntegrityError as error:
            yield key, 0, [Problem(error.code, key, store.place(receipt_path(key)), str(error))]
            continue
        if store.earlier is not None and not store.earlier.exists(receipt_path(key)):
            path = store.earlier.place(receipt_path(key))
            yield key, 0, [Problem("shard-missing", key, path, f"chunk {key}: {path} is missing")]
            continue
        shared = {path: sha for path, sha in _files_before(store, key).items() if store.place(path) == path}
        own = {path: sha for path, sha in receipt.files.items() if path not in shared}
        found = [_contradiction(store, key, path) for path, sha in shared.items() if receipt.files.get(path) != sha]
        yield key, len(own), [*found, *_damage(store, key, own, read_data=read_data)]


def _files_before(store: Generation, key: str) -> Mapping[str, str]:
    """Files of the chunk in the generation before; none where its receipt is damaged, which is told there."""
    if store.earlier is None:
        return {}
    try:
        return get_receipt(store.earlier, key).files
    except IntegrityError:
        return {}


def _contradiction(store: Generation, key: str, path: str) -> Problem:
    where = store.place(receipt_path(key))
    return Problem("receipt-mismatch", key, where, f"chunk {key}: {where} names another {path} than the receipt before it")


def _damage(store: Generation, key: str, files: Mapping[str, str], *, read_data: bool) -> list[Problem]:
    problems = []
    for path, expected in files.items():
        place = store.place(path)
        where = f"chunk {key}: {place}"
        if not store.exists(path):
            problems.append(Problem("shard-missing", key, place, f"{where} is missing"))
        elif store.size(path) == 0:
            problems.append(Problem("shard-mismatch", key, place, f"{where} is empty"))
        elif read_data and sha256(store.get(path)) != expected:
            problems.append(Problem("shard-mismatch", key, place, f"{where} is not what was written"))
    return problems


def _check_marker(chain: Sequence[Generation], inputs: Sequence[RunInputs], *, read_data: bool) -> tuple[bool, list[Problem]]:
    """Whether the newest generation is marked complete, and what contradicts the marker."""
    try:
        marker = read_marker(chain[0])
    except IntegrityError as error:
        return False, [Problem(error.code, "", "COMPLETE.json", str(error))]
    if marker is None:
        return False, []
    store = published(chain[0].where)
    problems = []
    for path, expected in marker["files"].items():
        if not store.exists(path):
            problems.append(Problem("shard-missing", "", path, f"{path} is missing"))
        elif read_data and sha256(store.get(path)) != expected:
            problems.append(Problem("shard-mismatch", "", path, f"{path} is not what was written"))
    manifest = read_manifest(store)
    if manifest is None or manifest["digest"] != marker["run"]:
        path = store.place("manifest.json")
        problems.append(Problem("receipt-mismatch", "", path, f"{path} is not the one of the marker"))
    try:
        chain_digest = ListDigest()
        for key in receipt_keys(store):
            chain_digest.add([key, get_receipt(store, key).digest])
        if chain_digest.hexdigest != marker["receipts"]:
            problems.append(Problem("receipt-mismatch", "", "receipts", "the receipts are not those of the marker"))
    except IntegrityError:
        pass  # named already, chunk by chunk
    planned = inputs[store.number].chunk_count
    if marker["chunks"]["total"] != planned or (not marker["partial"] and any(True for _ in failures(store))):
        problems.append(Problem("receipt-mismatch", "", "COMPLETE.json", "the marker does not agree with the plan"))
    return store.number == chain[-1].number, problems
