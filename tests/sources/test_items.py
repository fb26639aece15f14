from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.cases import asset, catalog, item, pipeline

from eo_batch.core.errors import CatalogError, ConfigError, PolicyError
from eo_batch.core.records import BandAsset, Item
from eo_batch.core.spec import CatalogSpec
from eo_batch.sources.catalog import find_catalog
from eo_batch.sources.items import resolve_items
from eo_batch.sources.items.document import Unusable, bbox_of, footprint_of, normalise

BASE = "https://api.example.org/items/x.json"
ANYWHERE = catalog("https://api.example.org", asset_hosts=["*", "s3://*"])


def resolved(document: dict[str, Any], *bands: str, rules: dict[str, Any] | None = None, **source: Any) -> Item:
    """The item of one document."""
    clean = normalise(document, base=BASE, local=False, collection="scenes")
    where = ANYWHERE if rules is None else catalog("https://api.example.org", collections={clean["collection"]: rules})
    spec = pipeline(bands=bands, collections=(clean["collection"],), **source)
    return resolve_items([clean], spec, where).items[0]


def place(found: BandAsset) -> tuple[str, int]:
    return found.href.rpartition("/")[2], found.index


def with_assets(**assets: Any) -> dict[str, Any]:
    return item(assets={key.replace("__", "-"): value for key, value in assets.items()})


# which asset


def test_a_band_is_an_asset_and_an_index() -> None:
    found = resolved(with_assets(stack=asset("s.tif", "blue", "green", "red", "nir")), "red", "blue")
    assert [place(found.bands[band]) for band in ("red", "blue")] == [("s.tif", 3), ("s.tif", 1)]
    assert list(found.bands) == ["red", "blue"]


def test_the_pipeline_has_the_first_word() -> None:
    document = with_assets(a=asset("a.tif", "red"), b=asset("b.tif", "x", "red"))
    assert place(resolved(document, "red", assets={"red": {"asset": "b", "index": 1}}).bands["red"]) == ("b.tif", 1)
    assert place(resolved(document, "red", assets={"red": "b"}).bands["red"]) == ("b.tif", 2)


def test_older_eo_bands_name_bands_too() -> None:
    old = {"href": "o.tif", "type": "image/tiff", "roles": ["data"], "eo:bands": [{"name": "B4", "common_name": "red"}]}
    assert place(resolved(with_assets(B4=old), "red").bands["red"]) == ("o.tif", 1)


def test_assets_may_point_into_the_bands_of_the_item() -> None:
    document = with_assets(x={"href": "x.tif", "eo:bands": [1]}, y={"href": "y.tif", "eo:bands": [0]})
    document["properties"]["eo:bands"] = [{"name": "B1", "common_name": "blue"}, {"name": "B2", "common_name": "red"}]
    assert place(resolved(document, "red").bands["red"]) == ("x.tif", 1)


def test_names_of_bands_in_any_case_serve_where_there_is_no_common_name() -> None:
    naip = {"href": "n.tif", "type": "image/tiff", "roles": ["data"], "eo:bands": [{"name": "Red"}, {"name": "NIR"}]}
    assert place(resolved(with_assets(image=naip), "nir").bands["nir"]) == ("n.tif", 2)


def test_the_catalog_file_helps_where_common_names_do_not() -> None:
    document = with_assets(B8A=asset("b8a.tif", "rededge"), B08=asset("b08.tif", "nir"))
    found = resolved(document, "nir08", "nir", rules={"bands": {"nir08": "B8A", "nir": "B8A"}})
    assert place(found.bands["nir08"]) == ("b8a.tif", 1)
    assert place(found.bands["nir"]) == ("b08.tif", 1)


def test_the_key_of_an_asset_is_the_last_resort() -> None:
    assert place(resolved(with_assets(Red=asset("r.tif")), "red").bands["red"]) == ("r.tif", 1)


@pytest.mark.parametrize("wanted", ["nir", "nir08", "nir09", "swir16", "swir22", "rededge071"])
def test_neighbouring_common_names_are_not_mixed_up(wanted: str) -> None:
    names = ("nir", "nir08", "nir09", "swir16", "swir22", "rededge071", "rededge")
    found = resolved(with_assets(stack=asset("s.tif", *names)), wanted)
    assert found.bands[wanted].index == names.index(wanted) + 1


PICTURES = {
    "visual": asset("tci.tif", "red", "green", "blue", roles=["visual"]),
    "visual_data": asset("tci.tif", "red", "green", "blue"),
    "TCI_10m": asset("tci.tif", "red", "green", "blue", roles=["data"]),
    "preview": asset("tci.tif", "red", roles=["overview"]),
    "thumbnail": asset("tci.tif", "red", roles=["thumbnail"]),
    "rendered_preview": asset("tci.png", "red", type="image/png"),
    "a_label": asset("tci.tif", "red", roles=["labels"]),
}


@pytest.mark.parametrize("key", PICTURES)
def test_reflectance_wins_over_pictures(key: str) -> None:
    document = with_assets(**{key: PICTURES[key], "zz": asset("b04.tif", "red", gsd=60)})
    assert place(resolved(document, "red").bands["red"]) == ("b04.tif", 1)


def test_a_picture_never_stands_in_for_a_missing_band() -> None:
    with pytest.raises(ConfigError, match='no item has band "red"'):
        resolved(with_assets(TCI=asset("tci.tif", "red", "green", "blue"), B03=asset("b03.tif", "green")), "red")


def test_an_aerial_image_that_is_all_there_is_counts() -> None:
    image = asset("rgb.tif", "red", "green", "blue", roles=["data", "visual"])
    assert place(resolved(with_assets(rgb=image), "green").bands["green"]) == ("rgb.tif", 2)


def test_geotiff_wins_over_jpeg_2000() -> None:
    document = with_assets(red=asset("r.jp2", "red", type="image/jp2", gsd=10), zed=asset("r.tif", "red", gsd=10))
    assert place(resolved(document, "red").bands["red"]) == ("r.tif", 1)


@pytest.mark.parametrize(
    "resolution",
    [
        lambda metres: {"gsd": metres},
        lambda metres: {"raster:bands": [{"spatial_resolution": metres}]},
        lambda metres: {"proj:transform": [metres, 0, 0, 0, -metres, 0]},
        lambda metres: {"roles": ["data", f"gsd:{metres}m"]},
    ],
)
def test_the_finest_of_several_wins(resolution: Any) -> None:
    document = with_assets(
        a=asset("60.tif", "red", **resolution(60)),
        b=asset("10.tif", "red", **resolution(10)),
        c=asset("20.tif", "red", **resolution(20)),
    )
    assert place(resolved(document, "red").bands["red"]) == ("10.tif", 1)


def test_the_choice_does_not_depend_on_the_order_of_assets() -> None:
    assets = {f"B0{n}": asset(f"b{n}.tif", "rededge", gsd=20) for n in (7, 5, 6)}
    turned = dict(reversed(assets.items()))
    assert place(resolved(item(assets=assets), "rededge").bands["rededge"]) == ("b5.tif", 1)
    assert place(resolved(item(assets=turned), "rededge").bands["rededge"]) == ("b5.tif", 1)


# bands that are not there


def test_a_band_that_no_item_has_is_answered_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(with_assets(a=asset("a.tif", "red"), b=asset("b.tif", "nir08")), "red", "nir")
    assert caught.value.code == "config-invalid"
    assert 'Did you mean "nir08"?' in str(caught.value)
    assert "Available: nir08, red" in str(caught.value)


def _two() -> list[dict[str, Any]]:
    documents = [item("a"), item("b", assets={"green": asset("g.tif", "green")})]
    return [normalise(document, base=BASE, local=False) for document in documents]


def test_an_item_without_a_band_fails_the_search_by_name() -> None:
    with pytest.raises(CatalogError) as caught:
        resolve_items(_two(), pipeline(), ANYWHERE)
    assert caught.value.code == "item-invalid"
    assert 'scenes/b (band "red")' in str(caught.value)


def test_an_item_without_a_band_can_be_skipped_and_is_noted() -> None:
    notes: list[str] = []
    table = resolve_items(_two(), pipeline(missing_assets="skip"), ANYWHERE, notes=notes)
    assert [one.id for one in table.items] == ["a"] == [document["id"] for document in table.documents]
    assert notes == ['1 items lack a band and were left out: scenes/b (band "red")']


def test_assets_outside_of_the_policy_are_refused_before_the_run() -> None:
    clean = normalise(with_assets(red=asset("file:///etc/passwd", "red")), base=BASE, local=False)
    with pytest.raises(PolicyError) as caught:
        resolve_items([clean], pipeline(), ANYWHERE)
    assert caught.value.code == "href-scheme"


# what the numbers mean


@pytest.mark.parametrize(
    ("fields", "scale", "offset"),
    [
        ({"bands": [{"eo:common_name": "red", "raster:scale": 0.1, "raster:offset": 2}]}, 0.1, 2.0),
        ({"raster:scale": 0.2, "raster:offset": 3}, 0.2, 3.0),
        ({"raster:bands": [{"scale": 0.3, "offset": 4}]}, 0.3, 4.0),
        ({"raster:bands": [{"scale": 0.3}]}, 0.3, 0.0),
        ({"raster:bands": [{"offset": -5}]}, 1.0, -5.0),
        (
            {
                "bands": [{"eo:common_name": "red", "raster:scale": 0.1}],
                "raster:bands": [{"scale": 9, "offset": 7}],
                "raster:scale": 8,
            },
            0.1,
            7.0,
        ),
        ({"raster:bands": [{"scale": None}], "raster:scale": 0.5}, 0.5, 0.0),
    ],
)
def test_scale_and_offset_are_read_wherever_they_are_stated(fields: Any, scale: float, offset: float) -> None:
    found = resolved(with_assets(red=asset("r.tif", "red", **fields)), "red").bands["red"]
    assert (found.scale, found.offset) == (scale, offset)


def test_each_band_of_a_file_has_its_own_scale() -> None:
    stack = asset("s.tif", "red", "nir", **{"raster:bands": [{"scale": 0.1, "offset": 1}, {"scale": 0.2, "offset": 2}]})
    found = resolved(with_assets(stack=stack), "red", "nir")
    assert [(b.scale, b.offset) for b in found.bands.values()] == [(0.1, 1.0), (0.2, 2.0)]


def test_nothing_stated_leaves_it_to_the_file() -> None:
    found = resolved(item(), "red").bands["red"]
    assert math.isnan(found.scale)
    assert math.isnan(found.offset)
    assert found.nodata is None


def test_the_catalog_file_fills_in_what_is_not_stated() -> None:
    rules = {"scale": 0.0001, "offset": -1.5, "nodata": 0}
    bare = resolved(item(), "red", rules=rules).bands["red"]
    stated = resolved(
        with_assets(red=asset("r.tif", "red", **{"raster:scale": 2, "raster:offset": 0, "nodata": 7})), "red", rules=rules
    ).bands["red"]
    assert (bare.scale, bare.offset, bare.nodata) == (0.0001, -1.5, 0.0)
    assert (stated.scale, stated.offset, stated.nodata) == (2.0, 0.0, 7.0)


S2 = {"scale": 0.0001, "offset_from_baseline": True}
STATED = {"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}


@pytest.mark.parametrize(
    ("changes", "fields", "offset"),
    [
        ({"s2__processing_baseline": "03.01"}, {}, 0.0),
        ({"s2__processing_baseline": "04.00"}, {}, -0.1),
        ({"s2__processing_baseline": "05.11"}, {}, -0.1),
        ({"s2__processing_baseline": "02.12"}, {}, 0.0),
        ({}, {}, 0.0),
        ({"id": "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454"}, {}, -0.1),
        ({"id": "S2A_MSIL2A_20211005T115411_N0301_R023_T29UNU_20211005T164454"}, {}, 0.0),
        ({"s2__product_uri": "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454.SAFE"}, {}, -0.1),
        ({"s2__processing_baseline": "04.00"}, STATED, -0.1),
        ({"s2__processing_baseline": "04.00"}, {"raster:bands": [{"scale": 0.0001, "offset": 0}]}, 0.0),
        ({"s2__processing_baseline": "04.00", "earthsearch__boa_offset_applied": True}, {}, 0.0),
        ({"s2__processing_baseline": "04.00", "earthsearch__boa_offset_applied": True}, STATED, 0.0),
        ({"s2__processing_baseline": "04.00", "earthsearch__boa_offset_applied": False}, STATED, -0.1),
        ({"s2__processing_baseline": "03.00", "earthsearch__boa_offset_applied": False}, {}, 0.0),
    ],
)
def test_the_offset_of_sentinel_2_follows_its_baseline(changes: dict[str, Any], fields: dict[str, Any], offset: float) -> None:
    document = item(assets={"red": asset("r.tif", "red", **fields)}, **changes)
    found = resolved(document, "red", rules=S2).bands["red"]
    assert (found.scale, found.offset) == (0.0001, offset)


@pytest.mark.parametrize(
    ("fields", "nodata"),
    [
        ({"bands": [{"eo:common_name": "red", "nodata": 1}]}, 1.0),
        ({"nodata": -9999}, -9999.0),
        ({"raster:bands": [{"nodata": 0}]}, 0.0),
        ({"raster:bands": [{"nodata": "nan"}]}, math.nan),
        ({"nodata": "-inf"}, -math.inf),
        ({"file:nodata": [5]}, 5.0),
        ({"file:nodata": []}, None),
        ({"nodata": None}, None),
        ({"nodata": "none"}, None),
    ],
)
def test_nodata_is_read_wherever_it_is_stated(fields: Any, nodata: float | None) -> None:
    found = resolved(with_assets(red=asset("r.tif", "red", **fields)), "red").bands["red"].nodata
    assert found == nodata or (nodata is not None and found is not None and math.isnan(found) and math.isnan(nodata))


def test_checksums_are_handed_on() -> None:
    assert (
        resolved(with_assets(red=asset("r.tif", "red", **{"file:checksum": "1220aa"})), "red").bands["red"].checksum == "1220aa"
    )


# clouds and rank


SCL = {"cloud_mask": {"asset": "SCL", "kind": "classes", "drop": [3, 8, 9]}}


def test_the_cloud_mask_is_the_one_of_the_catalog_file() -> None:
    mask = resolved(with_assets(red=asset("r.tif", "red"), SCL=asset("scl.tif")), "red", rules=SCL).cloud_mask
    assert mask is not None
    assert (place(mask.asset), mask.kind, mask.drop) == (("scl.tif", 1), "classes", (3, 8, 9))


@pytest.mark.parametrize(("key", "kind"), [("scl", "classes"), ("SCL", "classes"), ("qa_pixel", "bits"), ("QA_PIXEL", "bits")])
def test_without_a_catalog_file_well_known_keys_are_cloud_masks(key: str, kind: str) -> None:
    mask = resolved(item(assets={"red": asset("r.tif", "red"), key: asset("m.tif")}), "red").cloud_mask
    assert mask is not None
    assert mask.kind == kind


def test_labels_are_no_cloud_masks() -> None:
    assert (
        resolved(item(assets={"red": asset("r.tif", "red"), "scl": asset("m.tif", roles=["labels"])}), "red").cloud_mask is None
    )


def test_no_cloud_mask_when_none_is_wanted_or_there() -> None:
    document = with_assets(red=asset("r.tif", "red"), SCL=asset("scl.tif"))
    assert resolved(document, "red", rules=SCL, cloud_mask="none").cloud_mask is None
    assert resolved(item(), "red", rules=SCL).cloud_mask is None


def test_rank_is_the_expected_share_of_valid_pixels() -> None:
    assert resolved(item(eo__cloud_cover=20, s2__nodata_pixel_percentage=50), "red").rank == pytest.approx(0.4)
    assert resolved(item(), "red").rank == 1.0


# time and place


def test_an_item_with_a_range_stands_in_its_middle() -> None:
    found = resolved(
        item(properties={"datetime": None, "start_datetime": "2020-06-01T00:00:00Z", "end_datetime": "2020-06-03T00:00:00Z"}),
        "red",
    )
    assert [t.isoformat() for t in (found.start, found.datetime, found.end)] == [
        f"2020-06-0{n}T00:00:00+00:00" for n in (1, 2, 3)
    ]


def test_items_are_sorted_by_time_collection_and_id() -> None:
    rows = [("b", "2020-06-02T00:00:00Z"), ("c", "2020-06-01T00:00:00Z"), ("a", "2020-06-02T00:00:00Z")]
    documents = [normalise(item(name, datetime=time), base=BASE, local=False) for name, time in rows]
    assert [one.id for one in resolve_items(documents, pipeline(), ANYWHERE).items] == ["c", "a", "b"]


def test_longitudes_beyond_180_are_brought_back() -> None:
    document = item(box=(179.0, 0.0, 181.0, 1.0), bbox=None)
    assert footprint_of(document).bounds == (-180.0, 0.0, 180.0, 1.0)
    assert footprint_of(document).area == pytest.approx(2.0)
    assert bbox_of(document) == (179.0, 0.0, -179.0, 1.0)


def test_a_globe_is_not_torn() -> None:
    assert footprint_of(item(box=(-180.0, -90.0, 180.0, 90.0))).area == pytest.approx(360 * 180)


def test_a_bow_tie_is_mended() -> None:
    ring = [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]
    document = item(geometry={"type": "Polygon", "coordinates": [ring]}, bbox=[0, 0, 1, 1])
    assert footprint_of(document).is_valid
    assert footprint_of(document).area == pytest.approx(0.5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PLACES = [
    ("id",),
    ("geometry",),
    ("bbox",),
    ("properties",),
    ("properties", "datetime"),
    ("properties", "eo:bands"),
    ("links",),
    ("assets",),
]
PLACES += [
    ("assets", "red"),
    ("assets", "red", "href"),
    ("assets", "red", "bands"),
    ("assets", "red", "raster:bands"),
    ("assets", "red", "roles"),
]
PLACES += [
    ("assets", "red", "type"),
    ("assets", "red", "nodata"),
    ("assets", "red", "gsd"),
    ("stac_extensions",),
    ("stac_version",),
]


@settings(max_examples=300, deadline=None)
@given(where=st.sampled_from(PLACES), value=JSON)
def test_junk_anywhere_in_an_item_is_refused_or_harmless(where: tuple[str, ...], value: Any) -> None:
    document: Any = item()
    inner = document
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    try:
        clean = normalise(document, base=BASE, local=False)
        table = resolve_items([clean], pipeline(), ANYWHERE)
    except (Unusable, ConfigError, CatalogError, PolicyError):
        return
    assert table.digest
    assert table.items[0].bands["red"].href


# real items


def wild(shared: Path) -> list[tuple[str, dict[str, Any]]]:
    """(path, document) of all items that others published."""
    folder = shared / "stac/wild/items"
    out = []
    for path in sorted(folder.rglob("*.json")):
        document = json.loads(path.read_text())
        features = (
            document
            if isinstance(document, list)
            else document["features"]
            if document["type"] == "FeatureCollection"
            else [document]
        )
        out += [(str(path.relative_to(folder)), feature) for feature in features]
    return out


UNSUPPORTED = {
    "landsat/LC08_L2SP_008059_20191201_20200825_02_T1_SR_stac.json": "STAC 0.7.0 is not 0.9 to 1.1",
    "landsat/LC08_L2SR_099120_20191129_20201016_02_T2_SR_stac.json": "STAC 0.7.0 is not 0.9 to 1.1",
    "naip/collection.json": "not a STAC item",
    "odc-stac/sentinel-2-l2a.collection.json": "not a STAC item",
}


@pytest.mark.shared
def test_every_wild_item_but_the_unsupported_is_usable(shared: Path) -> None:
    refused = {}
    for path, document in wild(shared):
        try:
            clean = normalise(document, base=f"/data/{path}", local=True, collection="c")
        except Unusable as error:
            refused[path] = error.reason
            continue
        assert normalise(clean, base="/elsewhere", local=True) == clean, path
        assert footprint_of(clean).is_valid
    assert refused == UNSUPPORTED


# path, band, asset key, index, scale, offset, nodata; read from the documents by hand
BY_HAND = [
    ("landsat/LC08_L2SP_047027_20201204_02_T1.json", "red", "red", 1, 2.75e-05, -0.2, 0),
    ("landsat/LC08_L2SP_047027_20201204_02_T1.json", "swir22", "swir22", 1, 2.75e-05, -0.2, 0),
    ("landsat/LC08_L2SP_047027_20201204_02_T1.json", "lwir11", "lwir11", 1, 0.00341802, 149.0, 0),
    ("landsat/LM01_L1GS_001010_19720908_02_T2.json", "green", "green", 1, 0.95591, -18.55591, 0),
    ("naip/al_m_3008501_ne_16_060_20191109_20200114.json", "nir", "image", 4, None, None, None),
    ("odc-stac/LC08_L2SR_081119_20200101_20200823_02_T2.json", "swir16", "SR_B6.TIF", 1, None, None, None),
    ("odc-stac/LC08_L2SP_028030_20200114_20200824_02_T1_SR.json", "nir08", "nir08", 1, None, None, None),
    ("odc-stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json", "red", "B04", 1, None, None, None),
    ("odc-stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531_raster_ext.json", "rededge", "B05", 1, None, None, 0),
    ("odc-stac/ga_ls8c_ard_3-1-0_088080_2020-05-25_final.stac-item.json", "nbart_red", "nbart_red", 1, None, None, None),
    ("odc-stac/only_crs_proj.json", "PV_PC_50", "PV_PC_50", 1, None, None, None),
    ("openeo/issue1043-proj-code.json", "red", "B04_10m", 1, 0.0001, -0.1, 0),
    ("openeo/issue1043-proj-code.json", "nir08", "B8A_20m", 1, 0.0001, -0.1, 0),
    ("openeo/issue1547-inconsistent-nodata.json", "green", "B03_10m", 1, 0.0001, -0.1, 0),
    ("openeo/issue1547-inconsistent-nodata.json", "rededge078", "B07_20m", 1, 0.0001, -0.1, 0),
    ("openeo/cdse-global-mosaics-search.json", "nir", "B08", 1, None, None, -32768),
    ("planetary-computer/landsat-c2-l2-pc.json", "blue", "blue", 1, 2.75e-05, -0.2, 0),
    ("planetary-computer/sentinel-2-l2a-pc.json", "red", "B04", 1, None, None, None),
    ("planetary-computer/sentinel-2-l2a-pc.json", "swir16", "B11", 1, None, None, None),
    ("planetary-computer/naip1.json", "red", "image", 1, None, None, None),
    ("rio-tiler/stac_bands.json", "blue", "rgb", 3, None, None, None),
    ("rio-tiler/stac_bands_v1.json", "green", "rgb", 2, None, None, None),
    ("rio-tiler/stac_raster_v1.json", "red", "red", 1, 1.0, 0.0, 0),
    ("rio-tiler/stac_no_ext.json", "green", "green", 1, None, None, None),
    ("rio-tiler/stac_relative.json", "nir", "MS4", 1, None, None, None),
    ("stactools-sentinel2/S2A_MSIL2A_20230625T234621_N0509_R073_T01WCP_20230626T022157.json", "red", "red", 1, 0.0001, -0.1, 0),
    (
        "stactools-sentinel2/S2A_MSIL2A_20230625T234621_N0509_R073_T01WCP_20230626T022157.json",
        "nir08",
        "nir08",
        1,
        0.0001,
        -0.1,
        0,
    ),
    (
        "stactools-sentinel2/S2B_MSIL2A_20191228T210519_N0212_R071_T01CCV_20201003T104658.json",
        "swir22",
        "swir22",
        1,
        0.0001,
        0.0,
        0,
    ),
]


@pytest.mark.shared
@pytest.mark.parametrize(("path", "band", "key", "index", "scale", "offset", "nodata"), BY_HAND)
def test_bands_of_wild_items_are_those_found_by_hand(
    path: str, band: str, key: str, index: int, scale: float | None, offset: float | None, nodata: float | None, shared: Path
) -> None:
    raw = next(document for name, document in wild(shared) if name == path)
    clean = normalise(raw, base="/data/x/item.json", local=True, collection="c")
    where = CatalogSpec.model_validate(
        {"title": "t", "url": "/data/x/catalog.json", "local": True, "root": "/", "asset_hosts": ["*", "s3://*"]}
    )
    if clean["assets"][key]["href"].startswith("http://"):
        clean["assets"][key]["href"] = clean["assets"][key]["href"].replace("http://", "https://")
    table = resolve_items([clean], pipeline(bands=(band,), collections=(clean["collection"],), cloud_mask="none"), where)
    found = table.items[0].bands[band]
    assert (found.href, found.index, found.nodata) == (clean["assets"][key]["href"], index, nodata)
    if scale is None:
        assert math.isnan(found.scale)
        assert math.isnan(found.offset)
    else:
        assert (found.scale, found.offset) == (scale, offset)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("band", "key"), [("red", "B04"), ("nir08", "B8A"), ("rededge071", "B05"), ("nir", "B08"), ("nir09", "B09")]
)
def test_the_catalog_file_of_the_planetary_computer_says_what_its_items_do_not(
    band: str, key: str, shared: Path, tmp_path: Path
) -> None:
    where, _ = find_catalog("planetary-computer", tmp_path)
    raw = next(document for name, document in wild(shared) if name == "planetary-computer/sentinel-2-l2a-pc.json")
    clean = normalise(raw, base=BASE, local=False)
    found = resolve_items([clean], pipeline(bands=(band,), collections=("sentinel-2-l2a",)), where).items[0]
    asset_found = found.bands[band]
    assert asset_found.href == clean["assets"][key]["href"]
    assert (asset_found.scale, asset_found.offset, asset_found.nodata) == (0.0001, -0.1, 0.0)  # baseline 05.10
    assert found.cloud_mask is not None
    assert found.cloud_mask.asset.href == clean["assets"]["SCL"]["href"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "bbox"),
    [
        ("T01WCP_20230626T022157", (178.474107, 65.67165, -178.96619, 66.7056)),
        ("T01KAB_20230822T021825", None),
    ],
)
def test_wild_items_across_the_antimeridian_lie_on_both_sides(name: str, bbox: tuple[float, ...] | None, shared: Path) -> None:
    raw = next(document for path, document in wild(shared) if name in path)
    found = resolved(raw, "red")
    assert found.bbox[0] > found.bbox[2]
    assert bbox is None or found.bbox == bbox
    assert found.geometry["type"] == "MultiPolygon"
