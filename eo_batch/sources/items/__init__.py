"""Which file and which band of it: from STAC documents to the item table that a run reads.

Producers name bands in many ways. The order is: what the pipeline says, common names, names, what the catalog file
says, the key of the asset. Every choice is a function of one document, so it never depends on what else was found.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eo_batch.core.errors import CatalogError, ConfigError, PolicyError
from eo_batch.core.hrefs import HrefPolicy
from eo_batch.core.records import BandAsset, CloudMask, Item, ItemTable
from eo_batch.core.spec import AssetRef, CatalogSpec, CloudMaskSpec, CollectionSpec, PipelineSpec
from eo_batch.sources.items.assets import Candidate, candidates, is_raster, names_of
from eo_batch.sources.items.document import bbox_of, geometry_of, instant_of, printable, range_of
from eo_batch.sources.items.values import nodata_of, scale_offset_of

__all__ = ["QA_PIXEL", "SCL", "resolve_items"]

SCL = CloudMaskSpec(asset="scl", kind="classes", drop=[0, 1, 3, 8, 9, 10])
"""Sentinel-2 scene classification: no data, saturated, cloud shadow, cloud (medium, high), cirrus (Level-2A definition)."""
QA_PIXEL = CloudMaskSpec(asset="qa_pixel", kind="bits", drop=[0, 1, 2, 3, 4])
"""Landsat Collection 2 QA_PIXEL: fill, dilated cloud, cirrus, cloud, cloud shadow (Landsat 8-9 Data Format Control Book)."""
LEAVE_OUT = "Leave the item out by source.filter, or tell the keeper of the catalog."
_NO_RULES = CollectionSpec.model_validate({})
_USUAL_MASKS = (SCL, QA_PIXEL)


def resolve_items(
    documents: Iterable[Mapping[str, Any]], spec: PipelineSpec, catalog: CatalogSpec, *, notes: list[str] | None = None
) -> ItemTable:
    """The item table of documents.

    Parameters
    ----------
    documents : from `search_items`, or from `items.parquet` of a run: the same table comes out.
    notes : gets a sentence for every kind of item that was left out.

    Raises
    ------
    ConfigError : `config-invalid`: no item has a band that the pipeline asks for.
    CatalogError : `item-invalid`: some items lack a band and `missing_assets` is "fail".
    PolicyError : an asset names a place that the catalog does not allow.
    """
    policy = HrefPolicy.of(catalog)
    kept: list[tuple[Item, Mapping[str, Any]]] = []
    lacking: list[tuple[Mapping[str, Any], str]] = []
    served: Counter[str] = Counter()
    every: list[Mapping[str, Any]] = []
    for document in documents:
        every.append(document)
        rules = catalog.collections.get(document["collection"], _NO_RULES)
        bands = {band: _band(document, band, spec, rules) for band in spec.source.bands}
        served.update(band for band, found in bands.items() if found)
        missing = next((band for band, found in bands.items() if found is None), None)
        if missing is not None:
            lacking.append((document, missing))
            continue
        resolved = {band: found for band, found in bands.items() if found is not None}
        mask = _cloud_mask(document, rules) if spec.source.cloud_mask == "auto" else None
        for asset in [*resolved.values(), *([mask.asset] if mask else [])]:
            _check_href(policy, asset, document)
        kept.append((_item(document, resolved, mask), document))
    _judge(every, lacking, served, spec, notes)
    kept.sort(key=lambda pair: (pair[0].datetime, pair[0].collection, pair[0].id))
    return ItemTable(tuple(item for item, _ in kept), tuple(document for _, document in kept))


def _check_href(policy: HrefPolicy, asset: BandAsset, document: Mapping[str, Any]) -> None:
    """Refuse, with the name of the item, an asset in a place that is not allowed."""
    try:
        policy.check(asset.href)
    except PolicyError as error:
        where = f'band "{asset.band}" of item {printable(document["collection"])}/{printable(document["id"])}: {error.where}'
        raise PolicyError(error.code, error.what, where=where, why=error.why, fix=error.fix or LEAVE_OUT) from None


def _item(document: Mapping[str, Any], bands: Mapping[str, BandAsset], mask: CloudMask | None) -> Item:
    start, end = range_of(document)
    return Item(
        collection=document["collection"],
        id=document["id"],
        datetime=instant_of(document),
        start=start,
        end=end,
        bbox=bbox_of(document),
        geometry=geometry_of(document),
        bands=bands,
        cloud_mask=mask,
        rank=_rank(document["properties"]),
    )


def _band(document: Mapping[str, Any], band: str, spec: PipelineSpec, rules: CollectionSpec) -> BandAsset | None:
    """Asset and index of `band` in one item, or None."""
    asked = spec.source.assets.get(band)
    if asked is not None:
        chosen = _named(document, asked, band)
    else:
        found = candidates(document, band)
        ruled = rules.bands.get(band)
        chosen = min(found) if found else None
        if chosen is None and ruled is not None:
            chosen = _named(document, ruled, band)
        if chosen is None:
            key = next((key for key in (band, *sorted(document["assets"])) if _is_key(document, key, band)), None)
            chosen = None if key is None else Candidate.plain(key)
    return None if chosen is None else _asset(document, band, chosen.key, chosen.index, rules)


def _is_key(document: Mapping[str, Any], key: str, band: str) -> bool:
    return key.casefold() == band.casefold() and key in document["assets"] and is_raster(document["assets"][key])


def _named(document: Mapping[str, Any], reference: str | AssetRef, band: str) -> Candidate | None:
    """Asset that a pipeline or a catalog file names; without an index, the band of that name inside it, else the first."""
    key = reference if isinstance(reference, str) else reference.asset
    if key not in document["assets"]:
        return None
    if isinstance(reference, AssetRef):
        return Candidate.plain(key, reference.index)
    inside = [candidate for candidate in candidates(document, band, every_asset=True) if candidate.key == key]
    return min(inside) if inside else Candidate.plain(key)


def _asset(document: Mapping[str, Any], band: str, key: str, index: int, rules: CollectionSpec) -> BandAsset:
    asset = document["assets"][key]
    try:
        scale, offset = scale_offset_of(document, asset, index, rules)
    except ValueError as error:
        where = f'band "{band}" of item {printable(document["collection"])}/{printable(document["id"])}'
        raise CatalogError("item-invalid", str(error), where=where, fix=LEAVE_OUT) from None
    checksum = asset.get("file:checksum") or asset.get("checksum:multihash") or ""
    return BandAsset(
        band=band,
        href=asset["href"],
        index=index,
        scale=scale,
        offset=offset,
        nodata=nodata_of(asset, index, rules),
        checksum=checksum if isinstance(checksum, str) else "",
    )


def _cloud_mask(document: Mapping[str, Any], rules: CollectionSpec) -> CloudMask | None:
    """Mask that the catalog file names; else a raster asset whose key is exactly "scl" or "qa_pixel" in any case."""
    assets = document["assets"]
    if rules.cloud_mask is not None:
        pairs = [(rules.cloud_mask, rules.cloud_mask.asset)]
    else:
        pairs = [(usual, key) for usual in _USUAL_MASKS for key in sorted(assets) if key.casefold() == usual.asset]
    for mask, key in pairs:
        if key in assets and is_raster(assets[key]):
            asset = BandAsset(key, assets[key]["href"], checksum=str(assets[key].get("file:checksum") or ""))
            return CloudMask(asset, mask.kind, tuple(mask.drop))
    return None


def _rank(properties: Mapping[str, Any]) -> float:
    """Expected share of valid pixels: (1 - cloud cover) (1 - no data), each 0 where it is not stated."""
    shares = [properties.get("eo:cloud_cover"), properties.get("s2:nodata_pixel_percentage")]
    cloud, empty = (min(max(float(s), 0.0), 100.0) if isinstance(s, int | float) else 0.0 for s in shares)
    return (1 - cloud / 100) * (1 - empty / 100)


def _judge(
    documents: Sequence[Mapping[str, Any]],
    lacking: Sequence[tuple[Mapping[str, Any], str]],
    served: Counter[str],
    spec: PipelineSpec,
    notes: list[str] | None,
) -> None:
    """Decide what items without a band mean.

    Raises
    ------
    ConfigError, CatalogError : see `resolve_items`.
    """
    if not lacking:
        return
    nowhere = next((band for band in spec.source.bands if not served[band]), None)
    if nowhere is not None:
        raise _unknown(nowhere, documents, spec)
    named = sorted(
        f'{printable(document["collection"])}/{printable(document["id"])} (band "{band}")' for document, band in lacking
    )
    everything_lacks = len(lacking) == len(documents)
    if spec.source.missing_assets == "fail" or everything_lacks:
        raise CatalogError(
            "item-invalid",
            f"{len(lacking)} of {len(documents)} items lack a band",
            where=f"item {named[0]}",
            fix='Set missing_assets = "skip" to continue without them, or name the assets in [source.assets].',
        )
    if notes is not None:
        more = f" and {len(named) - 20} more" if len(named) > 20 else ""
        notes.append(f"{len(named)} items lack a band and were left out: {', '.join(named[:20])}{more}")


def _unknown(band: str, documents: Sequence[Mapping[str, Any]], spec: PipelineSpec) -> ConfigError:
    known = sorted({printable(name) for document in documents[:50] for name in names_of(document)})
    close = difflib.get_close_matches(band, known, n=1, cutoff=0.5)
    fix = f'Did you mean "{close[0]}"? ' if close else ""
    asked = spec.source.assets.get(band)
    what = f'no item has band "{band}"' + (f' (asset "{asked if isinstance(asked, str) else asked.asset}")' if asked else "")
    fix += f"Available: {', '.join(known[:60]) or 'none'}. Assets without common names can be named in [source.assets]."
    return ConfigError("config-invalid", what, where="source.bands", fix=fix)
