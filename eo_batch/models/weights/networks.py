"""Networks of the transformers library from a config and tensors: every size judged, every tensor used, none made up.

The library's own loader fills what is missing with random numbers and keeps quiet about more than one may; here the tensors are
compared with the network before anything of these sizes is made, and the network is built by its class, never by a name in a file.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.models.weights import ALIGNED_BYTES, check_tensors, check_values, need_libraries

LAYERED = ("layers", "depth", "depths", "blocks")
"""Last words of settings that count parts of a network, each of which holds tensors."""
NO_TENSOR = ("position_ids",)
"""Last words of tables that older versions of the library wrote into files; every network makes them itself."""
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
    plain = _plain(said)
    try:
        return kind(**plain)
    except Exception as error:  # checks of the library raise classes of their own
        raise _nonsense(where, error) from None


def build_network(
    kind: Any, config: Any, tensors: Mapping[str, Any], *, where: str, tolerated: Collection[str] = (), tied: bool = True
) -> Any:
    """A network of the library in float32 on the CPU, evaluating, without gradients; its weights are `tensors` themselves.

    Tensors of half precision are widened; all others stay views of what they were read from where torch can use them so.

    Parameters
    ----------
    kind : class of networks, for example transformers.CLIPSegForImageSegmentation.
    config : its config; see `config_of`.
    tensors : name -> torch.Tensor on the CPU.
    where : the file, for messages.
    tolerated : keys that may be there without being used.
    tied : a weight that the network shares between two places may be given once.

    Raises
    ------
    ModelError : `model-load`: the config is nonsense, or with what is missing, unexpected, of another shape or type, or not finite.
    """
    need_libraries("torch", "transformers", "safetensors")
    import torch

    counted = max(_counts(config.to_dict()), default=0)
    if counted > len(tensors):
        why = f"it describes {counted:,} layers and comes with {len(tensors):,} tensors"
        raise ModelError("model-load", "does not describe a network", where=where, why=why)
    try:
        with torch.device("meta"):
            skeleton = kind(config)
    except NONSENSE as error:
        raise _nonsense(where, error) from None
    expected = skeleton.state_dict()
    given = _complete(skeleton, tensors, expected) if tied else dict(tensors)
    unused = {*tolerated, *(name for name in given if name.rpartition(".")[2] in NO_TENSOR)}
    wide = {name: _wide(tensor.to("meta")) for name, tensor in given.items()}
    check_tensors(expected, wide, where=where, tolerated=unused)
    kept: dict[str, Any] = {}
    for name in expected:
        tensor = _wide(given[name])
        check_values(name, tensor, expected[name], where=where)
        kept[name] = tensor.clone() if tensor.data_ptr() % ALIGNED_BYTES else tensor
    with quiet():
        try:
            network = kind.from_pretrained(None, config=config, state_dict=dict(kept), dtype=torch.float32)
        except NONSENSE as error:
            raise _nonsense(where, error) from None
    network.load_state_dict(kept, strict=True, assign=True)  # whatever the library made of them on its way
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


def _complete(skeleton: Any, tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """`tensors`, with every shared weight in all its places."""
    given = dict(tensors)
    for name, source in getattr(skeleton, "all_tied_weights_keys", {}).items():
        for absent, present in ((name, source), (source, name)):
            if absent in expected and absent not in given and present in given:
                given[absent] = given[present]
    return given


def _wide(tensor: Any) -> Any:
    import torch

    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _nonsense(where: str, error: Exception) -> ModelError:
    fix = "Give the folder of a network as its authors published it."
    why = " ".join(str(error).split())[:200]
    return ModelError("model-load", "does not describe a network that can be built", where=where, why=why, fix=fix)
