"""Command group `models`: the segmenters that can answer prompts, and the weights of those that need some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eo_batch.cli.bytes_progress import BytesProgress
from eo_batch.cli.report import INTERRUPTED, Json, Quiet, command, epilog, print_json, print_table, say

Name = Annotated[str, typer.Argument(metavar="NAME", help="Published weights, for example remotesam.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command group of this module to `app`."""
    group = typer.Typer(help="Segmenters and their weights.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(_group)
    group.command("list", epilog=epilog("eo-batch models list"))(list_models)
    group.command("show", epilog=epilog("eo-batch models show remotesam", "eo-batch models show my.safetensors"))(show)
    group.command("fetch", epilog=epilog("eo-batch models fetch remotesam", "eo-batch models fetch remotesam --yes"))(fetch)
    group.command("convert", epilog=epilog("eo-batch models convert RemoteSAMv1.pth --out remotesam.safetensors"))(convert)
    app.add_typer(group, name="models")


def _group() -> None:
    """Segmenters: what answers the prompts, and the weights they need."""


@command
def list_models(json: Json = False) -> None:
    """Segmenters for `[model] name`: what they know, their licence, and how to get those that are missing."""
    from eo_batch.models.registry import list_segmenters

    entries = list_segmenters()
    if json:
        fields = ("name", "summary", "licence", "origin", "is_available", "advice")
        print_json({"models": [{field: getattr(entry, field) for field in fields} for entry in entries]})
        return
    rows = [(entry.name, "ready" if entry.is_available else entry.advice, entry.licence, entry.summary) for entry in entries]
    print_table(rows, header=("name", "state", "licence", "what it knows"))


@command
def show(
    weights: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Published weights, or a safetensors file.")],
    json: Json = False,
) -> None:
    """What is known about weights: where they come from, their licence, what network they make, whether they are here."""
    from eo_batch.core.errors import ModelError
    from eo_batch.models.published import published_files, published_names
    from eo_batch.models.weights import find_weights

    files = published_files(weights) if weights in published_names() else ()
    try:
        found, absent = _facts(find_weights(weights)), ""
    except ModelError as error:
        if not files or error.code != "weights-missing":
            raise
        found, absent = None, error.fix
    if json:
        print_json({"published": [_published(file) for file in files], "here": found})
        return
    for file in files:
        print_table(_published(file).items(), title=f"published as {file.local_name}")
        print()
    print_table(found.items(), title="on this machine") if found else say(f"not on this machine. {absent}")


@command
def fetch(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="I have read the licence of the weights.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> int | None:
    """Download published weights, check them against their pinned sha256, and convert them to safetensors.

    An interrupted download goes on where it ended. Nothing is asked of the network where HF_HUB_OFFLINE is set.
    The weights folder is named by EO_BATCH_WEIGHTS; default: ~/.cache/eo-batch/weights.
    """
    from eo_batch.models.published import published_files
    from eo_batch.models.weights import need_libraries

    files = published_files(name)
    need_libraries("torch", "safetensors", "huggingface_hub")
    from eo_batch.models.hub import fetch as fetch_weights
    from eo_batch.models.hub import is_fetched
    from eo_batch.models.hub_client import is_offline

    if not is_fetched(name):
        _tell_licence(files)
        if not (yes or is_offline()):
            _confirm()
    try:
        with BytesProgress(quiet=quiet) as progress:
            found = fetch_weights(name, listener=progress.tell)
    except KeyboardInterrupt:
        say(f"interrupted: what is loaded is kept; `eo-batch models fetch {name}` goes on from there")
        return INTERRUPTED
    _say_where(found, as_json=json)
    return None


@command
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of torch.save (.pth, .pt).", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="The safetensors file. Default: beside FILE.")] = None,
    network: Annotated[str, typer.Option("--network", help="Which network it was made for.")] = "remotesam",
    config: Annotated[Path | None, typer.Option("--config", help="JSON file with its sizes. Default: as published.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Keep the weights of a checkpoint as safetensors, without optimizer, arguments or anything that could run."""
    from eo_batch.models.checkpoints import convert_checkpoint, find_architecture, read_config

    architecture = find_architecture(network)
    settings = read_config(config) if config is not None else None
    with BytesProgress(quiet=quiet) as progress:
        found = convert_checkpoint(file, out, architecture=architecture, config=settings, listener=progress.tell)
    _say_where(found, as_json=json)


def _tell_licence(files: tuple[Any, ...]) -> None:
    """What is to be downloaded and under which terms, before it is."""
    for file in files:
        say(f"{file.filename} ({file.bytes / 1e6:,.1f} MB) from {file.repo}, commit {file.revision[:12]}")
        say(f"  licence: {file.licence}.")


def _confirm() -> None:
    from eo_batch.core.errors import ConfigError

    try:
        agreed = typer.confirm("Download under these terms?", err=True)
    except typer.Abort:  # no one is there to answer
        agreed = False
        say("")
    if not agreed:
        fix = "Answer y, or give --yes."
        raise ConfigError("config-invalid", "nothing was downloaded: the licence was not confirmed", where="--yes", fix=fix)


def _say_where(found: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(_facts(found))
    else:
        print_table(_facts(found).items())


def _facts(found: Any) -> dict[str, Any]:
    """`WeightFiles` for people and machines."""
    return {
        "weights": str(found.weights),
        "vocabulary": str(found.vocabulary) if found.vocabulary else None,
        "architecture": found.architecture,
        "sha256": found.sha256,
        "source_sha256": found.source_sha256,
        "bytes": found.weights.stat().st_size,
    }


def _published(file: Any) -> dict[str, Any]:
    fields = ("repo", "revision", "filename", "sha256", "bytes", "licence", "source")
    return {field: getattr(file, field) for field in fields}
