"""Files of a contour network: found on this machine, or fetched once from the hub at a commit that the user names.

Nobody we could check has published the sha256 of these weights, so they cannot be pinned like those in `published`. What is
fetched must be what the hub announces for that commit; its sha256 is written down and checked on every later use.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import ConfigError, ModelError, PolicyError
from eo_batch.core.hrefs import redact
from eo_batch.models.disk import disk_error, whole_file
from eo_batch.models.hub_client import discreet, hub_endpoint, is_offline, transport_errors
from eo_batch.models.weights import CONFIG_BYTES, file_sha256, need_libraries, parse_config, regular_file, weights_folder

NAME = "directsam"
"""Name for `load_contours` and of the folder of fetched files."""
REPO = "chendelong/DirectSAM-EntitySeg-1024px-0501"
"""The contour network that RemoteSAM's authors use: SegFormer, one logit (arXiv 2402.14327)."""
LICENCE = "not stated on the page of the weights. Whether you may use them is for you to find out"
CONFIG, WEIGHTS, PROCESSING, RECORD = "config.json", "model.safetensors", "preprocessor_config.json", "fetched.json"
LARGEST_BYTES = {CONFIG: CONFIG_BYTES, PROCESSING: CONFIG_BYTES, WEIGHTS: 1 << 30}
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ContourFiles:
    """What a contour network is made from.

    Parameters
    ----------
    weights : safetensors file.
    config : sizes of the network, as in `config.json`.
    processing : what is done to an image first, as in `preprocessor_config.json`.
    sha256 : of `weights`.
    """

    weights: Path
    config: Mapping[str, Any]
    processing: Mapping[str, Any]
    sha256: str


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
    folder = _fetched_folder() if str(name_or_path) in (NAME, REPO) else Path(name_or_path).expanduser()
    sums = {name: file_sha256(folder / name) for name in (CONFIG, PROCESSING, WEIGHTS) if regular_file(folder / name) >= 0}
    record = folder / RECORD
    if record.exists():
        known = _read_json(record).get("files", {})
        for name, found in sums.items():
            if known.get(name) != found:
                fix = f"Remove {folder} and fetch the weights again."
                raise PolicyError("weights-hash", "is not what was fetched", where=str(folder / name), fix=fix)
    return ContourFiles(folder / WEIGHTS, _read_json(folder / CONFIG), _read_json(folder / PROCESSING), sums[WEIGHTS])


def fetch_contours(revision: str, *, repo: str = REPO, folder: Path | None = None) -> ContourFiles:
    """The contour network of one commit of the hub; what is here already is checked, not asked for again.

    Show `LICENCE` to the user first.

    Parameters
    ----------
    revision : full commit, 40 hexadecimal digits, chosen by the user: branches move, and nothing else pins these files.
    folder : instead of `weights_folder() / "directsam" / revision`.

    Raises
    ------
    ConfigError : `config-invalid`: the revision is no full commit.
    ModelError : `weights-missing`: offline and not here; `weights-unreachable`: the hub does not give a file.
    PolicyError : `weights-hash`: not the file that the hub announces.
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    if re.fullmatch("[0-9a-f]{40}", revision) is None:
        fix = f"Give the 40 hexadecimal digits that the history of {repo} shows for the commit you trust."
        raise ConfigError("config-invalid", f"{revision!r} is no full commit", where="revision", fix=fix)
    need_libraries("huggingface_hub", "safetensors", "torch", "transformers")
    folder = weights_folder() / NAME / revision if folder is None else folder
    if (folder / RECORD).exists():
        return find_contours(folder)
    if is_offline():
        what, fix = "is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub", "Unset HF_HUB_OFFLINE."
        raise ModelError("weights-missing", what, where=f"{repo} at {revision[:12]}", fix=fix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".loading-") as loading, discreet():
            sums = {name: _download(repo, revision, name, folder, Path(loading)) for name in (CONFIG, PROCESSING, WEIGHTS)}
        said = canonical_json({"repo": repo, "revision": revision, "files": sums})
        with whole_file(folder / RECORD, needed=len(said)) as file:
            file.write(said)
    except OSError as error:
        raise disk_error(error, folder) from None
    return find_contours(folder)


def _fetched_folder() -> Path:
    """Folder of the one commit that was fetched."""
    place = weights_folder() / NAME
    found = sorted(path.parent for path in place.glob(f"*/{RECORD}"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} contour networks were fetched" if found else "the contour network is not on this machine"
    fix = "Give the folder of one of them." if found else "Fetch it at a commit you trust, or give a folder that holds it."
    raise ModelError("weights-missing", what, where=str(place), fix=fix)


def _download(repo: str, revision: str, name: str, folder: Path, loading: Path) -> str:
    """One file of the hub in `folder`; its sha256."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint, where = hub_endpoint(), f"{repo}/{name} at {revision[:12]}"
    try:
        said = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision, endpoint=endpoint), timeout=TIMEOUT_S)
        if said.size is None or said.size > LARGEST_BYTES[name]:
            raise _wrong(where, f"the hub announces {said.size} bytes, more than any such file has")
        loaded = Path(hf_hub_download(repo, name, revision=revision, endpoint=endpoint, cache_dir=loading))
    except transport_errors() as error:
        why = f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:150]}"
        fix = "Check the commit, and HF_ENDPOINT or HF_TOKEN if you need them, then try again."
        raise ModelError("weights-unreachable", "the hub does not give this file", where=where, why=why, fix=fix) from None
    found, announced = file_sha256(loaded), (said.etag or "").lower()
    if said.size != loaded.stat().st_size or (name == WEIGHTS and announced != found):  # large files are named by their sha256
        raise _wrong(where, f"its sha256 is {found[:16]}..., the hub announces {announced[:16]!r}")
    with whole_file(folder / name, needed=said.size) as copy, loaded.open("rb") as opened:
        shutil.copyfileobj(opened, copy)
    return found


def _wrong(where: str, why: str) -> PolicyError:
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
