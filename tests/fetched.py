"""Small networks in a weights folder, as if they had been fetched from lines of the table that nobody pinned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from eo_batch.models.weights.published import FolderFile, PublishedFolder, published_folder

COMMIT = "c" * 40


def free_line(name: str) -> PublishedFolder:
    """The line of the table that this network is fetched by, if nobody had pinned it."""
    line = published_folder(name)
    assert line is not None
    return replace(line, revision="", files=tuple(FolderFile(file.filename) for file in line.files))


def as_fetched(weights: Path, name: str, make: Callable[[Path], Any]) -> None:
    """Let `make` write this network into a weights folder, as `free_line(name)` would have fetched it."""
    line = free_line(name)
    folder = weights / name / COMMIT
    folder.mkdir(parents=True)
    make(folder)
    sums = {file.filename: hashlib.sha256((folder / file.filename).read_bytes()).hexdigest() for file in line.files}
    (folder / "fetched.json").write_text(json.dumps({"repo": line.repo, "revision": COMMIT, "files": sums}))
