"""Command `products`: boxes of objects, and counts, shares, classes and captions for zones, from a finished run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eo_batch.cli.progress import Progress
from eo_batch.cli.report import DropInner, Json, Quiet, RunFolder, command, epilog, print_json, print_table, say
from eo_batch.core.errors import ConfigError


class Rules(StrEnum):
    """Which rules make boxes of objects."""

    region = "region"
    upstream = "upstream"


ZonesFile = Annotated[
    Path | None,
    typer.Option(help="Polygons to tell figures for: GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet, any CRS."),
]
CellSize = Annotated[float | None, typer.Option(help="Instead of --zones: square cells of this size in units of the grid's CRS.")]
ZoneId = Annotated[
    str | None, typer.Option(help="Column of the file that names its polygons; without it they are numbered from 1.")
]
Layer = Annotated[str | None, typer.Option(help="Layer of the file, where it has several.")]
Oriented = Annotated[bool, typer.Option("--oriented", help="Smallest rotated rectangles instead of horizontal boxes.")]
Which = Annotated[
    Rules,
    typer.Option(
        help="region: one box per object. upstream: as RemoteSAM on one image, boxes inside or much over others left out."
    ),
]
Connectivity = Annotated[
    int, typer.Option(min=4, max=8, help="8: pixels that meet at a corner are one object. 4: each footprint is one.")
]
Pictures = Annotated[bool, typer.Option("--picture", help="Also draw a PNG of each time step.")]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    examples = (
        "eo-batch products runs/ships",
        "eo-batch products runs/ships --oriented --picture",
        "eo-batch products runs/water-2024 --zones districts.gpkg --zone-id code",
        "eo-batch products runs/water-2024 --cells 1000 --json",
    )
    app.command("products", epilog=epilog(*examples))(products)


@command
def products(
    run: RunFolder,
    zones: ZonesFile = None,
    cells: CellSize = None,
    zone_id: ZoneId = None,
    layer: Layer = None,
    oriented: Oriented = False,
    rules: Which = Rules.region,
    drop_inner: DropInner = None,
    connectivity: Connectivity = 8,
    picture: Pictures = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make boxes and zone figures of a run.

    Writes RUN/products/boxes.parquet: a box, score and size for each object. With --zones or --cells also zones.parquet and
    zones.csv: for each zone, time and prompt the count of objects, covered area and share, whether the prompt is present,
    the class that fits best, and a caption. The run itself is not changed.
    """
    if zones is not None and cells is not None:
        raise ConfigError("config-invalid", "--zones and --cells exclude each other", fix="Give one of them.")
    if zones is None and (zone_id or layer):
        raise ConfigError("config-invalid", "--zone-id and --layer belong to --zones", fix="Give the file with --zones.")
    if connectivity not in (4, 8):
        raise ConfigError(
            "config-invalid", f"{connectivity} neighbours are not possible", where="--connectivity", fix="Give 4 or 8."
        )
    from dataclasses import replace

    from eo_batch.run.layers.products import Cells, LayerRules, ZoneFile, make_products
    from eo_batch.run.told.status import run_status

    run_status(run)  # says so where there is no run
    source = Cells(cells) if cells is not None else ZoneFile(zones, zone_id, layer) if zones is not None else None
    chosen = LayerRules.upstream(oriented=oriented) if rules is Rules.upstream else LayerRules(oriented=oriented)
    chosen = replace(chosen, connectivity=connectivity, drop_inner=chosen.drop_inner if drop_inner is None else drop_inner)
    with Progress(as_json=False, quiet=quiet or json) as progress:
        made = make_products(run, zones=source, rules=chosen, tell=progress.share)
        files = list(made.files)
        if picture:
            from eo_batch.view.boxes import write_pictures

            progress.note("drawing")
            files += write_pictures(run, zones=source is not None)
    if json:
        facts = {"boxes": made.boxes, "zones": made.zones, "partial": made.partial, "notes": list(made.notes)}
        print_json({**facts, "files": files})
        return
    print_table([(text, f"{count:,}") for text, count in made.boxes.items()], header=("prompt", "boxes"))
    if source is not None:
        print_table([("zones", f"{made.zones:,}")])
    for path in files:
        print(path)
    for note in made.notes:
        say(f"note: {note}")
