"""A network in memory: loaded once per process, shared by all threads, one call at a time where the device wants it so.

Threads read scenes, prepare pixels and write shards side by side, and take turns with the GPU: `Engine.call`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from eo_batch.core.errors import ModelError
from eo_batch.models.batch import GPU_BATCHES, SAFE_SHARE
from eo_batch.models.busy import counted
from eo_batch.models.devices import (
    find_device,
    finish,
    first_line,
    is_full,
    is_lost,
    let_go,
    lost_device,
    name_of,
    room_of,
    sent,
)
from eo_batch.models.weights import WeightFiles
from eo_batch.models.weights.folders import FolderFiles
from eo_batch.models.weights.watch import Watch

TRIES = 3
"""How often a call is made for which the memory of a GPU does not suffice."""

_Network = TypeVar("_Network", bound=torch.nn.Module)
_Answer = TypeVar("_Answer")
_Opened = TypeVar("_Opened", bound="Engine[Any]")


@dataclass(frozen=True, eq=False)
class Engine(Generic[_Network]):
    """One network on one device, with what has been learnt of it so far.

    Parameters
    ----------
    network : in evaluation mode, without gradients.
    device, dtype : where and with what numbers it computes.
    segmenter : name of the segmenter that asks, for messages.
    together : windows of a batch are computed in one call, as a GPU wants it; otherwise one after the other, so that a window's
        bits cannot depend on its company.
    lock : held during a call on a GPU, one for each GPU of this process; on a CPU calls may run side by side.
    watch : of the file that the weights are views of; None where they are copies.
    """

    network: _Network
    device: torch.device
    dtype: torch.dtype
    segmenter: str = ""
    together: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    watch: Watch | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and tables."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    def distinct(self, contents: list[bytes]) -> tuple[tuple[int, ...], list[int]]:
        """For each window its place among those that are computed, and which those are.

        A window that stands in a batch twice is computed once; a GPU keeps the shape of its calls, and so its bits.
        """
        if self.together:
            return tuple(range(len(contents))), list(range(len(contents)))
        distinct = list(dict.fromkeys(contents))
        return tuple(distinct.index(content) for content in contents), [contents.index(content) for content in distinct]

    def windows_apart(self, count: int) -> list[slice]:
        """Windows that are computed in one call: all of a batch on a GPU, each alone on a CPU."""
        return [slice(0, count)] if self.together else [slice(number, number + 1) for number in range(count)]

    def call(self, compute: Callable[[], _Answer], *, threads: int, what: str, windows: int = 0) -> _Answer:
        """`compute()` as `computing` does; where the memory of a GPU did not suffice, the same again, `TRIES` times in all.

        Never with fewer windows: a GPU may give a window other bits in other company, and a run is to be the same everywhere.

        Parameters
        ----------
        what, windows : what is computed, and how many windows of a batch that is, for messages.

        Raises
        ------
        ModelError, ResourceError, IntegrityError : as `computing`.
        """
        for _ in range(TRIES - 1 if self.together else 0):
            try:
                with self.computing(threads, what, windows):
                    return compute()
            except ModelError as error:
                if error.code != "model-oom":
                    raise
            let_go(self.device)  # only here: until its error is gone the failed call holds what it had made
        with self.computing(threads, what, windows):
            return compute()

    def join(self, windows: list[tuple[Tensor, ...]], *, threads: int) -> list[tuple[Tensor, ...]]:
        """Kept features of single windows, each (1, ...), on the device: one entry for all that are computed together.

        Raises
        ------
        ModelError, ResourceError : as `computing`.
        """
        entries = [tuple(torch.cat(part) for part in zip(*windows, strict=True))] if self.together else windows

        def send() -> list[tuple[Tensor, ...]]:
            return [tuple(sent(part, self.device) for part in entry) for entry in entries]

        return self.call(send, threads=threads, what="kept features", windows=len(windows))

    @contextmanager
    def computing(self, threads: int, what: str, windows: int = 0) -> Iterator[None]:
        """Surroundings of every call: no gradients, fixed numerics; on a GPU one at a time, from sending to having answers.

        Raises
        ------
        ModelError : `model-oom`: `what` does not fit in the memory of the device.
        ResourceError : `gpu-lost`: the device failed, and this process can compute nothing more.
        IntegrityError : `weights-altered`: what was computed may be wrong.
        """
        try:
            with torch.inference_mode(), self._held(threads):
                yield
                finish(self.device)
            if self.watch is not None:
                self.watch.check()
        except RuntimeError as error:
            if is_full(error):
                raise self._out_of_memory(what, windows, error) from None
            if is_lost(error):
                raise lost_device(self.device, error, where=self._where) from None
            raise

    @contextmanager
    def _held(self, threads: int) -> Iterator[None]:
        """The device for this call: a GPU alone and on the clock; of a CPU so many threads, beside others."""
        if not self.together:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            yield
            return
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with self.lock, counted(), exact:
            yield

    @property
    def _where(self) -> str:
        return f'segmenter "{self.segmenter}"'

    def _out_of_memory(self, what: str, windows: int, error: RuntimeError) -> ModelError:
        room = room_of(self.device, error)
        if room is None or not windows:
            return ModelError(
                "model-oom",
                f"{what} do not fit in the memory of the {self.device.type}",
                where=self._where,
                why=first_line(error),
                fix='Lower model.batch, use fewer workers, or on a GPU set precision = "bfloat16".',
            )
        needed, free = room
        return ModelError(
            "model-oom",
            f"batch of {windows} windows needs {needed / 1e9:.1f} GB, {name_of(self.device)} has {free / 1e9:.1f} GB free",
            where=self._where,
            why=what,
            fix=_smaller(windows, needed - self.weight_bytes, free - self.weight_bytes),
        )


def open_once(
    kind: type[_Opened],
    files: Sequence[WeightFiles | FolderFiles],
    load: Callable[[torch.device, torch.dtype], tuple[torch.nn.Module, Mapping[str, Any]]],
    *,
    device: str,
    precision: str,
) -> _Opened:
    """The engine that `load` makes of `files`; the one that this process already holds, if it does.

    Parameters
    ----------
    kind : of engine.
    files : all that the network is read from.
    load : gives the network, on that device and with those numbers, and what the engine holds beside it.
    device : "cpu", "cuda", or "auto": a GPU where there is one.
    precision : "float32", "bfloat16" or "float16".

    Raises
    ------
    ModelError : `model-load`.
    IntegrityError : `weights-altered`: a file is no longer the one whose sha256 is in `files`.
    ConfigError, ResourceError : as `find_device`.
    """
    place, dtype = find_device(device), getattr(torch, precision)
    key = (kind.__name__, *(one.sha256 for one in files), precision, str(place))
    with _opening:
        engine = _open.get(key)
        if engine is None:
            watch = Watch(files)
            network, own = load(place, dtype)
            watch.check()
            on_gpu = place.type != "cpu"
            lock = _locks.setdefault(str(place), threading.Lock())
            kept = None if on_gpu else watch  # on a GPU the weights are a copy
            engine = _open[key] = kind(network, place, dtype, together=on_gpu, lock=lock, watch=kept, **own)
        assert isinstance(engine, kind)
        return engine


def _smaller(windows: int, needed: int, free: int) -> str:
    """What to do about a batch that does not fit; bytes are those beside the weights."""
    fits = [batch for batch in GPU_BATCHES if batch < windows and batch * needed <= SAFE_SHARE * free * windows]
    if fits:
        return f'Plan with batch {fits[-1]}: a new run with model.batch = {fits[-1]}, or "auto".'
    return 'Not even one window fits: set precision = "bfloat16", or use a larger GPU.'


_open: WeakValueDictionary[tuple[str, ...], Engine[Any]] = WeakValueDictionary()
_opening = threading.Lock()
_locks: dict[str, threading.Lock] = {}
