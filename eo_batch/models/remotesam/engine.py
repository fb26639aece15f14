"""The network in memory: loaded once per process, shared by all threads, one call at a time where the device wants it so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from eo_batch.core.errors import ConfigError, ModelError, ResourceError
from eo_batch.models.remotesam.config import RemoteSAMConfig
from eo_batch.models.remotesam.network import ImageFeatures, PromptFeatures, RemoteSAM
from eo_batch.models.weights import WeightFiles, check_tensors, load_strictly, read_weights

TOLERATED = ("text_encoder.embeddings.position_ids",)
"""Keys that other versions of the text encoder wrote and that mean nothing."""


@dataclass(frozen=True, eq=False)
class Engine:
    """One network on one device, with what has been asked of it so far.

    Parameters
    ----------
    network : in evaluation mode, without gradients.
    device, dtype : where and with what numbers it computes.
    together : windows of a batch are computed in one call, as a GPU wants it; otherwise one after the other, so that a window's
        bits cannot depend on its company.
    prompts : tokens -> their features.
    lock : held during a call on a GPU; on a CPU calls may run side by side.
    """

    network: RemoteSAM
    device: torch.device
    dtype: torch.dtype
    together: bool = False
    prompts: dict[bytes, PromptFeatures] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and tables."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    def encode_sentence(self, ids: Tensor, mask: Tensor, *, threads: int) -> PromptFeatures:
        """Features of one sentence, int64 (tokens,); computed at its first asking."""
        key = ids.numpy().tobytes() + mask.numpy().tobytes()
        if key not in self.prompts:
            with self.computing(threads, f"{len(ids)} tokens"):
                self.prompts[key] = self.network.encode_text(ids[None].to(self.device), mask[None].to(self.device))
        return self.prompts[key]

    def encode_pixels(self, pixels: Tensor, *, threads: int) -> tuple[ImageFeatures, ...]:
        """What no prompt changes of windows, float32 (n, 3, side, side): one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """
        calls = (pixels,) if self.together else pixels.split(1)
        return tuple(self._encode(call, threads=threads) for call in calls)

    def answer(self, windows: ImageFeatures, prompt: PromptFeatures, *, threads: int) -> Tensor:
        """Foreground minus background of the windows of one entry, float32 (n, side, side) on the CPU.

        Raises
        ------
        ModelError : `model-oom`.
        """
        with self.computing(threads, "windows and a prompt"):
            logits = self.network.decode(windows, prompt)[0]  # of the one entry; its windows are where a prompt's would be
            return (logits[:, 1] - logits[:, 0]).cpu()

    def _encode(self, pixels: Tensor, *, threads: int) -> ImageFeatures:
        with self.computing(threads, f"{len(pixels)} windows of {pixels.shape[-1]} px"):
            seen = self.network.backbone.see(pixels.to(self.device, self.dtype))
        return ImageFeatures((seen,), (pixels.shape[2], pixels.shape[3]))

    @contextmanager
    def computing(self, threads: int, what: str) -> Iterator[None]:
        """Surroundings of every call: no gradients, fixed numerics, one at a time on a GPU.

        Raises
        ------
        ModelError : `model-oom`: `what` does not fit in the memory of the device.
        """
        try:
            with torch.inference_mode():
                if self.device.type == "cpu":
                    if torch.get_num_threads() != threads:
                        torch.set_num_threads(threads)
                    yield
                else:
                    with (
                        self.lock,
                        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
                    ):
                        yield
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(what, error) from None
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            raise self._out_of_memory(what, error) from None

    def _out_of_memory(self, what: str, error: Exception) -> ModelError:
        return ModelError(
            "model-oom",
            f"{what} do not fit in the memory of the {self.device.type}",
            where='segmenter "remotesam"',
            why=str(error).splitlines()[0][:200],
            fix='Lower model.batch, use fewer workers, or on a GPU set precision = "bfloat16".',
        )


def open_engine(files: WeightFiles, *, device: str, precision: str) -> Engine:
    """The network of `files`; the one that this process already holds, if it does.

    Parameters
    ----------
    device : "cpu", "cuda", or "auto": a GPU where there is one.
    precision : "float32", "bfloat16" or "float16".

    Raises
    ------
    ModelError : `model-load`.
    ConfigError, ResourceError : as `find_device`.
    """
    place = find_device(device)
    with _opening:
        key = files.sha256, str(place), precision
        engine = _open.get(key)
        if engine is None:
            network = _load(files).requires_grad_(False)
            dtype: torch.dtype = getattr(torch, precision)
            engine = _open[key] = Engine(network.to(place, dtype), place, dtype, together=place.type != "cpu")
        return engine


def find_device(name: str) -> torch.device:
    """The device that the option `device` names; "auto": a GPU where there is one.

    Raises
    ------
    ConfigError : `config-invalid`: unknown name.
    ResourceError : `no-gpu`.
    """
    if name not in ("auto", "cpu", "cuda"):
        fix = 'Use one of: "auto", "cpu", "cuda".'
        raise ConfigError("config-invalid", f"unknown device {name!r}", where="model.options.device", fix=fix)
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        fix = 'Set device = "auto", or install a driver and a torch that know the GPU: eo-batch doctor.'
        raise ResourceError("no-gpu", "there is no GPU that torch can use", where="model.options.device", fix=fix)
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def _load(files: WeightFiles) -> RemoteSAM:
    where = str(files.weights)
    try:
        config = RemoteSAMConfig.from_dict(files.config)
    except (ConfigError, TypeError) as error:
        raise _not_ours(where, str(error)) from None
    tensors, _ = read_weights(files.weights)
    if max(sum(config.depths), config.text_layers) > len(tensors):
        raise _not_ours(
            where, f"it describes {sum(config.depths) + config.text_layers:,} layers and holds {len(tensors):,} tensors"
        )
    check_tensors(_expected(config), tensors, where=where, tolerated=TOLERATED)  # before anything of these sizes is made
    network = RemoteSAM.from_config(config, is_trainable=False)
    load_strictly(network, tensors, where=where, tolerated=TOLERATED)
    return network


def _expected(config: RemoteSAMConfig) -> dict[str, Any]:
    with torch.device("meta"):
        return dict(RemoteSAM(config).state_dict())


def _not_ours(where: str, why: str) -> ModelError:
    fix = "Fetch the weights again, or convert a checkpoint of RemoteSAM: eo-batch models convert FILE.pth."
    return ModelError("model-load", "does not describe a RemoteSAM network", where=where, why=why, fix=fix)


_open: WeakValueDictionary[tuple[str, str, str], Engine] = WeakValueDictionary()
_opening = threading.Lock()
