"""Networks of the transformers library from a config and tensors: every size judged, every tensor used, none made up.

The library's own loader fills what is missing with random numbers, and renames what older versions called otherwise; here what it
did not find, or did not use, is an error. The network is built by its class, never by a name in a file.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.models.weights import ALIGNED_BYTES, check_values, need_libraries, some_names

LARGER = 4
"""A description of a network so many times larger than its tensors, or with so many times more of them, is refused."""
TABLES = 1 << 24
"""So many numbers more may be in tables that the network makes itself."""
NONSENSE = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, ImportError)
"""What classes of the library raise at settings that no network has; the last at names of networks that other libraries have."""
DROPPED = (
    *("auto_map", "quantization_config", "torch_dtype", "dtype", "device_map", "name_or_path", "transformers_weights"),
    *("return_dict", "output_attentions", "output_hidden_states", "num_labels"),
)
"""Settings that name code, a data type, a device, another file, or another form of answers; labels are counted by their names."""


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
    wide = {name: _own(tensor, copied=copied) for name, tensor in given.items()}
    for name, tensor in wide.items():  # as it is used: what is finite in 64 bits may not be in 32
        check_values(name, tensor, tensor, where=where)
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
    kinds = {name: one.is_floating_point() for name, one in network.state_dict().items()}
    found["of no real numbers"] = [name for name, one in wide.items() if kinds.get(name, False) and not one.is_floating_point()]
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
    """Settings that describe a network."""
    return {
        name: _plain(value) if isinstance(value, Mapping) else value
        for name, value in said.items()
        if name not in DROPPED and not name.startswith("_") and not name.endswith("_implementation")
    }


def _check_size(kind: Any, config: Any, tensors: Mapping[str, Any], *, where: str) -> None:
    """Refuse a description of a network that is far larger than its tensors, before anything of that size is made."""
    import torch

    try:
        with torch.device("meta"), quiet(), _at_most(LARGER * len(tensors)):
            network = kind(config)
    except NONSENSE as error:
        raise _unfit("does not describe a network that can be built", where, " ".join(str(error).split())[:200]) from None
    expected = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    found = sum(tensor.numel() for tensor in tensors.values())
    if expected > LARGER * found + TABLES:
        raise _unfit("the tensors are not those of the network", where, f"{found:,} numbers instead of {expected:,}")


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """A network that this thread builds has no more tensors than this.

    Raises
    ------
    ValueError : it has.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    made, thread = itertools.count(1), threading.get_ident()

    def count(*_: Any) -> None:
        if threading.get_ident() == thread and next(made) > tensors:
            raise ValueError(f"it describes a network of more than {tensors:,} tensors, and comes with {tensors // LARGER:,}")

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def _own(tensor: Any, *, copied: bool) -> Any:
    """The tensor in float32 where it is no table of integers, at a place in memory where torch puts its own."""
    import torch

    wide = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return wide.clone() if (copied and wide is tensor) or wide.data_ptr() % ALIGNED_BYTES else wide


def _unfit(what: str, where: str, why: str) -> ModelError:
    fix = "Give the folder of a network as its authors published it."
    return ModelError("model-load", what, where=where, why=why, fix=fix)
