"""Commands that make a map: search, plan, run, resume.

A pipeline is loaded before the heavy rooms are imported, so a wrong one is told at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eo_batch.cli.pilot import price_by_pilot
from eo_batch.cli.pipelines import pipeline_path
from eo_batch.cli.progress import Progress
from eo_batch.cli.report import Json, Quiet, RunFolder, command, epilog, has_begun, plain, print_json, print_table, say

if TYPE_CHECKING:
    from eo_batch.run.driver import RunSummary
    from eo_batch.run.request import Request

Pipeline = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="A pipeline .toml, or the name of one of `eo-batch pipelines list`.")
]
Catalog = Annotated[str | None, typer.Option(help="Use this catalog instead of the pipeline's: a name, an URL or a path.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="CLUSTER",
        help="Who computes: local (threads of this process), serial, local:N (N processes), gpus, slurm, pbs, tcp://HOST:PORT; "
        "a name of `eo-batch clusters list`; or a path to such a .toml. Default: as the pipeline says, or local.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Chunks at once (local), or worker processes (elsewhere). Never changes the result."),
]
PilotFolder = Annotated[
    str | None,
    typer.Option(
        help="Where the run will be: what is free there counts. A pilot begins it there, and `eo-batch resume` goes on; without, "
        "a pilot computes in a temporary folder that is deleted."
    ),
]
AllowFailed = Annotated[
    int, typer.Option(min=0, metavar="N", help="Publish a partial map when at most N chunks failed (exit status 3).")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    add = app.command
    add("search", epilog=epilog("eo-batch search my.toml --out items.parquet"))(search)
    add("plan", epilog=epilog("eo-batch plan my.toml", "eo-batch plan my.toml --pilot 20 --out runs/water-2024"))(plan)
    add("run", epilog=epilog("eo-batch run my.toml --out runs/water-2024"))(run)
    add("resume", epilog=epilog("eo-batch resume runs/water-2024"))(resume)


def _how_to_go_on(*, out: str | None = None, run: str | None = None, **others: Any) -> str:
    """After Ctrl-C."""
    folder = out if run is None else run
    if not has_begun(folder):
        return "nothing is computed yet; the same command begins anew"
    return f"what is finished is kept; `eo-batch resume {folder}` goes on from there"


@command
def search(
    pipeline: Pipeline,
    out: Annotated[str | None, typer.Option(help="Also write the found items as stac-geoparquet.")] = None,
    catalog: Catalog = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the scenes that a run would use."""
    request = _load(pipeline, catalog)
    from eo_batch.run.cost.plan import halo_region
    from eo_batch.sources.items import resolve_items
    from eo_batch.sources.items.parquet import items_to_parquet
    from eo_batch.sources.search import search_items

    with Progress(as_json=False, quiet=quiet or json) as progress:
        progress.note("asking the catalog")
        # The region grown by one window, as a run asks for it: scenes there reach into windows of the region.
        region = halo_region(request.region, *request.grid())
        found = search_items(
            request.spec, request.catalog, region=region, progress=lambda count: progress.note(f"{count:,} scenes so far")
        )
        table = resolve_items(found.documents, request.spec, request.catalog)
    if out is not None:
        from eo_batch.outputs.store import file_at

        store, name = file_at(out)
        store.put(name, items_to_parquet(table))
    notes = [plain(note) for note in found.notes]
    if json:
        items = [
            {"collection": i.collection, "id": i.id, "datetime": i.datetime.isoformat(), "bbox": list(i.bbox)}
            for i in table.items
        ]
        print_json({"items": items, "count": len(items), "digest": table.digest, "notes": notes})
        return
    rows = [(item.datetime.strftime("%Y-%m-%d %H:%M"), item.collection, item.id, _cloud(doc)) for item, doc in _pairs(table)]
    print_table(rows, header=("datetime (UTC)", "collection", "id", "cloud %"))
    for note in notes:
        say(f"note: {note}")
    say(f"{len(table)} items" + (f", written to `{out}`" if out is not None else ""))


@partial(command, after_ctrl_c=_how_to_go_on)
def plan(
    pipeline: Pipeline,
    pilot: Annotated[
        int | None,
        typer.Option(
            min=2, max=10_000, metavar="N", help="Compute N chunks spread over the run (20 are good), and tell time and price."
        ),
    ] = None,
    out: PilotFolder = None,
    cluster: Cluster = None,
    workers: Workers = None,
    catalog: Catalog = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Say what a run would cost, and refuse what cannot fit.

    Prints chunks, windows (and how many are computed twice), scenes, bytes to read, memory, disk and time. Reads no pixel,
    unless the composite "best" has to measure scenes.

    With --pilot, some chunks are computed on the cluster that is meant, and hours, bytes and money of the whole run are told
    from what they took, each with a range that holds the truth in 8 of 10 pilots.
    """
    request = _load(pipeline, catalog)
    if pilot is not None:
        return price_by_pilot(request, chunks=pilot, out=out, cluster=cluster, workers=workers, as_json=json, quiet=quiet)
    from eo_batch.models.registry import load_segmenter
    from eo_batch.models.segmenter import explain_prompts, prompt_warnings
    from eo_batch.run.clusters import choose_cluster
    from eo_batch.run.cost.plan import make_inputs_of, make_plan

    spec = request.spec
    chosen = choose_cluster(spec.cluster, cluster, workers, base=request.folder)
    segmenter = load_segmenter(spec.model, spec.source.bands)
    segmenter.encode_prompts(spec.prompt_set)  # refuses prompts that it cannot serve before anything is searched
    answers, warnings = explain_prompts(segmenter, spec.prompt_set), prompt_warnings(segmenter, spec.prompt_set)
    with Progress(as_json=False, quiet=quiet or json) as progress:
        inputs = make_inputs_of(request, listener=progress.tell)
        made = make_plan(inputs, segmenter, cluster=chosen, out=out)
    if json:
        print_json({**made.as_dict(), "answers": list(answers), "warnings": list(warnings)})
    else:
        print_table(made.rows(), title=f"plan of {spec.name}")
        for answer in answers:
            print(plain(answer))
        for warning in warnings:
            say(f"warning: {warning}")
    made.check()
    return 0


@partial(command, after_ctrl_c=_how_to_go_on)
def run(
    pipeline: Pipeline,
    out: Annotated[str, typer.Option(help="New folder for the run, or s3://BUCKET/PREFIX.")],
    cluster: Cluster = None,
    workers: Workers = None,
    catalog: Catalog = None,
    allow_failed: AllowFailed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Make the map.

    Searches, plans, computes every chunk, merges, publishes. Can be stopped at any moment: `eo-batch resume` goes on.
    """
    request = _load(pipeline, catalog)
    from eo_batch.run.driver import start_run

    with Progress(as_json=json, quiet=quiet) as progress:
        summary = start_run(request, out, executor=cluster, workers=workers, allow_failed=allow_failed, listener=progress.tell)
    return finish(summary, as_json=json)


@partial(command, after_ctrl_c=_how_to_go_on)
def resume(
    run: RunFolder,
    repair: Annotated[bool, typer.Option("--repair", help="Check every file first, and compute again what is damaged.")] = False,
    pipeline: Annotated[Path | None, typer.Option(help="Refuse unless the run was started from this pipeline.")] = None,
    cluster: Cluster = None,
    workers: Workers = None,
    allow_failed: AllowFailed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Go on with a run that was stopped.

    Also after a crash, and to try failed chunks again. Ends with the same bytes as an undisturbed run.
    """
    from eo_batch.run.driver import resume_run

    request = None if pipeline is None else _load(pipeline, None)
    with Progress(as_json=json, quiet=quiet) as progress:
        summary = resume_run(
            run,
            request=request,
            repair=repair,
            executor=cluster,
            workers=workers,
            allow_failed=allow_failed,
            listener=progress.tell,
        )
    return finish(summary, as_json=json)


def finish(summary: RunSummary, *, as_json: bool) -> int:
    """Print what a run came to; returns its exit status."""
    if as_json:
        print_json({"event": "summary", **summary.as_dict()})
    else:
        print_table(summary.rows())
    return summary.exit_status


def _load(pipeline: Path, catalog: str | None) -> Request:
    from eo_batch.run.request import load_pipeline

    return load_pipeline(pipeline_path(pipeline), catalog=catalog)


def _pairs(table: Any) -> Any:
    return zip(table.items, table.documents, strict=True)


def _cloud(document: Any) -> str:
    cover = document["properties"].get("eo:cloud_cover")
    return f"{cover:.0f}" if isinstance(cover, int | float) else "-"
