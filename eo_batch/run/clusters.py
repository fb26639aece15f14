"""Which cluster a command means: the pipeline's, a kind, or the name or path of a file in clusters/."""

from __future__ import annotations

import difflib
from pathlib import Path

from eo_batch.core.clusters import NAMES, ClusterSpec, is_kind
from eo_batch.core.errors import ConfigError
from eo_batch.core.spec import MAX_CONFIG_BYTES, parse_cluster

WHERE = "cluster.kind or --cluster"


def choose_cluster(own: ClusterSpec, named: str | None, workers: int | None, *, base: Path = Path()) -> ClusterSpec:
    """The cluster of one sitting.

    Parameters
    ----------
    own : `[cluster]` of the pipeline.
    named : what the user says instead; None: nothing. A kind of cluster changes the kind alone; a file replaces `own`.
    workers : as `ClusterSpec.workers`; None: as the cluster says.
    base : folder of the pipeline; names and paths are looked for there, then in the working directory.

    Raises
    ------
    ConfigError : `config-invalid`: nothing of that name; the errors of `parse_cluster`.
    """
    chosen = own
    if named is not None:
        chosen = own.model_copy(update={"kind": named}) if is_kind(named) else read_cluster(cluster_path(named, base))
    return chosen if workers is None else chosen.model_copy(update={"workers": workers})


def cluster_path(name: str, base: Path) -> Path:
    """The file that `name` means: a path to a .toml, or the name of a file in clusters/.

    Raises
    ------
    ConfigError : `config-invalid`: there is none.
    """
    if name.endswith(".toml"):
        places = [(folder / Path(name).expanduser()).absolute() for folder in (base, Path())]
        found = next((place for place in places if place.is_file()), None)
        if found is not None:
            return found
        looked = " and ".join(dict.fromkeys(str(place) for place in places))
        fix = "Give a path relative to the pipeline file or to the working directory."
        raise ConfigError("config-invalid", f'no cluster file "{name}"', where=WHERE, why=f"looked for {looked}", fix=fix)
    known = known_clusters(base)
    if name not in known:
        close = difflib.get_close_matches(name, (*NAMES, *known), n=1)
        full = next((text for text in (f"tcp://{name}", f"{name}:8786", f"tcp://{name}:8786") if is_kind(text)), None)
        meant = full if full is not None and (":" in name or "." in name) else next(iter(close), None)
        hint = f'Did you mean "{meant}"? ' if meant else ""
        fix = f"{hint}Use one of: {', '.join(NAMES)}; a file: {', '.join(sorted(known)) or 'none found'}; or a path to a .toml."
        raise ConfigError("config-invalid", f'unknown cluster "{name}"', where=WHERE, fix=fix)
    return known[name]


def known_clusters(base: Path) -> dict[str, Path]:
    """Name -> file of the clusters that can be named; the first folder of `cluster_folders` wins."""
    found: dict[str, Path] = {}
    for folder in cluster_folders(base):
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
            found.setdefault(path.stem, path)
    return found


def cluster_folders(base: Path) -> tuple[Path, ...]:
    """Folders with cluster files: beside the pipeline, in the working directory, in the package (or its checkout)."""
    package = Path(__file__).resolve().parents[1]
    return base / "clusters", Path.cwd() / "clusters", package / "_clusters", package.parent / "clusters"


def read_cluster(path: Path) -> ClusterSpec:
    """The cluster of a file.

    Raises
    ------
    ConfigError : it cannot be read; the errors of `parse_cluster`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(
            "config-invalid", "cannot read the cluster file", where=str(path), why=why, fix="Check the path."
        ) from None
    return parse_cluster(text, where=str(path))
