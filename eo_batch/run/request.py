"""What was asked for: a pipeline file, its catalog and its region, loaded, checked, and written into the run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eo_batch.core.digest import canonical_json, digest
from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Grid
from eo_batch.core.region import Region, RegionOnGrid, make_grid, region_from_bbox, region_from_geojson, region_from_parts
from eo_batch.core.spec import MAX_CONFIG_BYTES, CatalogSpec, ModelSpec, PipelineSpec, parse_pipeline, validate

MAX_GEOJSON_BYTES = 64_000_000


@dataclass(frozen=True)
class Request:
    """A pipeline with everything it names: what a run is made from.

    Parameters
    ----------
    spec, catalog : the pipeline and the catalog it names, all addresses absolute.
    region : polygon and period.
    catalog_found : where the catalog came from, for people.
    folder : of the pipeline file; clusters may be kept beside it. Not stored.
    """

    spec: PipelineSpec
    catalog: CatalogSpec
    region: Region
    catalog_found: str = ""
    folder: Path = Path()

    def grid(self) -> tuple[Grid, RegionOnGrid]:
        """Pixels of the run, and the region in them."""
        spec = self.spec
        return make_grid(
            self.region,
            crs=spec.grid.crs,
            resolution=spec.grid.resolution,
            chunk_px=spec.grid.chunk_px,
            window_px=spec.model.window_px,
            overlap=spec.model.overlap,
        )

    @property
    def digest(self) -> str:
        """Digest of everything that decides the result; chunk size, limits and cluster excluded."""
        identity = self.spec.identity
        del identity["grid"]["chunk_px"]
        return digest({"spec": identity, "region": self._parts(), "catalog_rules": self.catalog_rules})

    @property
    def catalog_rules(self) -> dict[str, Any]:
        """What the catalog file says about pixels (scale, offset, nodata, cloud masks), as JSON values."""
        rules: dict[str, Any] = self.catalog.model_dump(mode="json")["collections"]
        return rules

    def to_json(self) -> bytes:
        """The request as stored in `request.json`."""
        return canonical_json(
            {
                "spec": self.spec.model_dump(mode="json"),
                "catalog": self.catalog.model_dump(mode="json"),
                "region": {"name": self.region.name, "parts": self._parts()},
                "catalog_found": self.catalog_found,
            }
        )

    def with_model(self, model: ModelSpec) -> Request:
        """The same, answered by `model`."""
        return replace(self, spec=self.spec.model_copy(update={"model": model}))

    def _parts(self) -> list[Any]:
        return [json.loads(json.dumps(part.__geo_interface__)) for part in self.region.parts]


def load_pipeline(path: Path, *, catalog: str | None = None) -> Request:
    """Request of a pipeline file.

    Parameters
    ----------
    path : TOML file; `region.file` and a catalog path are looked for beside it.
    catalog : name, URL or path that replaces `source.catalog`.

    Raises
    ------
    ConfigError : unreadable or invalid pipeline, catalog or region.
    """
    from eo_batch.sources.catalog import find_catalog

    spec = parse_pipeline(_read(path, MAX_CONFIG_BYTES, "pipeline"), where=str(path))
    if catalog is not None:
        document = spec.model_dump(mode="json")
        document["source"]["catalog"] = catalog
        spec = validate(PipelineSpec, document, where=str(path))
    found, where = find_catalog(spec.source.catalog, path.parent)
    return Request(spec, found, _region(spec, path.parent), where, path.parent)


def request_from_json(data: bytes, *, where: str) -> Request:
    """Request as stored by `Request.to_json`.

    Raises
    ------
    ConfigError : the file is damaged or made by hand.
    """
    try:
        document = json.loads(data)
        name, parts, found = document["region"]["name"], document["region"]["parts"], document["catalog_found"]
        spec = validate(PipelineSpec, document["spec"], where=where)
        catalog = validate(CatalogSpec, document["catalog"], where=where)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("config-invalid", "not a stored request", where=where, why=type(error).__name__) from None
    return Request(spec, catalog, region_from_parts(name, parts, spec.start, spec.end), found)


def _region(spec: PipelineSpec, base: Path) -> Region:
    if spec.region.bbox is not None:
        return region_from_bbox(spec.name, spec.region.bbox, spec.start, spec.end)
    assert spec.region.file is not None
    path = base / spec.region.file
    data = _read(path, MAX_GEOJSON_BYTES, "region file")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError("region-invalid", "not GeoJSON", where=str(path), fix="Save the polygons as GeoJSON.") from None
    try:
        return region_from_geojson(spec.name, document, spec.start, spec.end)
    except ConfigError as error:
        fix = "Save polygons in longitude and latitude, whose rings do not cross, as GeoJSON."
        raise ConfigError(error.code, error.what, where=str(path), why=error.why, fix=fix) from None


def _read(path: Path, limit: int, kind: str) -> bytes:
    try:
        if path.stat().st_size > limit:
            what = f"the {kind} has {path.stat().st_size:,} bytes (limit {limit:,})"
            raise ConfigError("config-too-large", what, where=str(path), fix="Check the path.")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "config-invalid", f"cannot read the {kind}", where=str(path), why=error.strerror or "", fix="Check the path."
        ) from None
