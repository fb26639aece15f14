"""Weights on this machine: where they are kept, and how they enter a network.

At run time weights are safetensors only. What a network is (`architecture`, `config`) travels in the metadata of the
file, so a path alone is enough to build it; networks of transformers are `folders`. What is published is in `published`,
one file is downloaded in `download`, other formats become safetensors in `hub` and `checkpoints`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.models.weights.published import RECORD, VOCABULARY, published_files, published_folder, published_names
from eo_batch.models.weights.watch import Stamp, stamp_of

FOLDER_VARIABLE = "EO_BATCH_WEIGHTS"
SUFFIX = ".safetensors"
SHOWN, SHOWN_CHARACTERS = 5, 200
"""So many keys of a list are written out in a message, and so much of each."""
CONFIG_BYTES, CONFIG_VALUES, CONFIG_DEPTH, CONFIG_LARGEST = 100_000, 4_000, 8, 10_000_000
"""A description of a network that is longer, deeper or holds larger numbers than this is nonsense."""
READ_BYTES = 8 << 20
ALIGNED_BYTES = 64
"""Where torch begins a tensor in memory: a multiple of this. Products of matrices may round otherwise where it is not."""


@dataclass(frozen=True)
class WeightFiles:
    """What a network is made from.

    Parameters
    ----------
    weights : safetensors file.
    vocabulary : word pieces of the text encoder, one per line; None where there is none.
    config : how the network is built, as its metadata say.
    sha256 : of `weights`: the identity of the network.
    architecture : which network, for example "remotesam".
    source_sha256 : of the checkpoint it was converted from, or "".
    stamp : of `weights` before they were looked at; see `watch`.
    """

    weights: Path
    vocabulary: Path | None
    config: Mapping[str, Any]
    sha256: str
    architecture: str
    source_sha256: str = field(default="", compare=False)
    stamp: Stamp = field(default=(0, 0, 0, 0), compare=False)


def weights_folder() -> Path:
    """Where fetched weights are kept: `EO_BATCH_WEIGHTS`, else `eo-batch/weights` in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache") / "eo-batch" / "weights"


def are_present(name: str) -> bool:
    """The files of published weights are in the weights folder; what they hold is not looked at."""
    folder, published = weights_folder() / name, published_folder(name)
    if published is not None:
        return any(folder.glob(f"{published.revision or '*'}/{RECORD}"))
    names = [f"{name}{SUFFIX}", *(file.keep_as for file in published_files(name) if file.keep_as)]
    return all((folder / needed).is_file() for needed in names)


def find_weights(
    name_or_path: str | os.PathLike[str], *, vocabulary: Path | None = None, architecture: str | None = None
) -> WeightFiles:
    """The files of a network: fetched ones by name, any others by path.

    Parameters
    ----------
    name_or_path : a name of `published_names()`, a safetensors file, or a folder with exactly one.
    vocabulary : its word pieces; default: `vocab.txt` beside the weights, else the fetched one of the same architecture.
    architecture : refuse weights of any other network.

    Raises
    ------
    ModelError : `weights-missing`: not there; `model-load`: not safetensors, no or nonsensical description, other network.
    """
    weights = _path_of(str(name_or_path))
    stamp = stamp_of(weights)
    metadata = read_metadata(weights)
    found, config = describe(metadata, where=str(weights))
    if architecture is not None and found != architecture:
        fix = f"Give weights of {architecture}: eo-batch models fetch {architecture}."
        raise ModelError("model-load", f'holds weights of "{found}", not of "{architecture}"', where=str(weights), fix=fix)
    words = _vocabulary(weights, found, vocabulary)
    return WeightFiles(weights, words, config, file_sha256(weights), found, metadata.get("source_sha256", ""), stamp)


def read_metadata(path: Path) -> dict[str, str]:
    """Text that travels in a safetensors file.

    Raises
    ------
    ModelError : `weights-missing`, `model-load`.
    """
    need_libraries("safetensors")
    from safetensors import SafetensorError, safe_open

    regular_file(path)
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _no_safetensors(path, error) from None


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the tensors are views of the file, read when they are touched.

    Returns
    -------
    tensors, metadata : name -> torch.Tensor on the CPU, name -> text.

    Raises
    ------
    ModelError : `weights-missing`: no such file; `model-load`: not safetensors, or its header lies.
    """
    need_libraries("torch", "safetensors")
    from safetensors import SafetensorError, safe_open

    regular_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise _no_safetensors(path, error) from None


def load_strictly(module: Any, tensors: Mapping[str, Any], *, where: str, tolerated: Collection[str] = ()) -> None:
    """Put `tensors` into `module`: every key, shape and dtype must agree, every number must be finite.

    If parts of `module` are on the meta device, all of it becomes `tensors` themselves, without a copy where they begin in memory
    as tensors of torch do: so the same weights give the same bits, whatever file they came from. Otherwise `module` is filled.

    Parameters
    ----------
    module : torch.nn.Module.
    tensors : name -> torch.Tensor.
    where : the file, for messages.
    tolerated : keys that may be there without being used.

    Raises
    ------
    ModelError : `model-load`, with what is missing, unexpected, of another shape or type, or not finite.
    """
    need_libraries("torch")
    expected = module.state_dict()
    kept = check_tensors(expected, tensors, where=where, tolerated=tolerated)
    for name, tensor in kept.items():
        check_values(name, tensor, expected[name], where=where)
    is_assigned = any(tensor.is_meta for tensor in expected.values())
    if is_assigned:
        kept = {name: tensor.clone() if tensor.data_ptr() % ALIGNED_BYTES else tensor for name, tensor in kept.items()}
    module.load_state_dict(kept, strict=True, assign=is_assigned)


def check_tensors(
    expected: Mapping[str, Any], tensors: Mapping[str, Any], *, where: str, tolerated: Collection[str] = ()
) -> dict[str, Any]:
    """`tensors` in the order of `expected`, without the tolerated ones; no number is read.

    Raises
    ------
    ModelError : `model-load`, with what is missing, unexpected, or of another shape or type.
    """
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and name not in tolerated]
    shared = [name for name in expected if name in tensors]
    shapes = [
        f"{name} {_shape(tensors[name])} instead of {_shape(expected[name])}"
        for name in shared
        if tensors[name].shape != expected[name].shape
    ]
    types = [
        f"{name} {_dtype(tensors[name])} instead of {_dtype(expected[name])}"
        for name in shared
        if tensors[name].dtype != expected[name].dtype
    ]
    complaints = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, "wrong type": types}
    said = "; ".join(f"{len(names):,} {what}: {some_names(names)}" for what, names in complaints.items() if names)
    if not said:
        return {name: tensors[name] for name in expected}
    if len(shared) < len(expected) / 10:
        what = f"this is no checkpoint of this network: {len(shared):,} of its {len(expected):,} tensors are there"
        fix = "Give the checkpoint that was made for this network."
    else:
        what, fix = "the tensors are not those of the network", "Give the checkpoint and the config that belong together."
    raise ModelError("model-load", what, where=where, why=said, fix=fix)


def check_values(name: str, tensor: Any, built: Any, *, where: str) -> None:
    """Refuse numbers that no trained network holds.

    Floating numbers must be finite. Integer tables (window positions) are constants of the architecture and must equal
    the ones the network was built with, where it is not on the meta device; integer counters (no dimension) are free.

    Raises
    ------
    ModelError : `model-load`.
    """
    import torch

    fix = "Fetch or convert the weights again; a checkpoint of a training that diverged cannot be used."
    if tensor.is_floating_point():
        ends = torch.stack(torch.aminmax(tensor)) if tensor.numel() else tensor  # NaN if one number is; no copy of them all
        if not bool(torch.isfinite(ends).all()):
            raise ModelError("model-load", f"{name} holds NaN or infinite numbers", where=where, fix=fix)
    elif tensor.dim() and not built.is_meta and not torch.equal(tensor.cpu(), built.cpu()):
        raise ModelError("model-load", f"{name} is not the table that the network is built with", where=where, fix=fix)


def describe(metadata: Mapping[str, str], *, where: str) -> tuple[str, dict[str, Any]]:
    """(architecture, config) from the metadata of a safetensors file, judged before anything is built from them.

    Raises
    ------
    ModelError : `model-load`: not described, or nonsense.
    """
    architecture, text = metadata.get("architecture", ""), metadata.get("config", "")
    fix = "Convert the checkpoint with `eo-batch models convert`."
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", architecture):
        raise ModelError("model-load", "does not say which network its weights belong to", where=where, fix=fix)
    try:
        config = parse_config(text)
    except (ValueError, RecursionError) as error:
        why = str(error)[:200]
        raise ModelError("model-load", "its description of the network is nonsense", where=where, why=why, fix=fix) from None
    return architecture, config


def parse_config(text: str) -> dict[str, Any]:
    """The sizes of a network from JSON; what no network has is refused before anything is built from it.

    Raises
    ------
    ValueError, RecursionError : no table, too long, too deep, or numbers too large.
    """
    if len(text) > CONFIG_BYTES:
        raise ValueError("too long")
    config = json.loads(text)
    if not isinstance(config, dict) or sum(1 for _ in _values(config)) > CONFIG_VALUES:
        raise ValueError("no table of settings")
    return config


def need_libraries(*names: str) -> None:
    """Refuse with advice where a library of the extra `models` is not installed.

    Raises
    ------
    ModelError : `model-load`.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        what = f"a network needs {', '.join(missing)}: not installed"
        raise ModelError("model-load", what, fix='Run: pip install "eo-batch[models]"')


def regular_file(path: Path) -> int:
    """Size of `path` in bytes.

    Raises
    ------
    ModelError : `weights-missing`: nothing there, or not a file; `model-load`: unreadable.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        fix = "Check the path, or fetch published weights: eo-batch models fetch NAME."
        raise ModelError("weights-missing", "there is no such file", where=str(path), fix=fix) from None
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ModelError("weights-missing", f"is {kind}", where=str(path), fix="Give the path of one file of weights.")
    return status.st_size


def local_path(named: str) -> Path:
    """The path that somebody wrote, with `~` for a home; there may be nothing.

    Raises
    ------
    ModelError : `weights-missing`: nothing on this machine can have this path, or it may not be looked at.
    """
    try:
        path = Path(named).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, another user's home, a zero byte
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ModelError("weights-missing", "is no path", where=named[:200], why=why, fix="Check the path.") from None
    return path


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read piece by piece.

    Raises
    ------
    ModelError : `model-load`: unreadable.
    """
    made = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                made.update(piece)
    except OSError as error:
        raise unreadable(path, error) from None
    return made.hexdigest()


def unreadable(path: Path, error: OSError) -> ModelError:
    """What the disk says of a file of a network, in our words."""
    fix = "Check who may read it, and the disk."
    return ModelError("model-load", "could not be read", where=str(path), why=os.strerror(error.errno or 0), fix=fix)


def _path_of(named: str) -> Path:
    if named in published_names():
        path = weights_folder() / named / f"{named}{SUFFIX}"
        if not path.exists():
            fix = f"Run: eo-batch models fetch {named}, or set {FOLDER_VARIABLE} to the folder that holds them."
            raise ModelError("weights-missing", f'the weights "{named}" are not on this machine', where=str(path), fix=fix)
        return path
    path = local_path(named)
    if path.is_dir():
        inside = sorted(path.glob(f"*{SUFFIX}"))
        if len(inside) != 1:
            fix = "Give the path of one safetensors file."
            raise ModelError("weights-missing", f"this folder holds {len(inside)} files of weights", where=named, fix=fix)
        return inside[0]
    if not path.exists() and "/" not in named and not path.suffix:
        published_files(named)
    regular_file(path)
    if path.suffix != SUFFIX:
        fix = f"Convert it: eo-batch models convert {named}."
        raise ModelError("model-load", f"weights are read from {SUFFIX[1:]} files only", where=named, fix=fix)
    return path


def _vocabulary(weights: Path, architecture: str, given: Path | None) -> Path | None:
    if given is not None:
        regular_file(given)
        return given
    places = (weights.with_name(VOCABULARY), weights_folder() / architecture / VOCABULARY)
    return next((place for place in places if place.is_file()), None)


def _values(value: Any, depth: int = 0) -> Iterable[Any]:
    """Every plain value inside; refuses what no config holds."""
    if depth > CONFIG_DEPTH:
        raise ValueError("too deep")
    if isinstance(value, dict):
        for inner in value.values():
            yield from _values(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, depth + 1)
    elif isinstance(value, int | float) and not abs(value) <= CONFIG_LARGEST:  # nor is NaN
        raise ValueError(f"a number beyond {CONFIG_LARGEST:,}")
    else:
        yield value


def _no_safetensors(path: Path, error: Exception) -> ModelError:
    why = " ".join(str(error).split())[:200]
    fix = "Fetch or convert the weights again."
    return ModelError("model-load", "is not a readable safetensors file", where=str(path), why=why, fix=fix)


def some_names(names: list[str]) -> str:
    """The first of many names, each cut where it is too long to read."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    shown = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..." for name in names[:SHOWN]]
    return ", ".join(shown) + more


def _shape(tensor: Any) -> str:
    return str(tuple(tensor.shape))


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
