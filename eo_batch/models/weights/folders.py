"""Networks as transformers keeps them: a folder with a config, safetensors, and what goes with them.

A folder is found by path, or fetched once from the hub at a full commit. Where somebody has pinned the hash of a file it must be
that one; otherwise it must be what the hub announces for that commit. All hashes are written down and checked on every later use.
Nothing in a folder is run, and no weights but safetensors are read.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eo_batch.core.digest import canonical_json, digest
from eo_batch.core.errors import ConfigError, ModelError, PolicyError
from eo_batch.models.weights import (
    CONFIG_BYTES,
    SUFFIX,
    file_sha256,
    local_path,
    need_libraries,
    parse_config,
    read_weights,
    regular_file,
    unreadable,
    weights_folder,
)
from eo_batch.models.weights.checkpoints import Listener
from eo_batch.models.weights.disk import disk_error, whole_file
from eo_batch.models.weights.download import Hub, alone, announced, keep
from eo_batch.models.weights.hub_client import discreet, hub_endpoint
from eo_batch.models.weights.published import RECORD, PublishedFolder, folder_names, published_folder
from eo_batch.models.weights.watch import Stamp, stamp_of

CONFIG, WEIGHTS = "config.json", f"model{SUFFIX}"
INDEX = f"{WEIGHTS}.index.json"
PROCESSING = ("preprocessor_config.json", "processor_config.json")
"""Where the preparation of images is described: the first that is there; in the second under `image_processor`."""
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
"""Files that make a tokenizer: the first set that is there."""
SMALL_BYTES, LARGE_BYTES, INDEX_BYTES, MOST_SHARDS = 16 << 20, 8 << 30, 4 << 20, 64
"""What no file of words, no file of weights, no index exceeds; so many files of weights at most."""


@dataclass(frozen=True)
class FolderFiles:
    """What a network is made from.

    Parameters
    ----------
    folder : where the files are.
    config : sizes of the network, as in `config.json`.
    processing : what is done to an image first, as the file says; empty where there is none.
    weights : safetensors files, in order.
    tokenizer : `tokenizer.json`, or `vocab.json` with `merges.txt` beside it, or `vocab.txt`; None where there is none.
    sha256 : of all these files together: the identity of the network.
    stamp : of each file of weights before its sha256 was made; for `Watch`.
    sums : name of each file -> its own sha256.
    """

    folder: Path
    config: Mapping[str, Any]
    processing: Mapping[str, Any]
    weights: tuple[Path, ...]
    tokenizer: Path | None
    sha256: str
    stamp: tuple[Stamp, ...]
    sums: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_sha256(self) -> str:
        """Of the file of weights alone; where there are several, a digest of theirs."""
        sums = [self.sums[path.name] for path in self.weights]
        return sums[0] if len(sums) == 1 else digest(sums)

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(stamp[2] for stamp in self.stamp)


def find_folder(name_or_path: str | os.PathLike[str], *, architecture: str | Collection[str] = ()) -> FolderFiles:
    """The files of a network on this machine.

    Parameters
    ----------
    name_or_path : one of `folder_names()` (or its name on the hub): the fetched one; else a folder.
    architecture : `model_type` that its config must have, or several that it may; empty: any.

    Raises
    ------
    ModelError : `weights-missing`; `model-load`: no description of a network, of another one, or no weights that can be read.
    PolicyError : `weights-hash`: a fetched file is not what it was when it was fetched.
    """
    published = published_folder(str(name_or_path))
    folder = local_path(str(name_or_path)) if published is None else _fetched_folder(published)
    config = _read_json(folder / CONFIG)
    _check_kind(config, (architecture,) if isinstance(architecture, str) else tuple(architecture), where=str(folder / CONFIG))
    weights, described = _weights_of(folder)
    processing, read = _processing_of(folder)
    tokenizer = next((names for names in TOKENIZERS if all((folder / name).is_file() for name in names)), ())
    for name in tokenizer:
        if regular_file(folder / name) > SMALL_BYTES:
            raise ModelError("model-load", "is too long for words of a network", where=str(folder / name))
    stamp = tuple(stamp_of(path) for path in weights)
    names = sorted({CONFIG, *described, *read, *tokenizer, *(path.name for path in weights)})
    sums = {name: file_sha256(folder / name) for name in names}
    _check_record(folder, sums, published)
    place = folder / tokenizer[0] if tokenizer else None
    return FolderFiles(folder, config, processing, weights, place, digest(sums), stamp, sums)


def read_folder(files: FolderFiles) -> dict[str, Any]:
    """All tensors of a folder, name -> torch.Tensor on the CPU; views of the files, read when they are touched.

    Raises
    ------
    ModelError : `model-load`: not safetensors, or a tensor is in two files.
    """
    tensors: dict[str, Any] = {}
    for path in files.weights:
        found, _ = read_weights(path)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise ModelError("model-load", f"{twice[0][:100]} is in another file too", where=str(path))
        tensors |= found
    return tensors


def fetch_folder(
    name: str,
    *,
    revision: str | None = None,
    published: PublishedFolder | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> FolderFiles:
    """A published network, ready to use; what is here already is checked, not asked for again.

    Show its licence to the user first. An interrupted download goes on where it ended.

    Parameters
    ----------
    name : one of `folder_names()`.
    revision : full commit, 40 hexadecimal digits, where the table names none: branches move, and nothing else pins those files.
    published : instead of the line of the table.
    folder : instead of `weights_folder() / name / revision`.
    listener : told what is done, in bytes.
    wait : how seconds pass between tries.

    Raises
    ------
    ConfigError : `config-invalid`: unknown name, no full commit, another fetch is at work in this folder.
    ModelError : `weights-missing`: offline and not here; `weights-unreachable`: the hub does not give a file (the message says so
        where an account must be approved first); `model-load`: not such a network.
    PolicyError : `weights-hash`: not the pinned file, or not what the hub announces.
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    published = _table_line(name) if published is None else published
    revision = commit_of(published, revision)
    need_libraries("huggingface_hub", "safetensors", "torch", "transformers")
    folder = weights_folder() / published.name / revision if folder is None else folder
    if _is_whole(published, folder):
        return find_folder(folder, architecture=published.architectures)
    hub = Hub(hub_endpoint(), listener or (lambda what, done, total: None), wait)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder), discreet():
            sums = _load(published, revision, folder, hub)
        said = canonical_json({"repo": published.repo, "revision": revision, "files": sums})
        with whole_file(folder / RECORD, needed=len(said)) as file:
            file.write(said)
    except OSError as error:
        raise disk_error(error, folder) from None
    return find_folder(folder, architecture=published.architectures)


def commit_of(published: PublishedFolder, revision: str | None) -> str:
    """The full commit to fetch: the pinned one, or the one that the user names where there is no pin.

    Raises
    ------
    ConfigError : `config-invalid`: one is pinned and another was named, none is pinned and none was named, or no full commit.
    """
    if published.revision:
        if revision not in (None, published.revision):
            what = f"the weights {published.name} are pinned: there is one commit of them"
            fix = "Leave it out. Files of another commit are used by the path of a folder."
            raise ConfigError("config-invalid", what, where="--revision", fix=fix)
        return published.revision
    if revision is None:
        what = "nobody has published a sha256 of these weights, so they are not pinned: you say which commit you trust"
        fix = f"Run: {published.command}, with the 40 digits that the history of {published.repo} on the hub shows."
        raise ConfigError("config-invalid", what, where="--revision", fix=fix)
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        fix = f"Give the 40 hexadecimal digits that the history of {published.repo} shows for the commit you trust."
        raise ConfigError("config-invalid", f"{revision!r} is no full commit", where="--revision", fix=fix)
    return revision


def fetched_folders(name: str) -> list[Path]:
    """Folders of the commits of a published network that were fetched; what they hold is not looked at."""
    return sorted(path.parent for path in (weights_folder() / name).glob(f"*/{RECORD}"))


def is_fetched(published: PublishedFolder, revision: str) -> bool:
    """Nothing would be downloaded for this commit."""
    return _is_whole(published, weights_folder() / published.name / revision)


def _is_whole(published: PublishedFolder, folder: Path) -> bool:
    """It was fetched, and nothing of it was removed since."""
    return all((folder / name).is_file() for name in (RECORD, *(file.filename for file in published.files)))


def _table_line(name: str) -> PublishedFolder:
    found = published_folder(name)
    if found is None:
        fix = f"Known: {', '.join(folder_names())}."
        raise ConfigError("config-invalid", f'no published network is known as "{name}"', where="weights", fix=fix)
    return found


def _fetched_folder(published: PublishedFolder) -> Path:
    """Folder of the pinned commit, or of the one commit that was fetched."""
    found = fetched_folders(published.name)
    if published.revision:
        found = [folder for folder in found if folder.name == published.revision]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} commits of {published.name} are here" if found else f'"{published.name}" is not on this machine'
    fix = "Give the folder of one of them." if found else f"Run: {published.command}, or give a folder that holds it."
    raise ModelError("weights-missing", what, where=str(weights_folder() / published.name), fix=fix)


def _load(published: PublishedFolder, revision: str, folder: Path, hub: Hub) -> dict[str, str]:
    """All files in `folder`, small ones first; name -> sha256."""
    sums: dict[str, str] = {}
    for wanted in sorted(published.files, key=lambda file: file.filename.endswith(SUFFIX)):
        file = published.file(wanted, revision=revision)
        if not (file.sha256 and file.bytes):
            file = announced(file, hub, most=LARGE_BYTES if file.filename.endswith(SUFFIX) else SMALL_BYTES)
        keep(file, folder / file.filename, hub)
        sums[file.filename] = file.sha256 or file_sha256(folder / file.filename)
        if file.filename == CONFIG:  # before anything large is asked for
            _check_kind(_read_json(folder / CONFIG), published.architectures, where=str(folder / CONFIG))
    return sums


def _check_kind(config: Mapping[str, Any], architectures: Collection[str], *, where: str) -> None:
    kind = str(config.get("model_type", ""))[:50]
    if architectures and kind not in architectures:
        known = " or ".join(f'"{name}"' for name in architectures)
        fix = "Give the folder of such a network, as its authors published it."
        raise ModelError("model-load", f'describes a network of type "{kind}", not {known}', where=where, fix=fix)


def _weights_of(folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of weights, and the name of the index that lists them where there are several."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        regular_file(folder / WEIGHTS)
        return (folder / WEIGHTS,), ()
    where = str(folder / INDEX)
    if regular_file(folder / INDEX) > INDEX_BYTES:
        raise ModelError("model-load", "is too long for an index of weights", where=where)
    try:
        table = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(table.values()))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError("model-load", "is no index of weights", where=where) from None
    if not 1 <= len(names) <= MOST_SHARDS:
        raise ModelError("model-load", f"names {len(names)} files of weights", where=where)
    for name in names:
        if not isinstance(name, str) or re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name) is None:
            raise PolicyError("path-escape", f"names {str(name)[:100]!r}, which is no file of weights beside it", where=where)
        regular_file(folder / name)
    return tuple(folder / name for name in names), (INDEX,)


def _processing_of(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is done to an image first, and the file that says so."""
    for name in PROCESSING:
        if (folder / name).exists():
            said = _read_json(folder / name)
            inner = said.get("image_processor", said if name == PROCESSING[0] else {})
            return inner if isinstance(inner, dict) else {}, (name,)
    return {}, ()


def _check_record(folder: Path, sums: Mapping[str, str], published: PublishedFolder | None) -> None:
    """Files that were fetched are what they were then; those that are used by name, or say so, are what the table pins."""
    record = folder / RECORD
    said = _read_json(record) if record.exists() else {}
    known = said.get("files", {}) if record.exists() else sums
    if published is None:
        told = published_folder(str(said.get("repo", "")))
        published = told if told is not None and said.get("revision") == told.revision else None
    pinned = {file.filename: file.sha256 for file in published.files if file.sha256} if published else {}
    for name, found in sums.items():
        if not isinstance(known, Mapping) or known.get(name) != found or pinned.get(name, found) != found:
            fix = f"Remove {folder} and fetch the weights again."
            raise PolicyError("weights-hash", "is not what was fetched", where=str(folder / name), fix=fix)


def _read_json(path: Path) -> dict[str, Any]:
    if regular_file(path) > CONFIG_BYTES:
        raise ModelError("model-load", "is too long for a description of a network", where=str(path))
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:  # also no UTF-8, no JSON
        why = str(error)[:200]
        raise ModelError("model-load", "is no description of a network", where=str(path), why=why) from None
