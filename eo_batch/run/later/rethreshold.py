"""Other thresholds for a finished run: new masks and footprints from its stored scores, in a new folder beside it.

No scene is read, no segmenter is loaded. What comes out is, byte for byte, the run that would have come out had these
thresholds been in the pipeline from the start; scores are shared with the old run as hard links where the disk allows it.
"""

from __future__ import annotations

import difflib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from eo_batch.core.arrays import least_step
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet, as_written, normalise_text
from eo_batch.outputs.places import place_of
from eo_batch.outputs.store import Store
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.driver import RunSummary, conduct
from eo_batch.run.generations import Generation, check_published, published
from eo_batch.run.later.derived import DERIVED, with_prompts, write_derived
from eo_batch.run.lease import acquire, check_free
from eo_batch.run.manifest import check_rules, identity_of, read_inputs, read_manifest, read_request, write_inputs
from eo_batch.run.merge import read_marker
from eo_batch.run.told.events import Event, Listener, silent
from eo_batch.version import __version__


@dataclass(frozen=True)
class Change:
    """What becomes other for one prompt; None: stays as it is.

    Parameters
    ----------
    threshold : score in (0, 1) from which a pixel counts as found.
    min_area_m2 : smaller footprints are not reported.
    """

    threshold: float | None = None
    min_area_m2: float | None = None


def rethreshold(
    run: str | Path,
    changes: Mapping[str, float | Change],
    out: Path | str | None = None,
    *,
    executor: str | None = None,
    workers: int | None = None,
    listener: Listener = silent,
) -> RunSummary:
    """Make a new run from the stored scores of a finished one, with other thresholds.

    Parameters
    ----------
    run : folder of a finished run with `output.scores = true`; it is only read.
    changes : prompt (text or id) -> new threshold, or `Change`. Prompts that are not named keep theirs.
    out : new folder; default: beside `run`, named `RUN-v2`, or the next number that is free.
    executor, workers, listener : as in `start_run`.

    Returns
    -------
    RunSummary, with the folder of the new run as `path`.

    Raises
    ------
    ConfigError : a prompt or number is wrong, the run has no scores or is not finished, or `out` holds something else.
    ResumeError : `format-older`, `format-newer` or `code-changed`: another eo-batch made the run.
    IntegrityError : the run is damaged.
    """
    began = time.monotonic()
    base = finished_run(run)
    manifest = read_manifest(base)
    assert manifest is not None
    check_rules(manifest)
    inputs = read_inputs(base)
    cluster = choose_cluster(inputs.request.spec.cluster, executor, workers)
    prompts = changed_prompts(inputs.request.spec.prompt_set, changes)
    for text in _without_effect(inputs.request.spec.prompt_set, prompts):
        listener(Event("warning", text))
    inputs = replace(inputs, request=with_prompts(inputs.request, prompts))
    store = Generation(out if out is not None else next_version(base.where))
    _refuse_inside(store, base)
    _refuse_used(store)
    check_free(store)
    with acquire(store) as lease:
        _refuse_used(store)  # another driver may have begun meanwhile
        write_derived(store, base, run_digest=manifest["digest"])
        store.adopt("items.parquet", base)
        identity = identity_of(manifest)
        write_inputs(store, inputs, segmenter=identity, version=__version__)
        return conduct(store, inputs, identity, lease, cluster, 0, listener, began)


def finished_run(run: Path | str) -> Generation:
    """The published run in a folder, if it is finished and has scores.

    Raises
    ------
    ConfigError : `config-invalid`: there is no run, it is not finished, it lacks chunks, or it kept no scores.
    IntegrityError : its marker is damaged, or that of another run.
    """
    base = published(run)
    request = read_request(base)
    where = base.where
    marker = read_marker(base)
    check_published(base)
    if marker is None or marker["partial"]:
        what = "the run is not finished" if marker is None else f"{marker['chunks']['failed']:,} chunks of the run failed"
        raise ConfigError("config-invalid", what, where=where, fix=f"Finish it first: `eo-batch resume {where}`.")
    if not request.spec.output.scores:
        raise ConfigError(
            "config-invalid",
            "the run kept masks, but no scores to decide again from",
            where=where,
            fix="Set output.scores = true in the pipeline and start a new run: it takes the same time as the first.",
        )
    return base


def changed_prompts(prompts: PromptSet, changes: Mapping[str, float | Change]) -> PromptSet:
    """`prompts` with `changes`, in the same order.

    Raises
    ------
    ConfigError : `prompt-invalid`: an unknown prompt, a number out of range, or nothing that would be other than before.
    """
    found = list(prompts)
    for number, (name, wanted) in enumerate(changes.items(), 1):
        change = wanted if isinstance(wanted, Change) else Change(wanted)
        index = find_prompt(prompts, name, number=number)
        if found[index] is not prompts.prompts[index]:
            raise ConfigError("prompt-invalid", "named twice", where=f'prompt "{found[index].text}"', fix="Name it once.")
        found[index] = _changed(prompts.prompts[index], change)
    if tuple(found) == prompts.prompts:
        now = "; ".join(f'"{p.text}" from score {p.threshold:g}, from {p.min_area_m2:g} m2' for p in prompts)
        fix = "Give another threshold or minimum area; `--sweep` shows what thresholds would do."
        raise ConfigError("prompt-invalid", f"the run has these thresholds already: {now}", fix=fix)
    return PromptSet(tuple(found))


def find_prompt(prompts: PromptSet, name: str, *, number: int = 1) -> int:
    """Position of the prompt that has this text or id.

    Raises
    ------
    ConfigError : `prompt-invalid`, with the one that is close, and all there are.
    """
    text = normalise_text(name, number=number)
    for index, prompt in enumerate(prompts):
        if text in (prompt.text, prompt.id):
            return index
    close = difflib.get_close_matches(text.lower(), [known.lower() for known in prompts.texts], n=1)
    meant = next((known for known in prompts.texts if close and known.lower() == close[0]), "")
    fix = f'Did you mean "{meant}"? ' if meant else ""
    known = ", ".join(f'"{known}"' for known in prompts.texts)
    fix += f"It has {known}; `eo-batch add-prompts` adds others."
    raise ConfigError("prompt-invalid", f'the run has no prompt "{text}"', fix=fix)


def next_version(run: str | Path) -> str:
    """Folder beside `run` that is not there yet: `water-v2` for `water`, `water-v4` for `water-v3`."""
    old = place_of(run)
    match = re.fullmatch(r"(.+)-v([0-9]{1,6})", old.name)
    stem, number = (match[1], int(match[2])) if match else (old.name, 1)
    while True:
        number += 1
        place = str(old.beside(f"{stem}-v{number}"))
        if _is_free(place):
            return place


def _changed(prompt: Prompt, change: Change) -> Prompt:
    if change.threshold is None and change.min_area_m2 is None:
        fix = "Give a threshold, a minimum area, or both."
        raise ConfigError("prompt-invalid", "nothing is said that should change", where=f'prompt "{prompt.text}"', fix=fix)
    threshold = prompt.threshold if change.threshold is None else as_written(change.threshold)
    least = prompt.min_area_m2 if change.min_area_m2 is None else as_written(change.min_area_m2)
    if not 0 < threshold < 1:
        fix = "Give a score above 0 and below 1, such as 0.4."
        raise ConfigError("prompt-invalid", f"{threshold:g} is no threshold", where=f'prompt "{prompt.text}"', fix=fix)
    if not 0 <= least < float("inf"):
        fix = "Give square metres, 0 or more."
        raise ConfigError("prompt-invalid", f"{least:g} is no minimum area", where=f'prompt "{prompt.text}"', fix=fix)
    return replace(prompt, threshold=threshold, min_area_m2=least)


def _without_effect(before: PromptSet, after: PromptSet) -> list[str]:
    """One line for each new threshold that decides as the old one did."""
    return [
        f'"{new.text}": thresholds {old.threshold:g} and {new.threshold:g} are the same stored step, {least_step(new.threshold)}'
        " of 250: its mask will not change"
        for old, new in zip(before, after, strict=True)
        if old.threshold != new.threshold and least_step(old.threshold) == least_step(new.threshold)
    ]


def _refuse_inside(store: Store, base: Store) -> None:
    """Keep the new run out of the old one's folder, which it would make part of that run."""
    new, old = place_of(store.where), place_of(base.where)
    if new.holds(old) or old.holds(new):
        fix = "Give a folder beside it, or leave --out away."
        raise ConfigError("config-invalid", f"lies in the way of the run `{base.where}`", where=store.where, fix=fix)


def _refuse_used(store: Store) -> None:
    """Keep out of a folder that holds a run or something else.

    Raises
    ------
    ConfigError : `config-invalid`.
    """
    if store.exists("request.json"):
        fix = f"Continue it with `eo-batch resume {store.where}`, or give another --out."
        raise ConfigError("config-invalid", "this folder already holds a run", where=store.where, fix=fix)
    if foreign := _foreign(store):
        fix = "Give a new or empty folder as --out."
        raise ConfigError("config-invalid", f'the folder holds other files, such as "{foreign}"', where=store.where, fix=fix)


def _is_free(place: str) -> bool:
    """Nothing is there, or only what an attempt left that was killed before there was a run."""
    store = Store(place)
    if os.path.lexists(place) and not os.path.isdir(place):
        return False
    if store.exists("request.json") or _foreign(store) is not None:
        return False
    return store.exists(DERIVED) or not os.path.lexists(place)


def _foreign(store: Store) -> str | None:
    """A file that an attempt to begin a derived run does not leave, or None."""
    ours = (DERIVED, "items.parquet") if store.exists(DERIVED) else ()
    return next((path for path in store.list() if not path.startswith(("lease/", ".")) and path not in ours), None)
