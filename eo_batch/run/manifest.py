"""What a run became: its frozen items, grid, steps and identities; written once, and what a resume is held against."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from eo_batch.core.digest import canonical_json, digest, sha256
from eo_batch.core.errors import ConfigError, IntegrityError, ResumeError
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import Prompt
from eo_batch.core.records import ALGORITHM, FORMAT, ItemTable, TimeStep
from eo_batch.core.region import RegionOnGrid
from eo_batch.core.timeline import time_steps
from eo_batch.models.registry import with_device
from eo_batch.models.segmenter import SegmenterInfo
from eo_batch.outputs.store import Store
from eo_batch.run.request import Request, request_from_json
from eo_batch.sources.items import resolve_items
from eo_batch.sources.items.parquet import items_from_parquet, items_to_parquet

RANK_PROPERTY = "eo-batch:valid_share"
"""Item property that freezes the measured share of valid pixels (composite "best")."""


@dataclass(frozen=True)
class RunInputs:
    """Everything a chunk is computed from, apart from the segmenter."""

    request: Request
    items: ItemTable
    grid: Grid
    region: RegionOnGrid
    steps: tuple[TimeStep, ...]

    @property
    def chunk_count(self) -> int:
        """Chunks of all time steps."""
        ny, nx = self.grid.chunks_yx
        return ny * nx * len(self.steps)


@dataclass(frozen=True)
class SegmenterIdentity:
    """What a run keeps of the segmenter that answered: all that is needed to go on without loading it."""

    name: str
    digest: str


def make_inputs(request: Request, documents: Any, *, notes: list[str] | None = None) -> RunInputs:
    """Inputs of a request and its frozen STAC documents: a pure function, the same on every machine.

    Lines about items that were left out are appended to `notes`.
    """
    items = resolve_items(documents, request.spec, request.catalog, notes=notes)
    ranked = tuple(
        replace(item, rank=float(document["properties"].get(RANK_PROPERTY, item.rank)))
        for item, document in zip(items.items, items.documents, strict=True)
    )
    items = ItemTable(ranked, items.documents)
    grid, region = request.grid()
    return RunInputs(request, items, grid, region, time_steps(items, request.spec.time))


def write_inputs(store: Store, inputs: RunInputs, *, segmenter: SegmenterIdentity, version: str) -> None:
    """Write `request.json`, `items.parquet`, `manifest.json`, in this order; existing equal files stay."""
    store.create("request.json", inputs.request.to_json())
    frozen = items_to_parquet(inputs.items)
    if not store.exists("items.parquet"):
        store.put("items.parquet", frozen)
    store.create("manifest.json", canonical_json(manifest_of(store, inputs, segmenter=segmenter, version=version)))


def manifest_of(store: Store, inputs: RunInputs, *, segmenter: SegmenterIdentity, version: str) -> dict[str, Any]:
    """The manifest as JSON values. No secrets, no clock."""
    grid = inputs.grid
    body = {
        "format": FORMAT,
        "algorithm": ALGORITHM,
        "version": version,
        "name": inputs.request.spec.name,
        "request": inputs.request.digest,
        "items": inputs.items.digest,
        "items_file": sha256(store.get("items.parquet")),
        "item_count": len(inputs.items),
        "prompts": [[prompt.id, prompt.text, prompt.threshold] for prompt in inputs.request.spec.prompt_set],
        "segmenter": segmenter.digest,
        "segmenter_name": segmenter.name,
        "batch": inputs.request.spec.model.fixed_batch,
        "grid": {
            "crs": grid.crs,
            "resolution": grid.resolution,
            "rows": [grid.rows.start, grid.rows.stop],
            "cols": [grid.cols.start, grid.cols.stop],
            "chunk_px": grid.chunk_px,
            "window_px": grid.window_px,
            "stride_px": grid.stride_px,
        },
        "steps": [step.label for step in inputs.steps],
        "chunks": inputs.chunk_count,
    }
    return {**body, "digest": digest(body)}


def read_request(store: Store) -> Request:
    """The request a run was started with.

    Raises
    ------
    ConfigError : there is no run in the folder.
    """
    if not store.exists("request.json"):
        raise ConfigError(
            "config-invalid",
            "there is no run in this folder",
            where=store.where,
            fix="Start one: eo-batch run PIPELINE --out RUN.",
        )
    try:
        return request_from_json(store.get("request.json"), where=store.named("request.json"))
    except ConfigError as error:
        raise ConfigError(
            error.code, error.what, where=error.where, why=error.why, fix=error.fix or _restore(store, "request.json")
        ) from None


def read_inputs(store: Store) -> RunInputs:
    """Inputs of a run on disk, checked against its manifest where there is one.

    Raises
    ------
    IntegrityError : `receipt-mismatch` if manifest, request or items were changed afterwards, `shard-missing` without items.
    ResumeError : `format-newer`.
    """
    request = read_request(store)
    if not store.exists("items.parquet"):
        fix = "Run eo-batch resume RUN: it searches again."
        raise IntegrityError("shard-missing", "items are not there", where=store.named("items.parquet"), fix=fix)
    data = store.get("items.parquet")
    manifest = read_manifest(store)
    if manifest is not None and manifest["request"] != request.digest:
        raise _replaced(store, "request.json")
    if manifest is not None and manifest["items_file"] != sha256(data):  # before a damaged file is parsed
        raise _replaced(store, "items.parquet")
    inputs = make_inputs(request, items_from_parquet(data))
    if manifest is not None and manifest["items"] != inputs.items.digest:
        raise _replaced(store, "items.parquet")
    return inputs


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of a run, or None if the run was stopped before it was written.

    Raises
    ------
    IntegrityError : `receipt-mismatch`: it does not match its own digest.
    ResumeError : `format-newer`: this version may not continue the run.
    """
    if not store.exists("manifest.json"):
        return None
    try:
        manifest = json.loads(store.get("manifest.json"))
        body = {key: value for key, value in manifest.items() if key != "digest"}
        intact = manifest.get("digest") == digest(body) and isinstance(manifest["format"], int)
        intact = intact and (manifest["format"] > FORMAT or _is_sound(manifest))
    except (ValueError, AttributeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(
            "receipt-mismatch",
            "changed by hand or damaged",
            where=store.named("manifest.json"),
            fix=_restore(store, "manifest.json"),
        )
    if manifest["format"] > FORMAT:
        raise ResumeError(
            "format-newer",
            f"the run uses format {manifest['format']}, this eo-batch knows {FORMAT}",
            where=store.where,
            fix="Install the newer eo-batch.",
        )
    return manifest


def _is_sound(manifest: dict[str, Any]) -> bool:
    """What is counted and shown is of the kind it must be: the digest proves no more than that nothing was changed since."""
    steps = manifest["steps"]
    counts = (manifest["chunks"], manifest["item_count"])
    return isinstance(steps, list) and all(isinstance(step, str) for step in steps) and all(type(n) is int for n in counts)


def _replaced(store: Store, name: str) -> IntegrityError:
    what = "not the file that this run was started with"
    return IntegrityError("receipt-mismatch", what, where=store.named(name), fix=_restore(store, name))


def _restore(store: Store, name: str) -> str:
    """What to do about a file that says what a run is."""
    is_shared = store.place(name) == name
    if not is_shared and name == "manifest.json":
        return f"Run eo-batch resume {store.where} --repair: it is written again."
    if is_shared:
        return "Restore it from a copy, or start a new run."
    folder = store.named(name).removesuffix(f"/{name}")
    return f"Restore it from a copy, or give up what was added then: delete `{folder}` and all after it, and resume."


def identity_of(manifest: dict[str, Any]) -> SegmenterIdentity:
    """Who answered, from the manifest of a run of this format."""
    return SegmenterIdentity(manifest["segmenter_name"], manifest["segmenter"])


def check_rules(manifest: dict[str, Any]) -> None:
    """Refuse to go on with a run that other code has begun.

    Raises
    ------
    ResumeError : `format-older` or `code-changed`.
    """
    fix = "Continue with the version that started it, or start a new run."
    if manifest["format"] < FORMAT:
        what = f"the run uses format {manifest['format']}, which this eo-batch (format {FORMAT}) can read but not continue"
        raise ResumeError("format-older", what, fix=fix)
    if manifest["algorithm"] != ALGORITHM:
        what = f"the run was made by algorithm {manifest['algorithm']}, this eo-batch has {ALGORITHM}"
        raise ResumeError("code-changed", what, fix=fix)


def check_resumable(manifest: dict[str, Any], inputs: RunInputs, *, segmenter_digest: str) -> None:
    """Refuse to continue a run with other code, weights or items.

    Raises
    ------
    ResumeError : `format-older`, `code-changed` or `weights-changed`.
    IntegrityError : `receipt-mismatch`: its items were lost, and searching again found others.
    """
    check_rules(manifest)
    if manifest["segmenter"] != segmenter_digest:
        raise ResumeError(
            "weights-changed",
            f"segmenter {inputs.request.spec.model.name}: {manifest['segmenter'][:12]} became {segmenter_digest[:12]}",
            fix="Restore the weights, or start a new run.",
        )
    if manifest["items"] != inputs.items.digest:
        raise IntegrityError(
            "receipt-mismatch",
            "items.parquet is lost, and the catalog gives other items now",
            fix="Restore items.parquet from a copy, or start a new run.",
        )


def check_answers(manifest: dict[str, Any], info: SegmenterInfo) -> None:
    """Refuse to compute chunks of a run with another segmenter than began it, such as one on another kind of device.

    Raises
    ------
    ResumeError : `weights-changed`.
    """
    if manifest["segmenter"] != info.digest:
        raise ResumeError(
            "weights-changed",
            f"the segmenter of this worker is not that of the run: {manifest['segmenter'][:12]} became {info.digest[:12]}",
            where=f'segmenter "{info.name}" on "{info.device}"',
            fix="Give all workers the same weights and the same kind of device, then continue with eo-batch resume.",
        )


def as_settled(asked: Request, stored: Request) -> Request:
    """What was asked, with what it leaves open as it was found for the run that is `stored`; see `run.settled`."""
    model, found = asked.spec.model, stored.spec.model
    if model.name != found.name:
        return asked
    if model.batch == "auto":
        model = model.model_copy(update={"batch": found.batch})
    device = found.options.get("device")
    return asked.with_model(model if device is None else with_device(model, str(device)))


def check_same_request(stored: Request, asked: Request) -> None:
    """Refuse to continue a run with another pipeline.

    Raises
    ------
    ResumeError : `prompts-changed` or `spec-changed`, naming the first difference.
    """
    asked = as_settled(asked, stored)
    if stored.to_json() == asked.to_json():
        return
    old, new = stored.spec.identity, asked.spec.identity
    if old["prompts"] != new["prompts"]:
        before, after = ("; ".join(f'"{p["text"]}" >= {p["threshold"]}' for p in side["prompts"]) for side in (old, new))
        raise ResumeError("prompts-changed", f"{before} became {after}", fix=_other_prompts(stored, asked))
    difference = _first_difference(old, new) or _first_difference(
        {"catalog": {"collections": stored.catalog_rules}}, {"catalog": {"collections": asked.catalog_rules}}
    )
    if difference is None and stored.region != asked.region:
        difference = "region: the polygon changed"
    if difference is not None:
        raise ResumeError("spec-changed", difference, fix="Start a new run in another folder.")


def add_prompts_command(prompts: Sequence[Prompt]) -> str:
    """What to type to give a finished run these prompts."""
    words = ["eo-batch", "add-prompts", "RUN", *(prompt.text for prompt in prompts)]
    if any(prompt.threshold != Prompt("").threshold for prompt in prompts):
        words += [word for prompt in prompts for word in ("--threshold", _digits(prompt.threshold))]
    if any(prompt.min_area_m2 for prompt in prompts):
        words += [word for prompt in prompts for word in ("--min-area", _digits(prompt.min_area_m2))]
    return shlex.join(words)


def _digits(number: float) -> str:
    """All digits of a number, as one would type it."""
    return str(number).removesuffix(".0")


def _other_prompts(stored: Request, asked: Request) -> str:
    """What to do about a pipeline whose prompts are not those of the run."""
    before, after = stored.spec.prompt_set, asked.spec.prompt_set
    if after.prompts[: len(before)] == before.prompts:
        command = add_prompts_command(after.prompts[len(before) :])
        return f"Start a new run in another folder, or give the finished one more prompts: `{command}`."
    if before.prompts[: len(after)] == after.prompts:
        return "The run was given more prompts since it was started: go on with eo-batch resume RUN, without a pipeline."
    if after.texts == before.texts:
        return "Start a new run in another folder, or make a new version of the finished one: eo-batch rethreshold RUN."
    return "Start a new run in another folder. Prompts are added to a finished run with eo-batch add-prompts RUN."


def _first_difference(old: Any, new: Any, path: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            found = _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if old == new else f"{path}: {old} became {new}"
