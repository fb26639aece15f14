"""The network in memory: loaded once per process, shared by all threads, one call at a time where the device wants it so."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from eo_batch.core.errors import ConfigError, ModelError, ResourceError
from eo_batch.models.remotesam.config import RemoteSAMConfig
from eo_batch.models.remotesam.initial import initialise
from eo_batch.models.remotesam.network import ImageFeatures, PromptFeatures, RemoteSAM
from eo_batch.models.remotesam.trunk import Seen
from eo_batch.models.weights import WeightFiles, check_tensors, load_strictly, read_weights
from eo_batch.models.weights.watch import Watch

TOLERATED = ("text_encoder.embeddings.position_ids",)
"""Keys that other versions of the text encoder wrote and that mean nothing."""


_Answer = TypeVar("_Answer")


@dataclass(frozen=True, eq=False)
class Engine:
    """One network on one device, with what has been asked of it so far.

    Parameters
    ----------
    network : in evaluation mode, without gradients.
    device, dtype : where and with what numbers it computes.
    together : windows of a batch are computed in one call, as a GPU wants it; otherwise one after the other, so that a window's
        bits cannot depend on its company.
    lock : held during a call on a GPU, one for each GPU of this process; on a CPU calls may run side by side.
    prompts : tokens -> their features.
    room : kind of call -> so many windows fit in the memory of the device; learnt where more did not.
    watch : of the file that the weights are views of; None where they are copies.
    """

    network: RemoteSAM
    device: torch.device
    dtype: torch.dtype
    together: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    prompts: dict[bytes, PromptFeatures] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    watch: Watch | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and tables."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    def encode_sentence(self, ids: Tensor, mask: Tensor, *, threads: int) -> PromptFeatures:
        """Features of one sentence, int64 (tokens,); computed at its first asking."""
        key = ids.numpy().tobytes() + mask.numpy().tobytes()
        if key not in self.prompts:
            with self.computing(threads, f"{len(ids)} tokens"):
                known = mask[None].to(self.device)
                hidden = self.network.text_encoder.hidden(ids[None].to(self.device), known)
                self.prompts[key] = PromptFeatures((tuple(self.network.backbone.hear(hidden.to(self.dtype), known)),))
        return self.prompts[key]

    def encode_pixels(self, pixels: Tensor, *, threads: int) -> tuple[ImageFeatures, ...]:
        """What no prompt changes of windows, float32 (n, 3, side, side): one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # by this worker, while the GPU computes for another one

        def see(first: int, end: int) -> ImageFeatures:
            with self.computing(threads, f"{end - first} windows of {pixels.shape[-1]} px"):
                seen = self.network.backbone.see(pixels[first:end].to(self.device, non_blocking=True).to(self.dtype))
            return ImageFeatures((seen,), (pixels.shape[2], pixels.shape[3]))

        return tuple(self._by_room("see", see, len(pixels), most=len(pixels) if self.together else 1))

    def answer(self, windows: ImageFeatures, prompt: PromptFeatures, *, threads: int) -> Tensor:
        """Foreground minus background of the windows of one entry, float32 (n, side, side) on the CPU.

        Raises
        ------
        ModelError : `model-oom`.
        """
        (seen,) = windows.windows
        count = len(seen.look)

        def decide(first: int, end: int) -> Tensor:
            some = seen if end - first == count else Seen(seen.grid, *(part[first:end] for part in seen[1:]))
            with self.computing(threads, f"{end - first} windows and a prompt"):
                # of the one entry; its windows are where a prompt's would be
                logits = self.network.decode(ImageFeatures((some,), windows.size_yx), prompt)[0]
                return logits[:, 1] - logits[:, 0]

        # copied without the lock: the GPU may begin with what another worker asks, after this
        return torch.cat([part.cpu() for part in self._by_room("decide", decide, count, most=count)])

    @contextmanager
    def computing(self, threads: int, what: str) -> Iterator[None]:
        """Surroundings of every call: no gradients, fixed numerics, one at a time on a GPU.

        Raises
        ------
        ModelError : `model-oom`: `what` does not fit in the memory of the device.
        IntegrityError : `weights-altered`: what was computed may be wrong.
        """
        try:
            with torch.inference_mode():
                if self.device.type == "cpu":
                    if torch.get_num_threads() != threads:
                        torch.set_num_threads(threads)
                    yield
                    if self.watch is not None:
                        self.watch.check()
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

    def _by_room(self, kind: str, compute: Callable[[int, int], _Answer], count: int, *, most: int) -> list[_Answer]:
        """`compute(first, end)` of `count` windows, `most` at a time; half as many from then on where they do not fit."""
        answers: list[_Answer] = []
        done = 0
        while done < count:
            end = min(done + self.room.get(kind, most), count)
            try:
                answers.append(compute(done, end))
            except ModelError as error:
                if error.code != "model-oom" or end - done == 1:
                    raise
            else:
                done = end
                continue
            self.room[kind] = min(self.room.get(kind, most), (end - done) // 2)
            gc.collect()  # what the failed call still holds
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return answers

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
    IntegrityError : `weights-altered`: the file is no longer the one whose sha256 is in `files`.
    ConfigError, ResourceError : as `find_device`.
    """
    place = find_device(device)
    with _opening:
        key = files.sha256, str(place), precision
        engine = _open.get(key)
        if engine is None:
            watch = Watch(files.weights, files.stamp)
            network = _load(files).requires_grad_(False)
            dtype: torch.dtype = getattr(torch, precision)
            place_network(network, place, dtype)
            watch.check()
            on_gpu = place.type != "cpu"
            lock = _locks.setdefault(str(place), threading.Lock())
            engine = _open[key] = Engine(network, place, dtype, together=on_gpu, lock=lock, watch=None if on_gpu else watch)
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
    try:
        with torch.device("meta"):
            network = RemoteSAM(config)
    except RuntimeError as error:  # sizes whose product is beyond all numbers
        raise _not_ours(where, str(error)[:200]) from None
    check_tensors(network.state_dict(), tensors, where=where, tolerated=TOLERATED)  # before anything of these sizes is made
    for module in network.modules():  # tables that the file must agree with, and what no file holds
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    initialise(network, only_buffers=True)
    load_strictly(network, tensors, where=where, tolerated=TOLERATED)  # weights become views of the file
    return network.eval()


def place_network(network: RemoteSAM, device: torch.device, dtype: torch.dtype) -> None:
    """Move a network to `device` and make its numbers `dtype`, but those that would lose by it.

    The text encoder stays in float32: half of the error of bfloat16 comes from it, and it is asked once per prompt and run. So
    does batch normalisation: a variance may lie beyond what float16 can hold.
    """
    network.to(device)
    exact = set(network.text_encoder.modules())
    for module in network.modules():
        if module in exact or isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _not_ours(where: str, why: str) -> ModelError:
    fix = "Fetch the weights again, or convert a checkpoint of RemoteSAM: eo-batch models convert FILE.pth."
    return ModelError("model-load", "does not describe a RemoteSAM network", where=where, why=why, fix=fix)


_open: WeakValueDictionary[tuple[str, str, str], Engine] = WeakValueDictionary()
_opening = threading.Lock()
_locks: dict[str, threading.Lock] = {}
