"""Generations of a run: prompts that were added later have a folder of their own, and no finished file changes.

Generation 0 is the run as it was started. Generation n holds, in `extensions/000n/`, the files that name all prompts of
that time: request, manifest, parts, receipts. Everything else is shared. A `Generation` is a store that shows one of them
under the names of a run that was never extended, so that readers and writers need not know of any of this.
"""

from __future__ import annotations

import json
from pathlib import Path

from eo_batch.core.errors import IntegrityError
from eo_batch.outputs.doors import Door
from eo_batch.outputs.store import Store

OWN = ("request.json", "manifest.json", "parts", "receipts", "failures", "plan.json")
"""What each generation has of its own; all other names are those of the run."""


class Generation(Store):
    """Files of a run as one generation sees them.

    Parameters
    ----------
    where : of the run.
    number : 0 for the run as it was started; n for what the n-th extension made of it.
    """

    def __init__(self, where: str | Path | Door, number: int = 0) -> None:
        super().__init__(where)
        self.number = number

    def __repr__(self) -> str:
        return f"Generation({self.where!r}, {self.number})"

    @property
    def earlier(self) -> Generation | None:
        """The generation before this one."""
        return Generation(self.door, self.number - 1) if self.number else None

    @property
    def following(self) -> Generation:
        """The generation after this one, whether it is there or not."""
        return Generation(self.door, self.number + 1)

    def place(self, path: str) -> str:
        """Where `path` is, relative to the run directory: every access to a file goes through here."""
        is_own = self.number and path.split("/", 1)[0] in OWN
        return f"extensions/{self.number:04d}/{path}" if is_own else path


def generations(where: str | Path) -> list[Generation]:
    """All generations of the run at `where`, oldest first; the first one whether there is a run or not."""
    found = [Generation(where)]
    while found[-1].following.exists("request.json"):
        found.append(found[-1].following)
    return found


def newest(where: str | Path) -> Generation:
    """The generation that drivers work on."""
    return generations(where)[-1]


def check_no_gap(store: Generation) -> None:
    """Refuse to take `store` for the newest generation where files of a later one are: part of an extension is gone.

    Raises
    ------
    IntegrityError : `shard-missing`.
    """
    for name in store.folders("extensions"):
        left = next(store.list(f"extensions/{name}"), None) if name.isdigit() and int(name) > store.number else None
        if left is not None:
            lost = store.following.place("request.json")
            folder = store.named(f"extensions/{name}")
            fix = f"Restore it from a copy, or give up what was added then: delete `{folder}` and all after it, and resume."
            raise IntegrityError("shard-missing", f"{lost} is gone, but {left} is there", where=store.where, fix=fix)


def published(where: str | Path) -> Generation:
    """The generation that readers see: the one that `COMPLETE.json` names, or the newest of a run that has none."""
    chain = generations(where)
    marker = _named(chain[0], "COMPLETE.json", "run")
    return next((store for store in chain if marker is not None and _manifest(store) == marker), chain[-1])


def is_published(store: Generation) -> bool:
    """`COMPLETE.json` names this generation."""
    marker = _named(store, "COMPLETE.json", "run")
    return marker is not None and _manifest(store) == marker


def check_published(store: Generation) -> None:
    """Refuse to read results as those of `store` where they are of a generation that is gone.

    Raises
    ------
    IntegrityError : `receipt-mismatch`.
    """
    if store.exists("COMPLETE.json") and not is_published(store):
        what, where = "COMPLETE.json speaks of another run", store.where
        fix = f"See `eo-batch verify {where}`; what is there is published by `eo-batch resume {where}`."
        raise IntegrityError("receipt-mismatch", what, where=where, fix=fix)


def with_manifest(where: str | Path, digest: str) -> Generation:
    """The generation whose manifest has this digest; the newest where none has it, so that its manifest is judged."""
    chain = generations(where)
    return next((store for store in chain if _manifest(store) == digest), chain[-1])


def _manifest(store: Store) -> str | None:
    return _named(store, "manifest.json", "digest")


def _named(store: Store, path: str, key: str) -> str | None:
    """A text in a JSON file, or None where it cannot be had: what is damaged is judged by those who read it in earnest."""
    try:
        value = json.loads(store.get(path))[key]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None
