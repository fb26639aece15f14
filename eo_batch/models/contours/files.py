"""Files of a contour network: found on this machine, or fetched once from the hub at a commit that the user names.

Nobody we could check has published the sha256 of these weights, so they cannot be pinned like those in `published`. What is
fetched must be what the hub announces for that commit; its sha256 is written down and checked on every later use.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import ConfigError, ModelError, PolicyError
from eo_batch.core.hrefs import redact
from eo_batch.models.weights import (
    CONFIG_BYTES,
    file_sha256,
    local_path,
    need_libraries,
    parse_config,
    regular_file,
    weights_folder,
)
from eo_batch.models.weights.checkpoints import Listener
from eo_batch.models.weights.disk import disk_error, whole_file
from eo_batch.models.weights.hub import Hub, alone, download
from eo_batch.models.weights.hub_client import discreet, hub_endpoint, is_offline, transport_errors
from eo_batch.models.weights.published import PublishedFile
from eo_batch.models.weights.watch import Stamp, stamp_of
from eo_batch.version import __version__

NAME = "directsam"
"""Name for `load_contours` and of the folder of fetched files."""
REPO = "chendelong/DirectSAM-EntitySeg-1024px-0501"
"""The contour network that RemoteSAM's authors use: SegFormer, one logit (arXiv 2402.14327)."""
LICENCE = "not stated on the page of the weights. Whether you may use them is for you to find out"
SOURCE = "what the hub announces for this commit: trust on first use, not a pin"
COMMAND = f"eo-batch models fetch {NAME} --revision COMMIT"
CONFIG, WEIGHTS, PROCESSING, RECORD = "config.json", "model.safetensors", "preprocessor_config.json", "fetched.json"
LARGEST_BYTES = {CONFIG: CONFIG_BYTES, PROCESSING: CONFIG_BYTES, WEIGHTS: 1 << 30}
TIMEOUT_S = 30.0
AGENT = {"library_name": "eo-batch", "library_version": __version__}
"""Who asks: nothing else about this machine is told."""


@dataclass(frozen=True)
class ContourFiles:
    """What a contour network is made from.

    Parameters
    ----------
    weights : safetensors file.
    config : sizes of the network, as in `config.json`.
    processing : what is done to an image first, as in `preprocessor_config.json`.
    sha256 : of `weights`.
    stamp : of `weights` before their sha256 was made.
    """

    weights: Path
    config: Mapping[str, Any]
    processing: Mapping[str, Any]
    sha256: str
    stamp: Stamp


def find_contours(name_or_path: str | os.PathLike[str]) -> ContourFiles:
    """The files of a contour network on this machine.

    Parameters
    ----------
    name_or_path : a folder with `config.json`, `model.safetensors` and `preprocessor_config.json`; or "directsam" (or its name
        on the hub): the fetched one, if there is exactly one.

    Raises
    ------
    ModelError : `weights-missing`, `model-load`.
    PolicyError : `weights-hash`: a fetched file is not what it was when it was fetched.
    """
    folder = _fetched_folder() if str(name_or_path) in (NAME, REPO) else local_path(str(name_or_path))
    names = (CONFIG, PROCESSING, WEIGHTS)
    for name in names:
        regular_file(folder / name)
    stamp = stamp_of(folder / WEIGHTS)
    sums = {name: file_sha256(folder / name) for name in names}
    record = folder / RECORD
    if record.exists():
        known = _read_json(record).get("files", {})
        for name, found in sums.items():
            if known.get(name) != found:
                fix = f"Remove {folder} and fetch the weights again."
                raise PolicyError("weights-hash", "is not what was fetched", where=str(folder / name), fix=fix)
    return ContourFiles(folder / WEIGHTS, _read_json(folder / CONFIG), _read_json(folder / PROCESSING), sums[WEIGHTS], stamp)


def fetch_contours(
    revision: str,
    *,
    repo: str = REPO,
    folder: Path | None = None,
    listener: Listener | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> ContourFiles:
    """The contour network of one commit of the hub; what is here already is checked, not asked for again.

    Show `LICENCE` to the user first. An interrupted download of the weights goes on where it ended.

    Parameters
    ----------
    revision : full commit, 40 hexadecimal digits, chosen by the user: branches move, and nothing else pins these files.
    folder : instead of `weights_folder() / "directsam" / revision`.
    listener : told what is done, in bytes.
    wait : how seconds pass between tries.

    Raises
    ------
    ConfigError : `config-invalid`: the revision is no full commit, another fetch is at work in this folder.
    ModelError : `weights-missing`: offline and not here; `weights-unreachable`: the hub does not give a file.
    PolicyError : `weights-hash`: not the file that the hub announces.
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    check_revision(revision, repo=repo)
    need_libraries("huggingface_hub", "safetensors", "torch", "transformers")
    folder = weights_folder() / NAME / revision if folder is None else folder
    if (folder / RECORD).exists():
        return find_contours(folder)
    hub = Hub(hub_endpoint(), listener or (lambda what, done, total: None), wait)
    if is_offline():
        what, fix = "is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub", "Unset HF_HUB_OFFLINE."
        raise ModelError("weights-missing", what, where=f"{repo} at {revision[:12]}", fix=fix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder), discreet():
            sums = {name: _load_small(repo, revision, name, folder, hub) for name in (CONFIG, PROCESSING)}
            sums[WEIGHTS] = _load_weights(repo, revision, folder, hub)
        said = canonical_json({"repo": repo, "revision": revision, "files": sums})
        with whole_file(folder / RECORD, needed=len(said)) as file:
            file.write(said)
    except OSError as error:
        raise disk_error(error, folder) from None
    return find_contours(folder)


def fetched_folders() -> list[Path]:
    """Folders of the commits that were fetched."""
    return sorted(path.parent for path in (weights_folder() / NAME).glob(f"*/{RECORD}"))


def _fetched_folder() -> Path:
    """Folder of the one commit that was fetched."""
    found = fetched_folders()
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} contour networks were fetched" if found else "the contour network is not on this machine"
    fix = "Give the folder of one of them." if found else f"Run: {COMMAND}, or give a folder that holds it."
    raise ModelError("weights-missing", what, where=str(weights_folder() / NAME), fix=fix)


def check_revision(revision: str, *, repo: str = REPO) -> None:
    """Refuse what can move.

    Raises
    ------
    ConfigError : `config-invalid`: no full commit.
    """
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        fix = f"Give the 40 hexadecimal digits that the history of {repo} shows for the commit you trust."
        raise ConfigError("config-invalid", f"{revision!r} is no full commit", where="revision", fix=fix)


def is_fetched(revision: str) -> bool:
    """Nothing would be downloaded for this commit."""
    return (weights_folder() / NAME / revision / RECORD).exists()


def _load_small(repo: str, revision: str, name: str, folder: Path, hub: Hub) -> str:
    """A description of the network in `folder`; its sha256."""
    from huggingface_hub import hf_hub_download

    size, _ = _announced(repo, revision, name, hub)
    with TemporaryDirectory(dir=folder, prefix=".loading-") as loading, _asking(repo, revision, name):
        loaded = Path(hf_hub_download(repo, name, revision=revision, endpoint=hub.endpoint, cache_dir=loading, **AGENT))
        if loaded.stat().st_size != size:
            raise _wrong(repo, revision, name, f"it has {loaded.stat().st_size:,} bytes, the hub announces {size:,}")
        with whole_file(folder / name, needed=size) as copy, loaded.open("rb") as opened:
            shutil.copyfileobj(opened, copy)
    return file_sha256(folder / name)


def _load_weights(repo: str, revision: str, folder: Path, hub: Hub) -> str:
    """The weights in `folder`; their sha256, which is the one that the hub announces."""
    size, etag = _announced(repo, revision, WEIGHTS, hub)
    if re.fullmatch("[0-9a-f]{64}", etag) is None:  # large files are named by their sha256
        raise _wrong(repo, revision, WEIGHTS, f"the hub announces {etag[:16]!r} instead of a sha256")
    file = PublishedFile(NAME, repo, revision, WEIGHTS, etag, size, LICENCE, SOURCE, keep_as=WEIGHTS)
    download(file, folder / WEIGHTS, hub)
    return etag


def _announced(repo: str, revision: str, name: str, hub: Hub) -> tuple[int, str]:
    """(bytes, etag) that the hub names for a file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _asking(repo, revision, name):
        url = hf_hub_url(repo, name, revision=revision, endpoint=hub.endpoint)
        said = get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=hub.endpoint, **AGENT)
    if said.size is None or said.size > LARGEST_BYTES[name]:
        raise _wrong(repo, revision, name, f"the hub announces {said.size} bytes, more than any such file has")
    return said.size, (said.etag or "").lower()


@contextmanager
def _asking(repo: str, revision: str, name: str) -> Iterator[None]:
    """What the hub or the network does wrong, told as an error of ours."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (*transport_errors(), LocalEntryNotFoundError) as error:
        why = f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:150]}"
        fix = "Check the commit, and HF_ENDPOINT or HF_TOKEN if you need them, then try again."
        where = f"{repo}/{name} at {revision[:12]}"
        raise ModelError("weights-unreachable", "the hub does not give this file", where=where, why=why, fix=fix) from None


def _wrong(repo: str, revision: str, name: str, why: str) -> PolicyError:
    where = f"{repo}/{name} at {revision[:12]}"
    fix = "It is not used. Check HF_ENDPOINT and proxies, then try again."
    return PolicyError("weights-hash", "is not the file that the hub announces", where=where, why=why, fix=fix)


def _read_json(path: Path) -> dict[str, Any]:
    if regular_file(path) > CONFIG_BYTES:
        raise ModelError("model-load", "is too long for a description of a network", where=str(path))
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also no UTF-8, no JSON
        why = str(error)[:200]
        raise ModelError("model-load", "is no description of a network", where=str(path), why=why) from None
