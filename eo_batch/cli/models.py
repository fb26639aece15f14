"""Command group `models`: the segmenters that can answer prompts, and the weights of those that need some."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eo_batch.cli.bytes_progress import BytesProgress
from eo_batch.cli.report import Json, Quiet, command, epilog, print_json, print_table, say

Name = Annotated[str, typer.Argument(metavar="NAME", help="Published weights, as `models list` names them.", show_default=False)]
Revision = Annotated[
    str | None,
    typer.Option(metavar="COMMIT", help="Of weights that are not pinned: the commit you trust, 40 hexadecimal digits."),
]


_FETCHES = (
    "eo-batch models fetch clipseg",
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

    Below them the published networks that are no segmenters: what others are made of, and contours for `eo-batch segment`.
    Looks whether weights are here; reads none.
    """
    from eo_batch.models.registry import list_segmenters
    from eo_batch.models.weights.published import FOLDERS

    entries = list_segmenters()
    others = [_network(folder) for folder in FOLDERS if folder.name not in {entry.name for entry in entries}]
    if json:
        fields = ("name", "summary", "licence", "origin", "is_available", "advice", "state")
        print_json({"models": [{field: getattr(entry, field) for field in fields} for entry in entries], "networks": others})
        return
    rows = [(entry.name, entry.state, entry.licence, entry.summary) for entry in entries]
    print_table(rows, header=("name", "state", "licence", "what it knows"))
    print()
    rows = [(other["name"], other["state"], _short(other["licence"]), other["summary"]) for other in others]
    print_table(rows, header=("network, no segmenter", "state", "licence", "what it is"))


@command
def show(
    weights: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Published weights, a segmenter, a file or a folder.")],
    json: Json = False,
) -> None:
    """What is known about weights: where they come from, their licence, what network they make, whether they are here.

    Of a segmenter that is made of others, or needs none: what it is, and which weights it answers with.
    """
    from eo_batch.core.errors import ModelError
    from eo_batch.models.weights import find_weights, local_path
    from eo_batch.models.weights.published import published_files, published_folder, published_names

    folder, segmenter = published_folder(weights), _segmenter_of(weights)
    if folder is not None:
        return _show_folder(folder, weights, as_json=json)
    if weights in published_names():
        files = published_files(weights)
    elif segmenter is not None:
        return _show_segmenter(segmenter, as_json=json)
    elif (local_path(weights) / "config.json").is_file():
        return _show_folder(None, weights, as_json=json)
    else:
        files = () if local_path(weights).exists() or "/" in weights or Path(weights).suffix else _files_of(weights)
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
    """Download published weights, check their sha256, and convert them to safetensors where they are something else.

    An interrupted download goes on where it ended. Nothing is asked of the network where HF_HUB_OFFLINE is set.
    The weights folder is named by EO_BATCH_WEIGHTS; default: ~/.cache/eo-batch/weights.
    """
    from eo_batch.core.errors import ConfigError
    from eo_batch.models.weights import need_libraries
    from eo_batch.models.weights.published import published_folder

    folder = published_folder(name)
    if folder is not None:
        return _fetch_folder(folder, revision, yes=yes, quiet=quiet, as_json=json)
    files = _files_of(name)
    if revision is not None:
        what = f"the weights {name} are pinned: there is one commit of them"
        raise ConfigError("config-invalid", what, where="--revision", fix="Leave it out.")
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
    alpha = found.config.get("lora_alpha")
    if alpha is not None:
        source = f"from {config}" if config and settings and "lora_alpha" in settings else "as published, unless --config says it"
        say(f"low-rank updates were merged with alpha = {alpha:g} ({source}): no checkpoint holds it, so make sure of it")
    _say_where(found, as_json=json)


def _files_of(name: str) -> tuple[Any, ...]:
    """Published files of this name; where there are none the error knows the names of folders and of segmenters too."""
    import difflib

    from eo_batch.core.errors import ConfigError
    from eo_batch.models.weights.published import fetch_command, folder_names, published_files, published_names

    known = (*published_names(), *folder_names())
    if name in known:
        return published_files(name)
    segmenter = _segmenter_of(name)
    if segmenter is not None:
        fix = f"Run: {', then '.join(map(fetch_command, segmenter.weights))}." if segmenter.weights else "It needs none."
        if segmenter.needs_own_weights:
            fix = f"Convert a checkpoint: eo-batch models convert FILE --network {name} (docs/guides/{name}.md)."
        what = f'"{name}" is a segmenter, and no published weights have this name'
        raise ConfigError("config-invalid", what, where="weights", fix=fix)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    fix = f"{hint}Known: {', '.join(known)}."
    raise ConfigError("config-invalid", f'no published weights are known as "{name}"', where="weights", fix=fix)


def _segmenter_of(name: str) -> Any:
    """The line of `models list` with this name; None where there is none."""
    from eo_batch.models.registry import list_segmenters

    return next((entry for entry in list_segmenters() if entry.name == name), None)


def _show_segmenter(entry: Any, *, as_json: bool) -> None:
    """What a segmenter is, and the weights that it answers with."""
    facts = {field: getattr(entry, field) for field in ("name", "summary", "licence", "origin", "state")}
    if as_json:
        return print_json({"segmenter": facts, "weights": list(entry.weights)})
    print_table(facts.items(), title="segmenter")
    for name in entry.weights:
        say(f"it answers with {name}: eo-batch models show {name}")


def _fetch_folder(published: Any, revision: str | None, *, yes: bool, quiet: bool, as_json: bool) -> None:
    """A network of one commit, after its licence was shown and confirmed."""
    from eo_batch.models.weights import need_libraries
    from eo_batch.models.weights.folders import commit_of, fetch_folder, is_fetched

    commit = commit_of(published, revision)
    need_libraries("torch", "transformers", "safetensors", "huggingface_hub")
    if not is_fetched(published, commit):
        names = ", ".join(file.filename for file in published.files)
        size = f" ({published.bytes / 1e6:,.1f} MB)" if all(file.bytes for file in published.files) else ""
        say(f"{names}{size} from {published.repo}, commit {commit[:12]}")
        say(f"  licence: {published.licence}.")
        if published.is_gated:
            say(f"  the hub wants an account that accepted it on https://huggingface.co/{published.repo}, and its HF_TOKEN.")
        say(f"  source: {published.source}; the sha256 of each file is written down and checked each time they are loaded.")
        _confirm(yes=yes)
    with BytesProgress(quiet=quiet) as progress:
        found = fetch_folder(published.name, revision=revision, listener=progress.tell)
    print_json(_folder_facts(found)) if as_json else print_table(_folder_facts(found).items())


def _network(published: Any) -> dict[str, Any]:
    """What `models list` says of a published network."""
    from eo_batch.core.errors import ModelError
    from eo_batch.models.weights import are_present, need_libraries
    from eo_batch.models.weights.folders import fetched_folders

    fetched = fetched_folders(published.name)
    state = "ready" if are_present(published.name) else f"weights missing: {published.command}"
    if not published.revision and len(fetched) > 1:
        state = f"{len(fetched)} commits are here: give the folder of one of them"
    try:
        need_libraries("torch", "transformers", "safetensors")
    except ModelError as error:
        state = f"needs libraries: {error.fix.removeprefix('Run: ')}"
    return {
        "name": published.name,
        "state": state,
        "licence": published.licence,
        "summary": published.summary,
        "folders": [str(folder) for folder in fetched],
    }


def _show_folder(published: Any, named: str, *, as_json: bool) -> None:
    """Where a network comes from, and what of it is here: all fetched commits, or the folder that was named."""
    from eo_batch.models.weights.folders import fetched_folders, find_folder

    folders = [Path(named)] if published is None else fetched_folders(published.name)
    here = [_folder_facts(find_folder(folder)) for folder in folders]
    fields = ("repo", "revision", "licence", "source")
    told = [] if published is None else [{field: getattr(published, field) or "named by you" for field in fields}]
    if as_json:
        return print_json({"published": told, "here": here})
    for facts in told:
        print_table(facts.items(), title=f"published as {', '.join(file.filename for file in published.files)}")
        print()
    for facts in here:
        sums = facts.pop("files")
        print_table([*facts.items(), *sums.items()], title="on this machine")
    if not here:
        say(f"not on this machine. Run: {published.command}.")


def _folder_facts(found: Any) -> dict[str, Any]:
    """`FolderFiles` for people and machines."""
    return {
        "folder": str(found.folder),
        "architecture": found.config.get("model_type"),
        "sha256": found.sha256,
        "bytes": found.bytes,
        "files": dict(found.sums),
    }


def _short(licence: str) -> str:
    """The first words of a licence, for a table."""
    return licence.partition(" (")[0].partition(". ")[0]


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
