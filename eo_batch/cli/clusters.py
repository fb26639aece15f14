"""Command group `clusters`: who can compute, as files to start from; and `worker-check`: can the workers work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eo_batch.cli.report import Json, command, epilog, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    group = typer.Typer(help="Clusters to compute on, for --cluster.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list", epilog=epilog("eo-batch clusters list"))(list_clusters)
    group.command("show", epilog=epilog("eo-batch clusters show slurm-gpu > clusters/mine.toml"))(show_cluster)
    app.add_typer(group, name="clusters")


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


def _summary(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
