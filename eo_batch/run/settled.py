"""What a pipeline may leave open, and a run must not: windows per call, and the kind of device. Found once, then frozen.

What is written into `request.json` is the answer, never the question. So a run goes on with the same numbers wherever it is
resumed, and a worker of another kind is refused instead of giving other bits. Where the workers may have GPUs and this process
has none, or shall leave them alone, they are asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import EoBatchError, ModelError, ResourceError
from eo_batch.core.spec import ModelSpec, PipelineSpec
from eo_batch.models.batch import choose_batch
from eo_batch.models.inference import ProbeReport, probe_segmenter
from eo_batch.models.registry import has_device, load_segmenter, with_device
from eo_batch.models.segmenter import Segmenter, SegmenterInfo
from eo_batch.run.cost.memory import SAFE_SHARE
from eo_batch.run.cost.price import Price, measure_price
from eo_batch.run.crew import Crew, crew_of
from eo_batch.run.executors import make_executor
from eo_batch.run.executors.worker import worker_threads
from eo_batch.run.features import check_keeps
from eo_batch.run.request import Request

ANSWER_S = 900.0
"""How long a worker may take to load a segmenter and to try it."""
STARTED_FOR_US = ("slurm", "pbs", "kubernetes")
"""Kinds of clusters whose workers are started when they are asked for: one of them answers for all."""


@dataclass(frozen=True)
class Settled:
    """A request that leaves nothing open, and its segmenter.

    Parameters
    ----------
    segmenter : loaded here; its `info` is that of the segmenter that will answer.
    probe, price : what a worker found and measured; None: this machine is like the workers, and nobody was asked.
    """

    request: Request
    segmenter: Segmenter
    probe: ProbeReport | None = None
    price: Price | None = None


@dataclass(frozen=True)
class Told:
    """What a worker says of the segmenter that it would answer with."""

    info: SegmenterInfo
    batch: int
    probe: ProbeReport
    price: Price


def settle(request: Request, cluster: ClusterSpec, *, say: Callable[[str], None] = lambda text: None) -> Settled:
    """Load the segmenter, and find what the request leaves open.

    Parameters
    ----------
    say : told, in words, what is waited for.

    Raises
    ------
    ConfigError, PolicyError, ResourceError, IntegrityError : as `load_segmenter` and `probe_segmenter`.
    ModelError : these, and `model-oom`: not even one window fits.
    """
    spec, crew = request.spec, crew_of(cluster)
    if has_device(spec.model) and spec.model.options.get("device") != "cpu" and _is_theirs(cluster, crew):
        return _settle_elsewhere(request, cluster, say)
    segmenter = load_segmenter(spec.model, spec.source.bands)
    limit = spec.limits.memory_gb
    here = int(limit * 1e9) if limit else int(psutil.virtual_memory().available * SAFE_SHARE)
    memory = here // crew.processes if cluster.memory_gb is None else int(cluster.memory_gb * 1e9)
    batch = _batch_of(spec, segmenter, tasks=crew.threads, memory_bytes=memory)
    return Settled(request.with_model(_settled(spec.model, segmenter.info.device, batch)), segmenter)


def ask_here(spec: PipelineSpec, tasks: int, memory_bytes: int | None) -> Told:
    """What this process can say: the function that workers are asked with.

    Parameters
    ----------
    tasks : chunks at once in this process, unless its Dask worker says another number.
    memory_bytes : that it may take; None: nobody said.
    """
    segmenter = load_segmenter(spec.model, spec.source.bands)
    free = memory_bytes or int(psutil.virtual_memory().available * SAFE_SHARE)
    prompts, bands = spec.prompt_set, spec.source.bands
    batch = _batch_of(spec, segmenter, tasks=worker_threads() or tasks, memory_bytes=free)
    keeper, window_px = check_keeps(segmenter, spec.cache), spec.model.window_px
    probe = probe_segmenter(segmenter, prompts, bands, window_px=window_px, batch=batch, keeps_features=keeper is not None)
    price = measure_price(segmenter, prompts, bands, window_px=window_px, batch=batch, keeper=keeper)
    return Told(segmenter.info, batch, probe, price)


def agree(answers: Mapping[str, Any]) -> Told:
    """What all workers can do: those with a GPU if there are any, and the smallest of their batches.

    Parameters
    ----------
    answers : name of a worker -> `Told`, or the exception it raised.

    Raises
    ------
    EoBatchError : what the first one raised, where none could answer.
    ModelError : `model-load`: they would answer with different weights.
    """
    told = {name: answer for name, answer in sorted(answers.items()) if isinstance(answer, Told)}
    if not told:
        first = next((answer for answer in answers.values() if isinstance(answer, EoBatchError)), None)
        why = "; ".join(sorted({type(answer).__name__ for answer in answers.values()}))
        fix = "Look at the workers' logs, or set model.options.device and model.batch."
        raise first or ResourceError("cluster-lost", "no worker could try the segmenter", why=why, fix=fix)
    on_gpu = {name: answer for name, answer in told.items() if answer.info.device != "cpu"} or told
    if len({answer.info.digest for answer in on_gpu.values()}) > 1:
        fix = "Give all workers the same files of weights."
        raise ModelError("model-load", "workers would answer with different weights", where=", ".join(on_gpu), fix=fix)
    return min(on_gpu.values(), key=lambda answer: answer.batch)


def _settle_elsewhere(request: Request, cluster: ClusterSpec, say: Callable[[str], None]) -> Settled:
    """The same, as workers say that are elsewhere."""
    spec = request.spec
    here = load_segmenter(_on(spec.model, "cpu"), spec.source.bands)
    asked = cluster.model_copy(update={"workers": 1}) if cluster.kind in STARTED_FOR_US else cluster
    memory = None if cluster.memory_gb is None else int(cluster.memory_gb * 1e9)
    say("asking the workers for their device and for the batch that fits")
    with make_executor(asked, say=say) as pool:
        told = agree(pool.on_each_worker(ask_here, spec, crew_of(cluster).threads, memory, timeout_s=ANSWER_S))
    alike = copy.copy(here)
    object.__setattr__(alike, "info", told.info)  # prompts are read here as there; only its device is another
    return Settled(request.with_model(_settled(spec.model, told.info.device, told.batch)), alike, told.probe, told.price)


def _batch_of(spec: PipelineSpec, segmenter: Segmenter, *, tasks: int, memory_bytes: int) -> int:
    if spec.model.batch != "auto":
        return spec.model.batch
    window_px = spec.model.window_px
    return choose_batch(
        segmenter, spec.prompt_set, spec.source.bands, window_px=window_px, tasks=tasks, memory_bytes=memory_bytes
    )


def _settled(model: ModelSpec, device: str, batch: int) -> ModelSpec:
    return with_device(model, device).model_copy(update={"batch": batch})


def _on(model: ModelSpec, device: str) -> ModelSpec:
    return model.model_copy(update={"options": {**model.options, "device": device}})


def _is_theirs(cluster: ClusterSpec, crew: Crew) -> bool:
    """The workers may have a GPU where this process has none, or is to leave it to them."""
    if cluster.kind == "gpus":
        return True
    if crew.is_here:
        return False
    try:
        from eo_batch.models.devices import find_device
    except ImportError:  # whoever loads the segmenter says what is missing
        return False
    return find_device("auto").type == "cpu"
