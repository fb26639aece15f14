"""Networks of the transformers library from a config and tensors: every size judged, every tensor used, none made up.

The library's own loader fills what is missing with random numbers, and renames what older versions called otherwise; here what it
did not find, or did not use, is an error. The network is built by its class, never by a name in a file.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.models.weights import ALIGNED_BYTES, check_values, need_libraries, some_names

LAYERED = ("layers", "depth", "depths", "blocks")
"""Last words of settings that count parts of a network, each of which holds tensors."""
LARGER = 4
"""A description of a network so many times larger than its tensors is refused."""
NONSENSE = (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError, ArithmeticError, NotImplementedError)
"""What classes of the library raise at settings that no network has."""


def config_of(kind: Any, said: Mapping[str, Any], *, where: str) -> Any:
    """A config of the library from a parsed `config.json`; what could name code, a file or a device is left out.

    Parameters
    ----------
    kind : class of configs, for example transformers.CLIPSegConfig.
    said : the file.
    where : the file, for messages.

    Raises
    ------
    ModelError : `model-load`: the library finds the settings impossible.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return kind(**_plain(said))
    except (*NONSENSE, StrictDataclassError) as error:
        raise _unfit("does not describe a network that can be built", where, " ".join(str(error).split())[:200]) from None


def build_network(
    kind: Any, config: Any, tensors: Mapping[str, Any], *, where: str, tolerated: Collection[str] = (), copied: bool = False
) -> Any:
    """A network of the library in float32 on the CPU, evaluating, without gradients; its weights are `tensors` themselves.

    Tensors of half precision are widened; all others stay views of what they were read from where torch can use them so. A weight
    that the network has in two places may be given once.

    Parameters
    ----------
    kind : class of networks, for example transformers.CLIPSegForImageSegmentation.
    config : its config; see `config_of`.
    tensors : name -> torch.Tensor on the CPU.
    where : the file, for messages.
    tolerated : keys that may be there without being used.
    copied : the weights become copies, which nobody can change by writing into a file.

    Raises
    ------
    ModelError : `model-load`: the config is nonsense, or with what is missing, unexpected, of another shape, or not finite.
    """
    need_libraries("torch", "transformers", "safetensors")
    import torch

    given = {name: tensor for name, tensor in tensors.items() if name not in tolerated}
    _check_size(kind, config, given, where=where)
    for name, tensor in given.items():
        check_values(name, tensor, tensor, where=where)
    wide = {name: _own(tensor, copied=copied) for name, tensor in given.items()}
    with quiet():  # it reports in a table what becomes an error here
        try:
            network, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=wide,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported
            )
        except NONSENSE as error:  # how the library refuses shapes
            raise _unfit("the tensors are not those of the network", where, " ".join(str(error).split())[:300]) from None
    found = {what: sorted(map(str, report.get(f"{what}_keys", ()))) for what in ("missing", "unexpected", "mismatched")}
    said = "; ".join(f"{len(keys):,} {what}: {some_names(keys)}" for what, keys in found.items() if keys)
    if said:
        raise _unfit("the tensors are not those of the network", where, said)
    return network.requires_grad_(False).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars and reports."""
    from transformers.utils import logging as said

    logger, shows_bars = logging.getLogger("transformers"), said.is_progress_bar_enabled()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if shows_bars:
            said.enable_progress_bar()


def _plain(said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that name code, a data type, a device or another file."""
    dropped = ("auto_map", "quantization_config", "torch_dtype", "dtype", "device_map", "_name_or_path", "name_or_path")
    return {
        name: _plain(value) if isinstance(value, Mapping) else value
        for name, value in said.items()
        if name not in dropped and not name.startswith("_") and not name.endswith("_implementation")
    }


def _counts(value: Any) -> Iterable[int]:
    """Every number of layers that a config names; of a list their sum."""
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        yield from _counts(inner)
        if str(name).rpartition("_")[2] in LAYERED:
            numbers = inner if isinstance(inner, list | tuple) else [inner]
            yield sum(number for number in numbers if isinstance(number, int) and not isinstance(number, bool))


def _check_size(kind: Any, config: Any, tensors: Mapping[str, Any], *, where: str) -> None:
    """Refuse a description of a network that is far larger than its tensors, before anything of that size is made."""
    import torch

    counted = max(_counts(config.to_dict()), default=0)
    if counted > len(tensors):
        why = f"it describes {counted:,} layers and comes with {len(tensors):,} tensors"
        raise _unfit("does not describe a network that can be built", where, why)
    try:
        with torch.device("meta"), quiet():
            expected = sum(tensor.numel() for tensor in kind(config).state_dict().values())
    except NONSENSE as error:
        raise _unfit("does not describe a network that can be built", where, " ".join(str(error).split())[:200]) from None
    found = sum(tensor.numel() for tensor in tensors.values())
    if expected > LARGER * found:
        raise _unfit("the tensors are not those of the network", where, f"{found:,} numbers instead of {expected:,}")


def _own(tensor: Any, *, copied: bool) -> Any:
    """The tensor in float32 where it is no table of integers, at a place in memory where torch puts its own."""
    import torch

    wide = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return wide.clone() if (copied and wide is tensor) or wide.data_ptr() % ALIGNED_BYTES else wide


def _unfit(what: str, where: str, why: str) -> ModelError:
    fix = "Give the folder of a network as its authors published it."
    return ModelError("model-load", what, where=where, why=why, fix=fix)
