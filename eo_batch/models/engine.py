"""A network in memory: loaded once per process, shared by all threads, one call at a time where the device wants it so."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from eo_batch.core.errors import ConfigError, ModelError, ResourceError
from eo_batch.models.weights import WeightFiles
from eo_batch.models.weights.folders import FolderFiles
from eo_batch.models.weights.watch import Watch

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
    room : kind of call -> so many windows fit in the memory of the device; learnt where more did not.
    watch : of the file that the weights are views of; None where they are copies.
    """

    network: _Network
    device: torch.device
    dtype: torch.dtype
    segmenter: str = ""
    together: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    room: dict[str, int] = field(default_factory=dict)
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

    def by_room(self, kind: str, compute: Callable[[int, int], _Answer], count: int, *, most: int) -> list[_Answer]:
        """`compute(first, end)` of `count` windows, `most` at a time; half as many from then on where they do not fit.

        Raises
        ------
        ModelError : `model-oom`: not even one fits.
        """
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
            where=f'segmenter "{self.segmenter}"',
            why=str(error).splitlines()[0][:200],
            fix='Lower model.batch, use fewer workers, or on a GPU set precision = "bfloat16".',
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


_open: WeakValueDictionary[tuple[str, ...], Engine[Any]] = WeakValueDictionary()
_opening = threading.Lock()
_locks: dict[str, threading.Lock] = {}
