"""Command group `models`: the segmenters that can answer prompts, and the weights of those that need some."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eo_batch.cli.bytes_progress import BytesProgress
from eo_batch.cli.report import Json, Quiet, command, epilog, print_json, print_table, say

CONTOURS = "directsam"
"""Name of the contour network: it answers no prompt, so it is no segmenter."""
Name = Annotated[str, typer.Argument(metavar="NAME", help="Published weights: remotesam, directsam.", show_default=False)]
Revision = Annotated[
    str | None,
    typer.Option(metavar="COMMIT", help="For directsam, which is not pinned: the commit you trust, 40 hexadecimal digits."),
]


_FETCHES = (
    "eo-batch models fetch remotesam",
    "eo-batch models fetch remotesam --yes",
    "eo-batch models fetch directsam --revision 0123456789abcdef0123456789abcdef01234567",
)


def register(app: typer.Typer) -> None:
    """Add the command group of this module to `app`."""
    group = typer.Typer(help="Segmenters and their weights.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(_group)
    group.command("list", epilog=epilog("eo-batch models list"))(list_models)
    group.command("show", epilog=epilog("eo-batch models show remotesam", "eo-batch models show my.safetensors"))(show)
    group.command("fetch", epilog=epilog(*_FETCHES))(fetch)
    group.command("convert", epilog=epilog("eo-batch models convert RemoteSAMv1.pth --out remotesam.safetensors"))(convert)
    app.add_typer(group, name="models")


def _group() -> None:
    """Segmenters: what answers the prompts, and the weights they need."""


@command
def list_models(json: Json = False) -> None:
    """Segmenters for `[model] name`: what they know, their licence, and how to get what is missing.

    Below them the contour network for `eo-batch segment --contours`. Looks whether weights are here; reads none.
    """
    from eo_batch.models.registry import list_segmenters

    entries, contours = list_segmenters(), _contours()
    if json:
        fields = ("name", "summary", "licence", "origin", "is_available", "advice", "state")
        print_json({"models": [{field: getattr(entry, field) for field in fields} for entry in entries], "contours": [contours]})
        return
    rows = [(entry.name, entry.state, entry.licence, entry.summary) for entry in entries]
    rows.append((contours["name"], contours["state"], contours["licence"], contours["summary"]))
    print_table(rows, header=("name", "state", "licence", "what it knows"))


@command
def show(
    weights: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Published weights, or a safetensors file.")],
    json: Json = False,
) -> None:
    """What is known about weights: where they come from, their licence, what network they make, whether they are here."""
    from eo_batch.core.errors import ModelError
    from eo_batch.models.weights import find_weights
    from eo_batch.models.weights.published import published_files, published_names

    if weights == CONTOURS:
        return _show_contours(as_json=json)
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


def _how_to_go_on(*, name: str, revision: str | None = None, **others: Any) -> str:
    commit = f" --revision {revision}" if revision else ""
    return f"what is loaded is kept; `eo-batch models fetch {name}{commit}` goes on from there"


@partial(command, after_ctrl_c=_how_to_go_on)
def fetch(
    name: Name,
    revision: Revision = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="I have read the licence of the weights.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Download published weights, check their sha256, and convert them to safetensors.

    An interrupted download goes on where it ended. Nothing is asked of the network where HF_HUB_OFFLINE is set.
    The weights folder is named by EO_BATCH_WEIGHTS; default: ~/.cache/eo-batch/weights.
    """
    if name == CONTOURS:
        return _fetch_contours(revision, yes=yes, quiet=quiet, as_json=json)
    from eo_batch.core.errors import ConfigError
    from eo_batch.models.weights import need_libraries
    from eo_batch.models.weights.published import published_files

    files = published_files(name)
    if revision is not None:
        what = f"the weights {name} are pinned: there is one commit of them"
        raise ConfigError("config-invalid", what, where="--revision", fix=f"Leave it out. It is for {CONTOURS}.")
    need_libraries("torch", "transformers", "safetensors", "huggingface_hub")
    from eo_batch.models.weights.hub import fetch as fetch_weights
    from eo_batch.models.weights.hub import is_fetched

    if not is_fetched(name):
        for file in files:
            say(f"{file.filename} ({file.bytes / 1e6:,.1f} MB) from {file.repo}, commit {file.revision[:12]}")
            say(f"  licence: {file.licence}.")
        _confirm(yes=yes)
    with BytesProgress(quiet=quiet) as progress:
        found = fetch_weights(name, listener=progress.tell)
    _say_where(found, as_json=json)


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
    from eo_batch.models.weights.checkpoints import convert_checkpoint, find_architecture, read_config

    architecture = find_architecture(network)
    settings = read_config(config) if config is not None else None
    with BytesProgress(quiet=quiet) as progress:
        found = convert_checkpoint(file, out, architecture=architecture, config=settings, listener=progress.tell)
    _say_where(found, as_json=json)


def _fetch_contours(revision: str | None, *, yes: bool, quiet: bool, as_json: bool) -> None:
    """The contour network of one commit that the user names, after its licence was shown and confirmed."""
    from eo_batch.core.errors import ConfigError
    from eo_batch.models.contours import files as contour_files
    from eo_batch.models.weights import need_libraries

    if revision is None:
        what = "nobody has published a sha256 of these weights, so they are not pinned: you say which commit you trust"
        fix = f"Run: {contour_files.COMMAND}, with the 40 digits that the history of {contour_files.REPO} on the hub shows."
        raise ConfigError("config-invalid", what, where="--revision", fix=fix)
    contour_files.check_revision(revision)
    need_libraries("torch", "transformers", "safetensors", "huggingface_hub")
    if not contour_files.is_fetched(revision):
        names = ", ".join((contour_files.WEIGHTS, contour_files.CONFIG, contour_files.PROCESSING))
        say(f"{names} from {contour_files.REPO}, commit {revision[:12]}")
        say(f"  licence: {contour_files.LICENCE}.")
        say(f"  source: {contour_files.SOURCE}; the sha256 is written down and checked each time they are loaded.")
        _confirm(yes=yes)
    with BytesProgress(quiet=quiet) as progress:
        found = contour_files.fetch_contours(revision, listener=progress.tell)
    print_json(_contour_facts(found)) if as_json else print_table(_contour_facts(found).items())


def _contours() -> dict[str, Any]:
    """What `models list` says of the contour network."""
    from eo_batch.core.errors import ModelError
    from eo_batch.models.contours import files as contour_files
    from eo_batch.models.weights import need_libraries

    fetched = contour_files.fetched_folders()
    state = "ready" if len(fetched) == 1 else f"weights missing: {contour_files.COMMAND}"
    if len(fetched) > 1:
        state = f"{len(fetched)} commits are here: give the folder of one of them"
    try:
        need_libraries("torch", "transformers", "safetensors")
    except ModelError as error:
        state = f"needs libraries: {error.fix.removeprefix('Run: ')}"
    return {
        "name": CONTOURS,
        "state": state,
        "licence": "not stated upstream",
        "summary": "no prompts: outlines that part touching objects, for `segment --contours directsam` (arXiv 2402.14327)",
        "folders": [str(folder) for folder in fetched],
    }


def _show_contours(*, as_json: bool) -> None:
    from eo_batch.models.contours import files as contour_files

    published = {"repo": contour_files.REPO, "revision": "named by you", "licence": contour_files.LICENCE}
    published |= {"source": contour_files.SOURCE}
    here = [_contour_facts(contour_files.find_contours(folder)) for folder in contour_files.fetched_folders()]
    if as_json:
        return print_json({"published": [published], "here": here})
    print_table(published.items(), title=f"published as {contour_files.WEIGHTS}")
    print()
    for facts in here:
        print_table(facts.items(), title="on this machine")
    if not here:
        say(f"not on this machine. Run: {contour_files.COMMAND}.")


def _contour_facts(found: Any) -> dict[str, Any]:
    """`ContourFiles` for people and machines."""
    return {"weights": str(found.weights), "sha256": found.sha256, "bytes": found.weights.stat().st_size}


def _confirm(*, yes: bool) -> None:
    """Nothing is downloaded before somebody agreed; offline nothing would be."""
    from eo_batch.core.errors import ConfigError
    from eo_batch.models.weights.hub_client import is_offline

    if yes or is_offline():
        return
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
