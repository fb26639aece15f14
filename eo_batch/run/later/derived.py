"""A run made from the stored scores of another: where that other run is, and that it is still the same one.

`derived.json` is no part of any digest: once a derived run is complete, it stands alone. Only where a chunk is still missing
is the other run needed; without `derived.json` such a chunk is computed from its scenes, as in any run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import ConfigError, IntegrityError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import PipelineSpec, validate
from eo_batch.outputs.places import place_of
from eo_batch.outputs.store import Store
from eo_batch.run.generations import Generation, with_manifest
from eo_batch.run.manifest import SegmenterIdentity, identity_of, read_manifest, read_request
from eo_batch.run.request import Request

DERIVED = "derived.json"


@dataclass(frozen=True)
class Derived:
    """What `derived.json` says.

    Parameters
    ----------
    place : folder of the run whose scores are used, relative to the derived run (or absolute).
    run : digest of that run's manifest.
    """

    place: str
    run: str


def write_derived(store: Store, base: Store, *, run_digest: str) -> None:
    """Say that the run in `store` is made from the scores of `base`; replaces what an attempt said that did not get further."""
    place = place_of(base.where).seen_from(place_of(store.where))
    store.put(DERIVED, canonical_json({"from": place, "run": run_digest}))


def read_derived(store: Store) -> Derived | None:
    """Where the scores of a run come from, or None: from scenes.

    Raises
    ------
    IntegrityError : `receipt-mismatch`: the file is damaged.
    """
    if getattr(store, "number", 0) or not store.exists(DERIVED):
        return None  # prompts that were added later are answered from scenes
    try:
        document = json.loads(store.get(DERIVED))
        place, run = document["from"], document["run"]
    except (ValueError, KeyError, TypeError):
        place = run = None
    if not (isinstance(place, str) and isinstance(run, str) and place and "\0" not in place):
        fix = f'Write {{"from": FOLDER, "run": DIGEST}} again, or delete it: {_WITHOUT}.'
        raise IntegrityError("receipt-mismatch", f"{DERIVED} is damaged", where=store.where, fix=fix)
    return Derived(place, run)


def open_base(store: Store, request: Request, derived: Derived) -> Generation:
    """The run from whose scores the run in `store` is made, if it is there and fits.

    Parameters
    ----------
    request : of the run in `store`.

    Raises
    ------
    ConfigError : `config-invalid`: it is not there, or it is another run.
    """
    base = with_manifest(str(place_of(store.where).at(derived.place)), derived.run)
    where = store.where
    if not base.exists("request.json"):
        fix = f'Move it back, or write its folder as "from" in `{store.named(DERIVED)}`; without that file {_WITHOUT}.'
        what = "the run from whose stored scores this one is made is not there"
        raise ConfigError("config-invalid", what, where=where, why=f"looked in {base.where}", fix=fix)
    manifest = read_manifest(base)
    same = manifest is not None and manifest["digest"] == derived.run
    if not same or with_prompts(read_request(base), request.spec.prompt_set).to_json() != request.to_json():
        fix = f'Write the folder of the right run as "from" in `{store.named(DERIVED)}`; without that file {_WITHOUT}.'
        what = f"`{base.where}` is not the run from whose stored scores this one is made"
        raise ConfigError("config-invalid", what, where=where, fix=fix)
    return base


def kept_identity(store: Store) -> SegmenterIdentity | None:
    """Who gave the scores of a derived run, without loading it; None where scenes are read and a segmenter must answer.

    Raises
    ------
    ConfigError : as `open_base`, where the derived run has no manifest yet.
    """
    derived = read_derived(store)
    if derived is None:
        return None
    manifest = read_manifest(store) or read_manifest(open_base(store, read_request(store), derived))
    assert manifest is not None
    return identity_of(manifest)


def with_prompts(request: Request, prompts: PromptSet) -> Request:
    """`request` with the thresholds and minimum areas of `prompts`; its texts stay as they are.

    Raises
    ------
    ConfigError : `config-invalid`: a number that a pipeline may not have.
    """
    document = request.spec.model_dump(mode="json")
    document["prompts"] = [
        {**stored, "threshold": prompt.threshold, "min_area_m2": prompt.min_area_m2}
        for stored, prompt in zip(document["prompts"], prompts, strict=False)
    ]
    return replace(request, spec=validate(PipelineSpec, document, where="prompts"))


_WITHOUT = "what is missing is computed from the scenes"
