"""Pipelines and catalogs as users write them: every key, its meaning, unit and default, in one place.

Unknown keys are errors with a suggestion. No interpolation, no includes, no code.
"""

from __future__ import annotations

import difflib
import tomllib
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from eo_batch.core.clusters import ClusterFile, ClusterSpec
from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet, normalise_text
from eo_batch.core.table import Table

MAX_CONFIG_BYTES = 1_000_000
SMALLEST_CHUNK_PX = 64
UNION_MEMBERS = ("str", "AssetRef", "constrained-int", "int", "literal['auto']")
"""What pydantic adds to the path of a key that may hold values of several kinds."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class RegionSpec(Table):
    """`[region]`: where and when."""

    bbox: tuple[float, float, float, float] | None = Field(
        None, description="west, south, east, north in degrees (WGS 84); west > east crosses the antimeridian"
    )
    file: str | None = Field(None, description="GeoJSON with polygons in longitude and latitude, relative to the pipeline file")
    start: date = Field(description="first day (UTC)")
    end: date = Field(description="day after the last one (UTC): the period is half-open")

    @model_validator(mode="after")
    def _one_shape(self) -> RegionSpec:
        if (self.bbox is None) == (self.file is None):
            raise ValueError("give either bbox or file")
        if self.start >= self.end:
            raise ValueError(f"start {self.start} must be before end {self.end}")
        return self


class AssetRef(Table):
    """An asset key and the number of the band inside its file, from 1."""

    asset: str = Field(description="asset key of the item")
    index: int = Field(1, ge=1, le=64, description="band number in the file, from 1")


class SourceSpec(Table):
    """`[source]`: which scenes, which bands."""

    catalog: str = Field(description="name of a file in catalogs/, an API URL, or a path to a catalog.json or items .parquet")
    collections: list[str] = Field(min_length=1, description="STAC collections")
    max_cloud_cover: float | None = Field(None, ge=0, le=100, description="keep items with eo:cloud_cover <= this (percent)")
    filter: str | None = Field(None, max_length=2000, description="CQL2 text that items must match")
    bands: list[str] = Field(min_length=1, max_length=64, description="common names, in the order the model sees them")
    assets: dict[str, str | AssetRef] = Field(
        default_factory=dict, description="band -> asset key, or {asset, index}, where items lack common names"
    )
    cloud_mask: Literal["auto", "none"] = Field(
        "auto", description="auto: drop clouds by the mask the catalog file names for the collection; none: keep every pixel"
    )
    missing_assets: Literal["fail", "skip"] = Field(
        "fail", description="a scene file that is not there: fail its chunks, or skip the scene and count it"
    )

    @field_validator("bands")
    @classmethod
    def _distinct(cls, bands: list[str]) -> list[str]:
        if len(set(bands)) != len(bands):
            raise ValueError("bands must differ from each other")
        return bands


class GridSpec(Table):
    """`[grid]`: where the pixels of the result are."""

    crs: str = Field("auto", max_length=200, description='"auto" (UTM zone of the region) or "EPSG:..."')
    resolution: float = Field(gt=0, description="CRS units per pixel (metres for UTM)")
    chunk_px: int = Field(
        2048, ge=SMALLEST_CHUNK_PX, le=16384, description="side of a unit of work in pixels; never changes the result"
    )
    resampling: Literal["bilinear", "nearest"] = Field("bilinear", description="for bands that must be resampled")


class TimeSpec(Table):
    """`[time]`: how scenes become layers."""

    step: Literal["scene", "month", "year", "all"] = Field(
        "scene", description="one layer per acquisition day, month, year, or one"
    )
    composite: Literal["first", "median", "best"] = Field(
        "first", description="first: earliest valid pixel; median of all; best: from the scene with most valid pixels"
    )


class ModelSpec(Table):
    """`[model]`: what answers the prompts."""

    name: Name = Field("spectral", description="see `eo-batch models list`")
    window_px: int = Field(512, ge=16, le=4096, description="side of a model window in pixels")
    overlap: float = Field(0.25, ge=0, lt=1, description="share of a window that it shares with its neighbour")
    batch: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        4, description='windows per model call, part of what the run is; "auto": as many as fit into memory, found at the start'
    )
    options: dict[str, str | int | float | bool] = Field(default_factory=dict, description="settings of the segmenter")

    @property
    def fixed_batch(self) -> int:
        """`batch` as a number: of a run it always is one."""
        assert self.batch != "auto", "a batch must be settled before anything is computed"
        return self.batch


class PromptSpec(Table):
    """`[[prompts]]`: what to map."""

    text: str = Field(description="what to look for, at most 200 characters")
    threshold: float = Field(0.5, gt=0, lt=1, description="score from which a pixel counts as found")
    min_area_m2: float = Field(0.0, ge=0, description="smaller footprints are not reported (masks are not touched)")


class OutputSpec(Table):
    """`[output]`: what is kept."""

    scores: bool = Field(False, description="also store scores (uint8, 1/250), for other thresholds later")


class LimitsSpec(Table):
    """`[limits]`: what the plan may use. Never changes a result."""

    memory_gb: float | None = Field(
        None, gt=0, description="memory for all workers on this machine; default: 80 % of what is free"
    )
    disk_gb: float | None = Field(None, gt=0, description="disk for the run; default: what is free")
    max_failed_percent: float = Field(5.0, ge=0, le=100, description="stop early when more chunks than this have failed")


class CacheSpec(Table):
    """`[cache]`: what is kept beside the result to save work later. Never changes a result."""

    features: bool = Field(
        False, description="keep what the segmenter makes of each window before it hears a prompt, in RUN/features"
    )
    features_gb: float | None = Field(None, gt=0, description="most disk for it; when it is used up, nothing more is kept")

    @model_validator(mode="after")
    def _limits_something(self) -> CacheSpec:
        if self.features_gb is not None and not self.features:
            raise ValueError("features_gb limits nothing without features = true")
        return self


class PipelineSpec(Table):
    """A map product: one TOML file in pipelines/."""

    name: Name = Field(description="of the result: letters, digits, dots, dashes; at most 64")
    region: RegionSpec
    source: SourceSpec
    grid: GridSpec
    time: TimeSpec = TimeSpec()
    model: ModelSpec = ModelSpec()
    prompts: list[PromptSpec] = Field(min_length=1, max_length=256)
    output: OutputSpec = OutputSpec()
    limits: LimitsSpec = LimitsSpec()
    cache: CacheSpec = CacheSpec()
    cluster: ClusterSpec = ClusterSpec()

    @field_validator("cluster")
    @classmethod
    def _is_data(cls, cluster: ClusterSpec) -> ClusterSpec:
        """Whoever runs the pipeline of a stranger must not run his shell, his image, or talk pickle with his scheduler."""
        if cluster.batch.setup or cluster.batch.directives or cluster.kubernetes or "://" in cluster.kind:
            raise ValueError(
                "what starts code elsewhere belongs into a file of clusters/, used with --cluster: a pipeline is data"
            )
        return cluster

    @property
    def prompt_set(self) -> PromptSet:
        """The prompts, normalised and checked."""
        return PromptSet(
            tuple(
                Prompt(normalise_text(prompt.text, number=number), prompt.threshold, prompt.min_area_m2)
                for number, prompt in enumerate(self.prompts, 1)
            )
        )

    @property
    def start(self) -> datetime:
        """Begin of the period, UTC."""
        return datetime(self.region.start.year, self.region.start.month, self.region.start.day, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """End of the period, UTC, exclusive."""
        return datetime(self.region.end.year, self.region.end.month, self.region.end.day, tzinfo=UTC)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON values: all tables but limits, cache and cluster."""
        return self.model_dump(mode="json", exclude={"limits", "cache", "cluster"})

    @property
    def digest(self) -> str:
        """Digest of `identity`."""
        return digest(self.identity)


class CloudMaskSpec(Table):
    """Which asset tells clouds, and which of its values or bits are dropped."""

    asset: str = Field(description="asset key of the mask")
    kind: Literal["classes", "bits"] = Field(description="its values are classes, or sets of bits")
    drop: list[int] = Field(min_length=1, description="class values, or bit numbers from 0, that mean: do not use this pixel")


class CollectionSpec(Table):
    """`[collections.ID]` of a catalog file: what the items of one collection leave unsaid."""

    bands: dict[str, str | AssetRef] = Field(default_factory=dict, description="common name -> asset key or {asset, index}")
    scale: float | None = Field(None, description="used where items and assets state none")
    offset: float | None = Field(None, description="used where items and assets state none")
    nodata: float | None = Field(None, description="used where items and assets state none")
    offset_from_baseline: bool = Field(
        False, description="Sentinel-2: apply -0.1 from processing baseline 04.00 on where metadata give no offset"
    )
    cloud_mask: CloudMaskSpec | None = Field(None, description="which asset tells clouds; none: nothing is masked")


class CatalogSpec(Table):
    """A file in catalogs/: an endpoint we know. It is also the network allow-list of a run."""

    title: str = Field(description="for people")
    url: str = Field(description="API root, catalog.json, item collection or items .parquet; relative: to the working directory")
    kind: Literal["api", "static", "parquet"] = Field(
        "api", description="STAC API, files that link each other, or stac-geoparquet"
    )
    local: bool = Field(
        False, description="items may name files; they must lie in or below `root` (default: the catalog's folder)"
    )
    root: str | None = Field(None, description="folder that files of a local catalog must lie in")
    asset_hosts: list[str] = Field(default_factory=list, description="hosts that assets may come from; *.example.org allowed")
    allow_private: bool = Field(False, description="hosts may resolve to loopback or private addresses (test servers)")
    signing: Literal["none", "planetary-computer"] = Field("none", description="how addresses are signed just before reading")
    sign_url: str | None = Field(None, description="token service of the signing scheme")
    page_limit: int = Field(200, ge=1, le=10000, description="items asked for per page")
    requests_at_once: int = Field(8, ge=1, le=256, description="polite limit of simultaneous reads per host")
    miscounts: bool = Field(False, description="numberMatched of this server is known to be wrong")
    licence: str = Field("", description="shown in plan and written into the result")
    collections: dict[str, CollectionSpec] = Field(default_factory=dict)


def parse_pipeline(text: bytes, *, where: str) -> PipelineSpec:
    """Pipeline of TOML text.

    Raises
    ------
    ConfigError : `config-too-large`, `config-invalid`, `config-unknown-key` (with a suggestion), `prompt-invalid`.
    """
    spec = _parse(PipelineSpec, text, where)
    assert isinstance(spec, PipelineSpec)
    _ = spec.prompt_set
    return spec


def parse_catalog(text: bytes, *, where: str) -> CatalogSpec:
    """Catalog of TOML text; errors as `parse_pipeline`."""
    spec = _parse(CatalogSpec, text, where)
    assert isinstance(spec, CatalogSpec)
    return spec


def parse_cluster(text: bytes, *, where: str) -> ClusterSpec:
    """Cluster of TOML text; errors as `parse_pipeline`."""
    file = _parse(ClusterFile, text, where)
    assert isinstance(file, ClusterFile)
    return file.cluster


def _parse(model: type[Table], text: bytes, where: str) -> Table:
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError("config-too-large", f"{len(text):,} bytes (limit {MAX_CONFIG_BYTES:,})", where=where)
    try:
        document = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            "config-invalid", "not TOML", where=where, why=str(error), fix="Check the syntax at that place."
        ) from None
    except RecursionError:
        raise ConfigError("config-invalid", "not TOML", where=where, why="nested too deeply", fix="Write a flat file.") from None
    return validate(model, document, where=where)


def validate(model: type[Table], document: dict[str, Any], *, where: str) -> Any:
    """`model` made of plain values; the first thing wrong is the error, with its key.

    Raises
    ------
    ConfigError : `config-invalid` or `config-unknown-key`.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _explain(model, error, where) from None


def _explain(model: type[Table], error: ValidationError, where: str) -> ConfigError:
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    path = [part for part in first["loc"] if not (isinstance(part, str) and part in UNION_MEMBERS)]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in path) or "the file"
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f'Did you mean "{close[0]}"?' if close else f"Known keys here: {', '.join(sorted(known))}."
        return ConfigError("config-unknown-key", f'unknown key "{key}"', where=where, fix=hint)
    text = first["msg"].removeprefix("Value error, ")
    return ConfigError(
        "config-invalid",
        f"{key}: {text[:1].lower()}{text[1:]}",
        where=where,
        fix=f"See the key {key} in docs/reference/{'clusters' if key.startswith('cluster.') else 'pipeline'}.md.",
    )


def _keys_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
            inner = [a for a in getattr(current, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            current = inner[0] if inner else current
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
