"""A checkpoint of a training becomes a safetensors file: the weights alone, checked key by key, and no pickle ever after.

A checkpoint is a pickle inside a zip archive, so it is hostile until shown otherwise: it is read with `weights_only`, one
harmless class allowed beside tensors, and its numbers stay in the file (memory mapped) until they are copied out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import ConfigError, EoBatchError, ModelError, PolicyError
from eo_batch.models.weights import (
    ALIGNED_BYTES,
    CONFIG_BYTES,
    SUFFIX,
    WeightFiles,
    check_tensors,
    check_values,
    file_sha256,
    find_weights,
    need_libraries,
    parse_config,
    read_weights,
    regular_file,
)
from eo_batch.models.weights.disk import whole_file

Listener = Callable[[str, int, int], None]
"""Called with what is done, how much of it is done, and how much there is, in bytes."""

PICKLE_BYTES = 8 << 20
"""The part of a checkpoint that is no tensor; published ones have less than 1 MB. A byte of it can cost 90 bytes of memory."""
STATE_KEYS = ("model", "state_dict", "module")
"""Where trainings put the tensors; a checkpoint that holds nothing else may have them at the top."""
DTYPES = MappingProxyType(
    {
        "float64": "F64",
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "int64": "I64",
        "int32": "I32",
        "int16": "I16",
        "int8": "I8",
        "uint8": "U8",
        "bool": "BOOL",
    }
)
"""Names of number types in safetensors headers (format description of the safetensors project)."""


@dataclass(frozen=True)
class Architecture:
    """A network whose checkpoints can be converted.

    Parameters
    ----------
    name : as in the metadata of the converted file.
    build : the network as torch.nn.Module, from a config; called with the meta device as default.
    published_config : config of the published checkpoint.
    tolerated : keys that some checkpoints carry and the network does not need.
    settings_of : (tensors, config as given or None) -> the whole config; None: as given, else as published.
    translate : (tensors, state dict of the network, config, where=) -> tensors by the network's names; None: they have them.
    """

    name: str
    build: Callable[[Mapping[str, Any]], Any]
    published_config: Callable[[], Mapping[str, Any]]
    tolerated: Collection[str] = ()
    settings_of: Callable[[Mapping[str, Any], Mapping[str, Any] | None], Mapping[str, Any]] | None = None
    translate: Callable[..., Mapping[str, Any]] | None = None


def _build_remotesam(config: Mapping[str, Any]) -> Any:
    from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig

    return RemoteSAM(RemoteSAMConfig.from_dict(config))


def _remotesam_config() -> Mapping[str, Any]:
    from eo_batch.models.remotesam import RemoteSAMConfig

    return RemoteSAMConfig().as_dict()


def _of(room: str, name: str) -> Callable[..., Any]:
    """A function of the module `conversion` of a network, imported when it is called."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(import_module(f"eo_batch.models.{room}.conversion"), name)(*arguments, **named)

    return call


def _trained(name: str) -> Architecture:
    """A network whose checkpoints have names and low-rank updates of their training."""
    own = (_of(name, function) for function in ("build", "published", "settings_of", "translate"))
    build, published, settings_of, translate = own
    return Architecture(name, build, published, settings_of=settings_of, translate=translate)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Architecture("remotesam", _build_remotesam, _remotesam_config, ("text_encoder.embeddings.position_ids",)),
            _trained("rsrefseg"),
            _trained("rsrefseg2"),
        )
    }
)
"""The networks of this package, by name."""


def find_architecture(name: str) -> Architecture:
    """The network of this name.

    Raises
    ------
    ConfigError : `config-invalid`: no such network.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise ConfigError(
        "config-invalid", f'unknown network "{name}"', where="architecture", fix=f"Known: {', '.join(ARCHITECTURES)}."
    )


def read_config(path: Path) -> dict[str, Any]:
    """The sizes of a network from a JSON file.

    Raises
    ------
    ModelError : `weights-missing`: no such file.
    ConfigError : `config-invalid`: no table of plain settings.
    """
    try:
        if regular_file(path) > CONFIG_BYTES:
            raise ValueError("too long")
        return parse_config(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError("config-invalid", "holds no sizes of a network", where=str(path), why=why, fix="Give JSON.") from None


def convert_checkpoint(
    source: Path,
    target: Path | None = None,
    *,
    architecture: Architecture,
    config: Mapping[str, Any] | None = None,
    source_sha256: str = "",
    replaces: bool = False,
    listener: Listener | None = None,
) -> WeightFiles:
    """Write the weights of a checkpoint as safetensors; the same checkpoint gives the same bytes.

    Parameters
    ----------
    source : file of `torch.save`; or safetensors with the names of a training.
    target : safetensors file; default: beside `source`.
    architecture : the network it was made for.
    config : how that network is built; default: as the published one.
    source_sha256 : of `source`, where it is known already.
    replaces : a file at `target` may be replaced.
    listener : told how many bytes are written.

    Raises
    ------
    PolicyError : `weights-unsafe`: holds more than tensors and settings.
    ModelError : `weights-missing`, `model-load`: not a checkpoint, of another network, NaN.
    ConfigError : `config-invalid`: `target` exists.
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    need_libraries("torch", "transformers", "safetensors")
    target = source.with_suffix(SUFFIX) if target is None else target
    if target.exists() and not replaces:
        raise ConfigError("config-invalid", "is there already", where=str(target), fix="Remove it, or choose another --out.")
    found = read_weights(source)[0] if source.suffix == SUFFIX else read_checkpoint(source)
    tensors: Mapping[str, Any] = state_of(found, where=str(source))
    if architecture.settings_of is not None:
        settings = dict(architecture.settings_of(tensors, config))
    else:
        settings = dict(architecture.published_config() if config is None else config)
    expected = _expected(architecture, settings)
    if architecture.translate is not None:
        tensors = architecture.translate(tensors, expected, settings, where=str(source))
    kept = check_tensors(expected, tensors, where=str(source), tolerated=architecture.tolerated)
    metadata = {
        "architecture": architecture.name,
        "config": canonical_json(settings).decode(),
        "format": "pt",
        "source_sha256": source_sha256 or file_sha256(source),
    }

    def checked(name: str, tensor: Any) -> Any:
        check_values(name, tensor, expected[name], where=str(source))
        return tensor

    write_safetensors(target, kept, metadata, checked=checked, listener=listener)
    return find_weights(target)


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds, its tensors left in the file; nothing of it is ever run.

    Raises
    ------
    PolicyError : `weights-unsafe`: it asks for classes or functions beyond tensors and settings.
    ModelError : `weights-missing`, `model-load`.
    """
    import torch

    _check_archive(path, regular_file(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can make the reader raise anything
        raise _unreadable(path, error) from None


def state_of(checkpoint: Any, *, where: str) -> dict[str, Any]:
    """The tensors of a network inside a checkpoint; optimizer, schedule and arguments are left behind.

    Raises
    ------
    ModelError : `model-load`: there are none, or they are not plain tensors.
    """
    import torch

    fix = "Give a checkpoint that holds the weights of a network."
    found = checkpoint
    if isinstance(checkpoint, Mapping):
        inner = [checkpoint[key] for key in STATE_KEYS if isinstance(checkpoint.get(key), Mapping)]
        found = inner[0] if inner else checkpoint
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        raise ModelError("model-load", "holds no weights by name", where=where, why=_contents(checkpoint), fix=fix)
    for name, tensor in found.items():
        is_dense = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and not tensor.is_nested
        is_plain = is_dense and not (tensor.is_quantized or tensor.is_meta or tensor.is_neg())
        if not is_plain or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            why = f"{name[:200]!r} is not a plain tensor; {_contents(checkpoint)}"
            raise ModelError("model-load", "holds no weights by name", where=where, why=why, fix=fix)
    return {name: tensor.detach() for name, tensor in found.items()}


def write_safetensors(
    target: Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    checked: Callable[[str, Any], Any] = lambda name, tensor: tensor,
    listener: Listener | None = None,
) -> str:
    """Write tensors one at a time as one safetensors file, whole or not at all; returns its sha256.

    The library of the format writes its metadata in random order, so equal weights would get unequal names; here they are sorted.

    Parameters
    ----------
    target : the file; its folder is made.
    tensors : name -> dense torch.Tensor on the CPU.
    metadata : text.
    checked : called with each tensor before it is written; may refuse it.
    listener : told how many bytes are written.

    Raises
    ------
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    order = sorted(tensors, key=lambda name: (_bytes_of(tensors[name]) % ALIGNED_BYTES > 0, -tensors[name].element_size(), name))
    header = _header(order, tensors, metadata)
    total = sum(_bytes_of(tensors[name]) for name in order)
    written, made = 0, hashlib.sha256()
    with whole_file(target, needed=total + len(header)) as file:
        for name in ("", *order):
            piece = memoryview(header) if not name else _memory(checked(name, tensors[name]))
            file.write(piece)
            made.update(piece)
            written += len(piece) if name else 0
            if listener is not None:
                listener("writing", written, total)
    return made.hexdigest()


def _expected(architecture: Architecture, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keys, shapes and dtypes of the network, without its memory."""
    import torch

    try:
        with torch.device("meta"):
            state: Mapping[str, Any] = architecture.build(config).state_dict()
    except EoBatchError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError("config-invalid", f"no {architecture.name} can be built from this", where="config", why=why) from None
    return state


def _check_archive(path: Path, size: int) -> None:
    """Refuse what is no plain archive of `torch.save`: another format, packed records (zip bombs), sizes that lie."""
    fix = "Give a file of torch.save (PyTorch 1.6 or later), complete."
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        why = f"{' '.join(str(error).split())[:100]}; the file may be cut short"
        raise ModelError("model-load", "is no checkpoint of torch.save", where=str(path), why=why, fix=fix) from None
    is_packed = any(record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size for record in records)
    pickles = [record for record in records if record.filename.endswith(".pkl")]
    if is_packed or sum(record.file_size for record in records) > size or any(p.file_size > PICKLE_BYTES for p in pickles):
        why = "its records are packed, or larger than the file"
        raise PolicyError("weights-unsafe", "is not written as torch.save writes", where=str(path), why=why, fix=fix)
    if len(pickles) != 1 or pickles[0].filename.rpartition("/")[2] != "data.pkl":
        raise ModelError("model-load", "is no checkpoint of torch.save", where=str(path), why="no data.pkl inside", fix=fix)


def _unreadable(path: Path, error: Exception) -> EoBatchError:
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked or "Weights only load failed" in text:
        why = f"it asks for {asked[1]}" if asked else "its pickle does what loading tensors does not need"
        fix = "Nothing of it was run. Use weights from a source you trust, as safetensors or as plain tensors."
        return PolicyError("weights-unsafe", "holds more than tensors and settings", where=str(path), why=why, fix=fix)
    why = f"{type(error).__name__}: {' '.join(text.split())[:150]}"
    return ModelError("model-load", "could not be read", where=str(path), why=why, fix="The file is damaged: get it again.")


def _contents(checkpoint: Any) -> str:
    if not isinstance(checkpoint, Mapping):
        return f"it is a {type(checkpoint).__name__}"
    return "it holds " + (", ".join(sorted(str(key)[:60] for key in checkpoint)[:8]) or "nothing")


def _header(order: list[str], tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Length, JSON, and spaces (safetensors: format) so that the first tensor begins where processors like it."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name in order:
        tensor, stop = tensors[name], start + _bytes_of(tensors[name])
        kind = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED_BYTES)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Any) -> int:
    size: int = tensor.numel() * tensor.element_size()
    return size


def _memory(tensor: Any) -> memoryview:
    """The numbers of a tensor as bytes, C order; little endian like every machine that torch supports well."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
