"""Command `rethreshold`: other thresholds for a finished run, from its stored scores."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eo_batch.cli.jobs import Cluster, Workers, finish
from eo_batch.cli.progress import Progress
from eo_batch.cli.report import Json, Quiet, command, epilog, has_begun, print_json, print_table, say
from eo_batch.core.errors import ConfigError

if TYPE_CHECKING:
    from eo_batch.run.later.rethreshold import Change
    from eo_batch.run.later.sweep import Sweep, SweepRow

Run = Annotated[str, typer.Argument(metavar="RUN", help="A finished run with output.scores = true.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="Prompt of the run that gets another threshold; can be given several times."),
]
Thresholds = Annotated[
    list[float] | None,
    typer.Option(
        "--threshold",
        metavar="SCORE",
        help="Its new threshold, between 0 and 1: one for all prompts that are named, or one for each, in their order.",
    ),
]
MinAreas = Annotated[
    list[float] | None,
    typer.Option(
        "--min-area",
        metavar="M2",
        help="Its new smallest footprint in m2: one for all prompts that are named, or one for each, in their order.",
    ),
]
Out = Annotated[str | None, typer.Option(help="New folder. Default: beside RUN, named RUN-v2 or the next number that is free.")]
DoSweep = Annotated[
    bool,
    typer.Option("--sweep", help="Make no run: print what thresholds from 0.1 to 0.9 would find, for --prompt or all prompts."),
]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    examples = (
        "eo-batch rethreshold runs/water-2024 --prompt water --sweep",
        "eo-batch rethreshold runs/water-2024 --prompt water --threshold 0.4",
        "eo-batch rethreshold runs/city --prompt roof --threshold 0.6 --prompt road --threshold 0.35 --out runs/city-strict",
    )
    app.command("rethreshold", epilog=epilog(*examples))(rethreshold)


def _how_to_go_on(*, out: str | None = None, sweep: bool = False, **others: Any) -> str:
    """After Ctrl-C."""
    if sweep:
        return "the same command begins anew"
    if out is None:
        return "the old run is untouched; a new one that has begun beside it goes on with `eo-batch resume` and its folder"
    if not has_begun(out):
        return "nothing was made; the same command begins anew"
    return f"what is finished is kept; `eo-batch resume {out}` goes on from there, the old run is untouched"


@partial(command, after_ctrl_c=_how_to_go_on)
def rethreshold(
    run: Run,
    prompt: Prompts = None,
    threshold: Thresholds = None,
    min_area: MinAreas = None,
    out: Out = None,
    sweep: DoSweep = False,
    cluster: Cluster = None,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Make a new version of a run with other thresholds.

    Decides masks and footprints again from the stored scores: no scene is read and no model is loaded. The new run lies beside
    the old one, which stays as it is, and is what a run with these thresholds would have been, byte for byte. Prompts that
    are not named keep their thresholds. Scores are stored in steps of 1/250. Stopped: `eo-batch resume NEW`.
    """
    if sweep:
        for name, given in (("--threshold", threshold), ("--min-area", min_area), ("--out", out)):
            if given:
                raise ConfigError("config-invalid", f"--sweep and {name} exclude each other", fix="Leave one of them away.")
        return _print_sweeps(run, prompt or [], as_json=json, quiet=quiet)
    changes = _changes(prompt or [], threshold or [], min_area or [])
    from eo_batch.run.later import rethreshold as again

    with Progress(as_json=json, quiet=quiet) as progress:
        summary = again.rethreshold(run, changes, out, executor=cluster, workers=workers, listener=progress.tell)
    return finish(summary, as_json=json)


def _changes(prompts: list[str], thresholds: list[float], areas: list[float]) -> dict[str, Change]:
    """What changes for each prompt; numbers belong to prompts by their order."""
    from eo_batch.run.later.rethreshold import Change

    if not prompts:
        fix = "Give --prompt TEXT --threshold SCORE; `--sweep` shows what thresholds would find."
        raise ConfigError("config-invalid", "no prompt is named", where="--prompt", fix=fix)
    if len(set(prompts)) < len(prompts):
        raise ConfigError("config-invalid", "a prompt is named twice", where="--prompt", fix="Name each prompt once.")
    numbers = zip(_one_each("--threshold", thresholds, prompts), _one_each("--min-area", areas, prompts), strict=True)
    return {text: Change(*pair) for text, pair in zip(prompts, numbers, strict=True)}


def _one_each(name: str, given: list[float], prompts: list[str]) -> list[float | None]:
    """A number for each prompt, or None where there is none for any."""
    if len(given) not in (0, 1, len(prompts)):
        what = f"{len(given)} numbers for {len(prompts)} prompts"
        raise ConfigError("config-invalid", what, where=name, fix=f"Give {name} once for all, or once for each --prompt.")
    each: list[float | None] = [*given] or [None]
    return each if len(each) == len(prompts) else each * len(prompts)


def _print_sweeps(run: str, prompts: list[str], *, as_json: bool, quiet: bool) -> int:
    from eo_batch.run.later.sweep import sweep

    with Progress(as_json=False, quiet=quiet or as_json) as progress:
        found = sweep(run, prompts, progress=lambda done, total: progress.count(done, total, "counting scores"))
    if as_json:
        print_json({"run": run, "prompts": [each.as_dict() for each in found]})
        return 0
    for each in found:
        steps = f"{len(each.steps)} time steps together" if len(each.steps) > 1 else each.steps[0].label
        print_table(
            [_cells(each, row) for row in each.rows()],
            header=("threshold", "pixels", "km2", "share", ""),
            title=f'"{each.prompt.text}", {steps}',
        )
    say("share: of what was observed inside the region. `--json` has each time step by itself.")
    return 0


def _cells(sweep: Sweep, row: SweepRow) -> tuple[str, ...]:
    share = "-" if row.share is None else f"{100 * row.share:.2f} %"
    now = "<- as the run is now" if row.threshold == sweep.prompt.threshold else ""
    return f"{row.threshold:g}", f"{row.pixels:,}", f"{row.area_km2:,.4f}", share, now
