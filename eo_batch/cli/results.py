"""Commands about a run that is there: status, report, verify, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eo_batch.cli.progress import Progress
from eo_batch.cli.report import Json, Quiet, RunFolder, command, epilog, print_json, print_table, say

if TYPE_CHECKING:
    from eo_batch.run.verify import Verification


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command("status", epilog=epilog("eo-batch status runs/water-2024 --json"))(status)
    app.command("report", epilog=epilog("eo-batch report runs/water-2024 --out water-2024.html"))(report)
    app.command("verify", epilog=epilog("eo-batch verify runs/water-2024"))(verify)
    app.command("export", epilog=epilog("eo-batch export runs/water-2024 --out maps"))(export)


@command
def status(run: RunFolder, json: Json = False) -> None:
    """Say how far a run is.

    Chunks finished, failed and to do, and whether a driver is alive. Changes nothing; works while the run works.
    """
    from eo_batch.run.told.status import run_status

    found = run_status(run)
    if json:
        print_json(found.as_dict())
    else:
        print_table(found.rows())


@command
def report(
    run: RunFolder,
    out: Annotated[str | None, typer.Option(help="File to write.  [default: report.html in the run]")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell a run on one HTML page.

    Result, state of every chunk, what went wrong, who worked when, plan against measurement, seams. Works on unfinished runs too.
    With --json the facts are printed, and no page is written.
    """
    from eo_batch.outputs.store import Store, file_at
    from eo_batch.run.told.report import report_facts
    from eo_batch.view.report import report_html

    with Progress(as_json=False, quiet=quiet or json) as progress:
        facts = report_facts(run, say=lambda done, total: progress.count(done, total, "reading receipts"))
        if json:
            print_json(facts.as_dict())
            return
        progress.note("drawing")
        page = report_html(Store(run), facts).encode()
    store, name = (Store(run), "report.html") if out is None else file_at(out)
    store.put(name, page)
    print(f"{run}/{name}" if out is None else out)


@command
def verify(
    run: RunFolder,
    quick: Annotated[bool, typer.Option("--quick", help="Compare names and sizes only; read no pixel data.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Check every file of a run.

    Compares each with the receipt of its chunk, and names every one that is missing or changed. Changes nothing.
    """
    from eo_batch.run.verify import verify_run

    with Progress(as_json=False, quiet=quiet or json) as progress:
        found = verify_run(run, read_data=not quick, listener=progress.tell)
    if json:
        print_json(found.as_dict())
    else:
        rows = [(problem.code, problem.path, problem.text) for problem in found.problems]
        print_table(rows, header=("code", "file", "what") if rows else ())
        say(_verdict(found, run))
    return found.exit_status


@command
def export(
    run: RunFolder,
    out: Annotated[str, typer.Option(help="Folder for the exported files, or s3://BUCKET/PREFIX.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write GeoTIFFs and a GeoPackage.

    One cloud-optimised GeoTIFF for each prompt and time, and one GeoPackage of all footprints: they open everywhere.
    """
    from eo_batch.outputs.export import export_run
    from eo_batch.run.told.status import run_status

    run_status(run)  # says so where there is no run
    with Progress(as_json=False, quiet=quiet or json) as progress:
        files = export_run(run, out, progress=lambda done, total, name: progress.share(done / total, name))
    if json:
        print_json({"files": files})
    else:
        for path in files:
            print(path)


def _verdict(found: Verification, run: str) -> str:
    if found.problems:
        return f"{len(found.problems):,} problems; `eo-batch resume {run} --repair` computes damaged chunks again"
    checked = f"{found.chunks:,} chunks, {found.files:,} files checked, no problem found"
    return checked if found.complete else f"{checked}; the run is not finished: `eo-batch resume {run}`"
