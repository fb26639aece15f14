"""More prompts for a finished run: only their answers are computed, and the run becomes what one with all prompts is.

No finished file changes until all is computed; then the map is published anew. A driver that is killed leaves the map of
the prompts before, and `resume_run` goes on.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet, as_written, normalise_text
from eo_batch.core.spec import PipelineSpec, validate
from eo_batch.models.inference import probe_company
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import prompt_warnings
from eo_batch.outputs.cube import forget_shards
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.cost.compare import put_plan
from eo_batch.run.cost.plan import Plan, make_plan
from eo_batch.run.driver import RunSummary, conduct, identity_from
from eo_batch.run.generations import Generation, check_no_gap, newest
from eo_batch.run.lease import acquire, check_free
from eo_batch.run.manifest import (
    RunInputs,
    SegmenterIdentity,
    check_resumable,
    check_rules,
    read_inputs,
    read_manifest,
    read_request,
    write_inputs,
)
from eo_batch.run.merge import read_marker
from eo_batch.run.request import Request
from eo_batch.run.told.events import Event, Listener, silent
from eo_batch.version import __version__


def add_prompts(
    run: str | Path,
    prompts: str | Sequence[str],
    *,
    threshold: float | Sequence[float] = 0.5,
    min_area_m2: float | Sequence[float] = 0.0,
    executor: str | None = None,
    workers: int | None = None,
    allow_failed: int = 0,
    listener: Listener = silent,
) -> RunSummary:
    """Extend a finished run by prompts, in its own folder.

    Parameters
    ----------
    prompts : texts, in the order in which they follow the prompts of the run.
    threshold, min_area_m2 : as in a pipeline: one number for all `prompts`, or one for each.
    executor, workers, allow_failed, listener : as in `start_run`.

    Raises
    ------
    ConfigError : `prompt-invalid`: a prompt is in the run already, or cannot be served; `config-invalid`: there is no run,
        or it is not complete.
    ResumeError : the run was made by other code or weights.
    IntegrityError : `nondeterministic-output`: the segmenter answers a prompt otherwise beside others.
    LockError : another driver is alive.
    """
    began = time.monotonic()
    ready = _prepared(run, prompts, threshold, min_area_m2, executor=executor, workers=workers, listener=listener)
    base, inputs, identity = ready.base, ready.inputs, ready.segmenter
    more = f"{ready.plan.prompts:,} more prompt{'s' if ready.plan.prompts > 1 else ''}"
    text = f"{more} in {ready.plan.chunks:,} chunks, {ready.plan.scenes:,} scenes: "
    figures = {label: value for label, value, _ in ready.plan.rows()}
    text += f"{figures['windows']} windows, {figures['disk']} on disk, {figures['time']}"
    listener(Event("plan", text, total=ready.plan.chunks, data=ready.plan.as_dict()))
    ready.plan.check()
    with acquire(base) as lease:
        if newest(run).number != base.number:
            what = "another driver has given prompts to the run meanwhile"
            raise ConfigError("config-invalid", what, where=base.where, fix="Begin again.")
        _finished_inputs(base)
        count = len(inputs.request.spec.prompts)
        for position in range(count - ready.plan.prompts, count):
            forget_shards(base, position)  # of an extension that was given up: they answer other prompts
        write_inputs(base.following, inputs, segmenter=identity, version=__version__)
        put_plan(base.following, ready.plan)
        return conduct(base.following, inputs, identity, lease, ready.cluster, allow_failed, listener, began)


def plan_prompts(
    run: str | Path,
    prompts: str | Sequence[str],
    *,
    threshold: float | Sequence[float] = 0.5,
    min_area_m2: float | Sequence[float] = 0.0,
    executor: str | None = None,
    workers: int | None = None,
    listener: Listener = silent,
) -> Plan:
    """What `add_prompts` would take, without beginning it; parameters and errors as there."""
    return _prepared(run, prompts, threshold, min_area_m2, executor=executor, workers=workers, listener=listener).plan


def extended_request(
    before: Request,
    prompts: str | Sequence[str],
    *,
    threshold: float | Sequence[float] = 0.5,
    min_area_m2: float | Sequence[float] = 0.0,
) -> Request:
    """`before` with prompts after its own: what a pipeline that lists all of them would ask for.

    Raises
    ------
    ConfigError : `prompt-invalid` or `config-invalid`.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ConfigError("prompt-invalid", "no prompt is given", fix='Name at least one, such as "solar panel".')
    known = {prompt.id: prompt for prompt in before.spec.prompt_set}
    rows = []
    for number, (text, least, area) in enumerate(
        zip(texts, _one_each(threshold, texts, "threshold"), _one_each(min_area_m2, texts, "min_area_m2"), strict=True), 1
    ):
        rows.append({"text": text, "threshold": least, "min_area_m2": area})
        there = known.get(Prompt(normalise_text(text, number=number)).id)
        if there is not None:
            raise ConfigError(
                "prompt-invalid",
                f"the run has this prompt already, from score {there.threshold:g}",
                where=f'"{there.text}"',
                fix=f"For another threshold: eo-batch rethreshold RUN --prompt {shlex.quote(there.text)} --threshold T.",
            )
    document = before.spec.model_dump(mode="json")
    document["prompts"] += rows
    spec = validate(PipelineSpec, document, where="the run with more prompts")
    _ = spec.prompt_set  # refuses prompts that are the same as each other
    return replace(before, spec=spec)


def _one_each(numbers: float | Sequence[float], texts: Sequence[str], name: str) -> list[float]:
    given = [as_written(number) for number in (numbers if isinstance(numbers, Iterable) else [numbers])]
    if len(given) == 1:
        return given * len(texts)
    if len(given) != len(texts):
        what = f"{len(given)} numbers for {len(texts)} prompts"
        raise ConfigError("config-invalid", what, where=name, fix="Give one for all prompts, or one for each, in their order.")
    return given


def _finished_inputs(base: Generation) -> RunInputs:
    """Inputs of a run that lacks nothing.

    Raises
    ------
    ConfigError : `config-invalid`: it is not complete.
    ResumeError : it was made by other code.
    """
    manifest, marker = read_manifest(base), read_marker(base)
    if manifest is not None:
        check_rules(manifest)
    what = ""
    if manifest is None or marker is None or marker["run"] != manifest["digest"]:
        added = "an extension of the run" if base.number else "the run"
        what = f"{added} is not finished"
    elif marker["partial"]:
        what = f"{marker['chunks']['failed']:,} chunks of the run failed"
    if what:
        fix = f"Finish it first: eo-batch resume {base.where}."
        raise ConfigError("config-invalid", what, where=base.where, fix=fix)
    return read_inputs(base)


@dataclass(frozen=True)
class _Ready:
    """An extension that nothing stands against: the generation it rests on, inputs with all prompts, who answers, the plan, who
    computes."""

    base: Generation
    inputs: RunInputs
    segmenter: SegmenterIdentity
    plan: Plan
    cluster: ClusterSpec


def _prepared(
    run: str | Path,
    prompts: str | Sequence[str],
    threshold: float | Sequence[float],
    min_area_m2: float | Sequence[float],
    *,
    executor: str | None,
    workers: int | None,
    listener: Listener,
) -> _Ready:
    """All that can be known before the work: the run is whole, the prompts fit, and the segmenter minds no company."""
    base = newest(run)
    before = read_request(base)
    check_no_gap(base)
    cluster = choose_cluster(before.spec.cluster, executor, workers)
    check_free(base)
    finished = _finished_inputs(base)
    inputs = replace(finished, request=extended_request(before, prompts, threshold=threshold, min_area_m2=min_area_m2))
    spec, known = inputs.request.spec, len(before.spec.prompts)
    every = spec.prompt_set
    added = PromptSet(every.prompts[known:])
    segmenter = load_segmenter(spec.model, spec.source.bands)
    manifest = read_manifest(base)
    assert manifest is not None
    check_resumable(manifest, inputs, segmenter_digest=segmenter.info.digest)
    for text in prompt_warnings(segmenter, added):
        listener(Event("warning", text))
    window_px, batch = spec.model.window_px, spec.model.fixed_batch
    probe_company(segmenter, every, known=known, bands=spec.source.bands, window_px=window_px, batch=batch)
    plan = make_plan(inputs, segmenter, prompts=added, cluster=cluster, out=base.where)
    return _Ready(base, inputs, identity_from(segmenter), plan, cluster)
