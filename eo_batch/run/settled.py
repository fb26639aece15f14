"""What a pipeline may leave open, and a run must not: windows per call, and the kind of device. Found once, then frozen.

What is written into `request.json` is the answer, never the question. So a run goes on with the same numbers wherever it is
resumed, and a worker of another kind is refused instead of giving other bits.
"""

from __future__ import annotations

import psutil

from eo_batch.core.clusters import ClusterSpec
from eo_batch.models.batch import choose_batch
from eo_batch.models.registry import with_device
from eo_batch.models.segmenter import Segmenter
from eo_batch.run.crew import crew_of
from eo_batch.run.memory import SAFE_SHARE
from eo_batch.run.request import Request


def settle(request: Request, segmenter: Segmenter, cluster: ClusterSpec) -> Request:
    """The request with the batch that fits and the device that was found.

    Parameters
    ----------
    segmenter : loaded as the request asks.

    Raises
    ------
    ModelError : `model-oom`: not even one window fits.
    """
    spec = request.spec
    model = with_device(spec.model, segmenter.info.device)
    if model.batch == "auto":
        crew = crew_of(cluster)
        limit = spec.limits.memory_gb
        here = int(limit * 1e9) if limit else int(psutil.virtual_memory().available * SAFE_SHARE)
        own = here // crew.processes if cluster.memory_gb is None else int(cluster.memory_gb * 1e9)
        batch = choose_batch(
            segmenter, spec.prompt_set, spec.source.bands, window_px=model.window_px, tasks=crew.threads, memory_bytes=own
        )
        model = model.model_copy(update={"batch": batch})
    return request.with_model(model)
