"""Published weights come onto this machine: downloaded once, converted to safetensors, kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from eo_batch.core.errors import ModelError
from eo_batch.models.weights import SUFFIX, WeightFiles, file_sha256, find_weights, need_libraries, read_metadata, weights_folder
from eo_batch.models.weights.checkpoints import Architecture, Listener, convert_checkpoint, find_architecture
from eo_batch.models.weights.disk import disk_error, whole_file
from eo_batch.models.weights.download import Hub, alone, download, in_library_cache, is_file, keep
from eo_batch.models.weights.hub_client import discreet, hub_endpoint
from eo_batch.models.weights.published import PublishedFile, published_files

SUM_BYTES = 1000
"""A file with one sha256 is never longer."""


def fetch(
    name: str,
    *,
    files: tuple[PublishedFile, ...] | None = None,
    architecture: Architecture | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> WeightFiles:
    """Weights `name`, ready to use; what is in the weights folder already is checked, not asked for again.

    Parameters
    ----------
    name : one of `published_names()`.
    files, architecture : instead of the published ones.
    folder : instead of `weights_folder() / name`.
    listener : told what is done, in bytes.
    wait : how seconds pass between tries.

    Raises
    ------
    ConfigError : `config-invalid`: unknown name, bad `HF_ENDPOINT`, another fetch is at work in this folder.
    ModelError : `weights-missing`: offline and not here; `weights-unreachable`: the hub does not give the file;
        `model-load`: it cannot be converted.
    PolicyError : `weights-hash`: not the pinned file (what was loaded is removed); `weights-unsafe`.
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    need_libraries("torch", "transformers", "safetensors", "huggingface_hub")
    files = published_files(name) if files is None else files
    architecture = find_architecture(name) if architecture is None else architecture
    folder = weights_folder() / name if folder is None else folder
    target = folder / f"{name}{SUFFIX}"
    hub = Hub(hub_endpoint(), listener or (lambda what, done, total: None), wait)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder), discreet():
            for file in sorted(files, key=lambda file: file.is_checkpoint):  # the small ones first
                if not file.is_checkpoint:
                    keep(file, folder / file.keep_as, hub)
                elif not _is_made_from(target, file):
                    _convert(file, target, architecture, hub)
    except OSError as error:
        raise disk_error(error, folder) from None
    return find_weights(target, architecture=architecture.name)


def is_fetched(name: str) -> bool:
    """Nothing would be downloaded for `name`."""
    folder = weights_folder() / name
    return all(
        _is_made_from(folder / f"{name}{SUFFIX}", file) if file.is_checkpoint else (folder / file.keep_as).is_file()
        for file in published_files(name)
    )


def _convert(file: PublishedFile, target: Path, architecture: Architecture, hub: Hub) -> None:
    """A checkpoint becomes `target`; what was downloaded for it is removed."""
    own = target.with_name(file.local_name)
    source = in_library_cache(file, hub)
    if source is None:
        source = own
        if not is_file(own, file, hub):
            download(file, own, hub)
    made = convert_checkpoint(
        source, target, architecture=architecture, source_sha256=file.sha256, replaces=True, listener=hub.listener
    )
    line = f"{made.sha256}  {target.name}\n".encode()  # as sha256sum writes and checks it
    with whole_file(_sum_file(target), needed=len(line)) as out:
        out.write(line)
    own.unlink(missing_ok=True)


def _is_made_from(target: Path, file: PublishedFile) -> bool:
    """`target` was made from this file, and is what was made; where it is damaged it is made again."""
    known = _sum_file(target)
    if not target.is_file() or not known.is_file() or known.stat().st_size > SUM_BYTES:
        return False
    try:
        made_from = read_metadata(target).get("source_sha256")
    except ModelError:
        return False
    return made_from == file.sha256 and known.read_bytes().startswith(file_sha256(target).encode())


def _sum_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")
