"""Where scenes come from: a catalog by name, by address or by path, as one `CatalogSpec`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from urllib.parse import urlsplit

from eo_batch.core.errors import ConfigError
from eo_batch.core.hrefs import has_secrets, redact
from eo_batch.core.spec import MAX_CONFIG_BYTES, CatalogSpec, parse_catalog

_PARQUET = (".parquet", ".geoparquet")
_JSON = (".json", ".geojson")


def find_catalog(name: str, base: Path) -> tuple[CatalogSpec, str]:
    """The catalog that a pipeline names, and where it was found.

    Parameters
    ----------
    name : name of a file in catalogs/; or an http(s) address of an API, a catalog.json, an item collection or a .parquet; or a
        path to one of the latter.
    base : folder of the pipeline; paths and `catalogs/` are looked for there, then in the working directory.

    Returns
    -------
    The catalog with absolute `url` and `root`, and the file or address it came from. A path gives a local catalog whose
    items may name files in or below the parent of its folder, and any public https host. An address gives a catalog whose
    assets may come from any public https host.

    Raises
    ------
    ConfigError : `config-invalid`: nothing of that name; the errors of `parse_catalog`.
    """
    if name.lower().startswith(("http://", "https://")):
        return _from_address(name), name
    if "://" in name:
        raise ConfigError("config-invalid", f'"{redact(name)}" is not an http(s) address', where="source.catalog")
    if name.lower().endswith(_PARQUET + _JSON) or "/" in name or os.sep in name:
        path = _existing(name, base)
        return _from_path(path), str(path)
    known = known_catalogs(base)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f'Did you mean "{close[0]}"? ' if close else ""
        fix = f"{hint}Known catalogs: {', '.join(sorted(known)) or 'none'}. A path or an address works too."
        raise ConfigError("config-invalid", f'no catalog "{name}"', where="source.catalog", fix=fix)
    return _from_file(known[name]), str(known[name])


def known_catalogs(base: Path) -> dict[str, Path]:
    """Name -> file of the catalogs that can be named; the first folder of `catalog_folders` wins."""
    found: dict[str, Path] = {}
    for folder in catalog_folders(base):
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
            found.setdefault(path.stem, path)
    return found


def catalog_folders(base: Path) -> tuple[Path, ...]:
    """Folders with catalog files: beside the pipeline, in the working directory, in the package (or its checkout)."""
    package = Path(__file__).resolve().parents[1]
    return base / "catalogs", Path.cwd() / "catalogs", package / "_catalogs", package.parent / "catalogs"


def _from_file(path: Path) -> CatalogSpec:
    with path.open("rb") as file:
        spec = parse_catalog(file.read(MAX_CONFIG_BYTES + 1), where=str(path))
    if "://" in spec.url:
        _check_address(spec.url, str(path))
        root = str(Path(spec.root).absolute()) if spec.root else None
        return spec.model_copy(update={"root": root})
    url = Path(spec.url).expanduser().absolute()
    root_path = Path(spec.root).expanduser().absolute() if spec.root else url.parent
    return spec.model_copy(update={"url": os.path.normpath(url), "root": os.path.normpath(root_path), "local": True})


def _from_address(url: str) -> CatalogSpec:
    _check_address(url, "source.catalog")
    path = urlsplit(url).path.lower()
    kind = "parquet" if path.endswith(_PARQUET) else "static" if path.endswith(_JSON) else "api"
    return CatalogSpec.model_validate({"title": urlsplit(url).hostname, "url": url, "kind": kind, "asset_hosts": ["*"]})


def _from_path(path: Path) -> CatalogSpec:
    kind = "parquet" if path.suffix.lower() in _PARQUET else "static"
    folder = path.parent
    root = folder.parent if folder.parent != folder.parent.parent else folder
    fields = {"title": path.name, "url": str(path), "kind": kind, "local": True, "root": str(root), "asset_hosts": ["*"]}
    return CatalogSpec.model_validate(fields)


def _existing(name: str, base: Path) -> Path:
    places = [Path(os.path.normpath((folder / Path(name).expanduser()).absolute())) for folder in (base, Path())]
    for path in places:
        if path.is_dir() and (path / "catalog.json").is_file():
            return path / "catalog.json"
        if path.is_file():
            return path
    looked = " and ".join(dict.fromkeys(str(path) for path in places))
    fix = "Give a path relative to the pipeline file or to the working directory."
    raise ConfigError("config-invalid", f'no catalog file "{name}"', where="source.catalog", why=f"looked for {looked}", fix=fix)


def _check_address(url: str, where: str) -> None:
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ConfigError("config-invalid", f'url: "{redact(url)}" is not an http(s) address', where=where)
    if parts.username or parts.password or has_secrets(parts.query):
        fix = "Put credentials into the environment, never into a file or an address."
        raise ConfigError("config-invalid", "url: the address holds credentials", where=where, fix=fix)
