"""The command that gives a finished run more prompts."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from eo_batch.cli.jobs import AllowFailed, Cluster, Workers, finish
from eo_batch.cli.progress import Progress
from eo_batch.cli.report import Json, Quiet, RunFolder, command, epilog, print_json, print_table

Texts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to look for; several are answered together.")]
Thresholds = Annotated[
    list[float] | None,
    typer.Option(help="Score from which a pixel counts as found (0.5): once for all prompts, or once for each, in order."),
]
Areas = Annotated[
    list[float] | None,
    typer.Option(help="Leave out footprints smaller than so many square metres (0): once for all prompts, or once for each."),
]

PlanOnly = Annotated[bool, typer.Option("--plan", help="Only say what it would take; write nothing.")]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    examples = (
        'eo-batch add-prompts runs/water-2024 "solar panel" road',
        "eo-batch add-prompts runs/water-2024 road --threshold 0.4 --plan",
    )
    app.command("add-prompts", epilog=epilog(*examples))(add_prompts)


def _how_to_go_on(*, run: str, **others: Any) -> str:
    """After Ctrl-C: whether the extension has begun."""
    from eo_batch.run.told.status import run_status

    if not run_status(run).adding:
        return "nothing was added; the run is as it was"
    return f"what is finished is kept, and the map of the prompts before too; `eo-batch resume {run}` goes on from there"


@partial(command, after_ctrl_c=_how_to_go_on)
def add_prompts(
    run: RunFolder,
    prompts: Texts,
    threshold: Thresholds = None,
    min_area: Areas = None,
    cluster: Cluster = None,
    workers: Workers = None,
    allow_failed: AllowFailed = 0,
    plan: PlanOnly = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Add prompts to a finished run.

    Computes the answers to the new prompts only, in the same folder, and publishes the map anew: it is then what one run with
    all prompts gives. No catalog is asked, no file of the finished prompts is changed. `eo-batch resume` goes on after a stop.
    """
    from eo_batch.run.later import extend

    asked: dict[str, Any] = {
        "threshold": threshold or 0.5,
        "min_area_m2": min_area or 0.0,
        "executor": cluster,
        "workers": workers,
    }
    with Progress(as_json=json and not plan, quiet=quiet) as progress:
        if not plan:
            summary = extend.add_prompts(run, prompts, **asked, allow_failed=allow_failed, listener=progress.tell)
            return finish(summary, as_json=json)
        made = extend.plan_prompts(run, prompts, **asked, listener=progress.tell)
    if json:
        print_json(made.as_dict())
    else:
        print_table(made.rows(), title=f"plan of more prompts for {made.name}")
    made.check()
    return 0
