"""Command group `clusters`: who can compute, as files to start from; and `worker-check`: can the workers work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eo_batch.cli.jobs import Catalog, Cluster, Pipeline, Workers
from eo_batch.cli.pipelines import pipeline_path
from eo_batch.cli.progress import Progress
from eo_batch.cli.report import Json, Quiet, command, epilog, plain, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    group = typer.Typer(help="Clusters to compute on, for --cluster.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list", epilog=epilog("eo-batch clusters list"))(list_clusters)
    group.command("show", epilog=epilog("eo-batch clusters show slurm-gpu > mine.toml"))(show_cluster)
    app.add_typer(group, name="clusters")
    examples = epilog("eo-batch worker-check my.toml --cluster slurm-gpu --out /shared/my-run")
    app.command("worker-check", epilog=examples)(worker_check)


@command
def list_clusters(json: Json = False) -> None:
    """Names of the cluster files that are found here, and what each asks for.

    Looked for in clusters/ of the working directory, then among those that come with eo-batch.
    """
    from eo_batch.run.clusters import known_clusters

    rows = [(name, _summary(path), str(path)) for name, path in sorted(known_clusters(Path()).items())]
    if json:
        print_json({"clusters": [{"name": name, "summary": summary, "path": path} for name, summary, path in rows]})
    else:
        print_table([row[:2] for row in rows], header=("name", "what it asks for"))


@command
def show_cluster(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `eo-batch clusters list`, or a path to a .toml.")],
) -> None:
    """Print a cluster file, to save and change."""
    from eo_batch.run.clusters import cluster_path

    print(cluster_path(name, Path()).read_text(encoding="utf-8"), end="")


@command
def worker_check(
    pipeline: Pipeline,
    cluster: Cluster = None,
    workers: Workers = None,
    out: Annotated[str | None, typer.Option(help="Where the run will be, or is: workers write there, and tidy up.")] = None,
    catalog: Catalog = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Prove that the workers of a cluster can work.

    On every worker: the same versions as here, an asset of each host readable, the same weights, the GPU, --out writable. Ends
    with 0, or with the exit status of the first thing that is wrong.
    """
    from eo_batch.run.clusters import choose_cluster
    from eo_batch.run.request import load_pipeline
    from eo_batch.run.worker_check import CHECKS, check_workers

    request = load_pipeline(pipeline_path(pipeline), catalog=catalog)
    chosen = choose_cluster(request.spec.cluster, cluster, workers, base=request.folder)
    with Progress(as_json=False, quiet=quiet or json, unit="workers") as progress:
        reports = check_workers(request, chosen, out=out or "", say=progress.note)
    status = next((report.status for report in reports if report.status), 0)
    if json:
        print_json({"workers": [report.as_dict() for report in reports], "exit_status": status})
        return status
    states = [{check.name: "WRONG" if check.status else "ok" for check in report.checks} for report in reports]
    rows = [(r.worker, r.host or "-", *(s.get(name, "-") for name in CHECKS)) for r, s in zip(reports, states, strict=True)]
    print_table(rows, header=("worker", "host", *CHECKS))
    for report in reports:
        for check in report.checks:
            if check.status or report is reports[0]:
                print(plain(f"worker {report.worker}: {check.name}: {check.text}"))
    return status


def _summary(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
