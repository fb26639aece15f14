"""Files of polygons that users point to: every format, any CRS, and what is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Transformer

from eo_batch.core.errors import ConfigError
from eo_batch.sources import outlines, polygons
from eo_batch.sources.polygons import Polygons, read_polygons

CRS, BOUNDS = "EPSG:32631", (450_000.0, 4_640_000.0, 460_000.0, 4_650_000.0)
SQUARES = [shapely.box(450_000 + 2000 * i, 4_641_000, 452_000 + 2000 * i, 4_643_000) for i in range(3)]
FORMATS = [".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet"]


def frame(shapes: list = SQUARES, crs: str | None = CRS, **columns: list) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame({"code": [f"z{i}" for i in range(len(shapes))], **columns}, geometry=shapes, crs=crs)


def written(folder: Path, rows: geopandas.GeoDataFrame, suffix: str = ".gpkg", **options: object) -> Path:
    path = folder / f"zones{suffix}"
    if suffix == ".parquet":
        rows.to_parquet(path, **options)
    else:
        drivers = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".fgb": "FlatGeobuf"}
        rows.to_file(path, driver=drivers.get(suffix, "GeoJSON"), **options)
    return path


def read(path: Path, **options: str) -> Polygons:
    return read_polygons(path, crs=CRS, bounds=BOUNDS, **options)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_zones(tmp_path: Path, suffix: str) -> None:
    found = read(written(tmp_path, frame(), suffix), id_field="code")
    assert sorted(found.ids) == ["z0", "z1", "z2"]
    for name, shape in zip(found.ids, found.shapes, strict=True):
        # Some writers of GeoJSON go through longitude and latitude with few digits.
        assert shapely.hausdorff_distance(shape, SQUARES[int(name[1])]) < 0.05


def test_without_a_column_zones_are_numbered_from_one(tmp_path: Path) -> None:
    assert read(written(tmp_path, frame())).ids == ("1", "2", "3")


def test_whole_numbers_are_names_without_a_decimal_point(tmp_path: Path) -> None:
    for suffix in (".gpkg", ".parquet"):
        assert read(written(tmp_path, frame(number=[7.0, 8.0, 9.0]), suffix), id_field="number").ids == ("7", "8", "9")


def test_zones_in_longitude_and_latitude_keep_their_course(tmp_path: Path) -> None:
    lonlat = shapely.box(2.4, 41.9, 3.2, 42.4)
    (moved,) = read(written(tmp_path, frame([lonlat], "EPSG:4326"), ".parquet")).shapes
    forward = Transformer.from_crs("EPSG:4326", CRS, always_xy=True)
    along = shapely.points(*forward.transform(np.linspace(2.4, 3.2, 2001), np.full(2001, 42.4)))
    assert shapely.distance(along, moved.exterior).max() < 1.0  # a straight edge would be 77 m off
    straight = shapely.linestrings([shapely.get_coordinates(along[0])[0], shapely.get_coordinates(along[-1])[0]])
    assert shapely.distance(along, straight).max() > 50


def test_neighbours_share_every_vertex_after_they_were_moved(tmp_path: Path) -> None:
    left = shapely.Polygon([(2.4, 41.9), (2.8, 41.95), (2.75, 42.4), (2.4, 42.4)])
    right = shapely.Polygon([(2.75, 42.4), (2.8, 41.95), (3.2, 41.9), (3.2, 42.4)])
    one, other = read(written(tmp_path, frame([left, right], "EPSG:4326"), ".parquet")).shapes
    shared = {tuple(xy) for xy in shapely.get_coordinates(one)} & {tuple(xy) for xy in shapely.get_coordinates(other)}
    assert len(shared) == np.ceil(np.hypot(0.05, 0.45) / 0.01) + 1
    assert one.intersection(other).area == 0


def test_a_zone_far_away_without_coordinates_here_is_none_and_a_near_one_is_refused(tmp_path: Path) -> None:
    singular = shapely.box(92.9, -1, 93.1, 1)  # 90 degrees from the central meridian, on the equator
    antarctica, here = shapely.box(-180, -90, 180, -60), shapely.box(2.4, 41.9, 2.5, 42.0)
    shapes = read(written(tmp_path, frame([singular, antarctica, here], "EPSG:4326"), ".parquet")).shapes
    assert shapes[1] is None
    assert shapes[0] is None or not shapes[0].intersects(shapely.box(*BOUNDS))
    assert shapes[2].intersects(shapely.box(*BOUNDS))
    world = shapely.box(-180, -90, 180, 90)
    with pytest.raises(ConfigError, match=r'zones-invalid.*"1" reaches where EPSG:32631 has no coordinates.*Cut'):
        read(written(tmp_path, frame([world], "EPSG:4326"), ".parquet"))


def test_an_outline_that_crosses_itself_is_mended_and_named(tmp_path: Path) -> None:
    bow = shapely.Polygon([(450_000, 4_641_000), (452_000, 4_643_000), (452_000, 4_641_000), (450_000, 4_643_000)])
    found = read(written(tmp_path, frame([SQUARES[0], bow], code=["fine", "bow"])), id_field="code")
    assert found.repaired == ("bow",)
    assert found.shapes[1].is_valid
    assert found.shapes[1].area == pytest.approx(2e6)


def test_heights_are_left_out(tmp_path: Path) -> None:
    (shape,) = read(written(tmp_path, frame([shapely.force_3d(SQUARES[0], 5.0)]))).shapes
    assert not shape.has_z


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb", ".parquet"])
def test_zones_without_a_crs_are_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match=r"zones-invalid.*no CRS.*does not guess"):
        read(written(tmp_path, frame(crs=None), suffix))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([SQUARES[0], shapely.Point(450_000, 4_641_000)], 'polygon "2" is a Point'),
        ([SQUARES[0], None, None], 'polygon "2" has no geometry, and 1 more'),
        ([shapely.Polygon()], 'polygon "1" has no geometry'),
        ([shapely.Polygon([(0, 0), (1, 1), (2, 2), (0, 0)])], 'polygon "1" is not valid and encloses no area'),
        ([shapely.Polygon([(0, 0), (1, np.inf), (2, 2), (0, 0)])], 'polygon "1" has coordinates that are not finite'),
        ([], "the file holds no polygon"),
    ],
)
def test_what_is_no_polygon_is_refused_by_name(tmp_path: Path, shapes: list, said: str) -> None:
    with pytest.raises(ConfigError, match=f"zones-invalid.*{said}"):
        read(written(tmp_path, frame(shapes), ".parquet"))


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (["a", "b", "a"], 'polygon 3 has the name "a" of an earlier one'),
        (["a", None, "b"], "polygon 2 has no name"),
        (["a", "  ", "b"], "polygon 2 has no name"),
        (["a", "b", "x" * 300], "polygon 3 has a name of 300 characters"),
    ],
)
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_names_that_do_not_name_are_refused(tmp_path: Path, codes: list, said: str, suffix: str) -> None:
    with pytest.raises(ConfigError, match=f"zones-invalid.*{said}"):
        read(written(tmp_path, frame(code=codes), suffix), id_field="code")


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_an_unknown_column_is_refused_with_those_there_are(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match=r'no column "nmae".*"code"'):
        read(written(tmp_path, frame(), suffix), id_field="nmae")


def test_of_several_layers_one_must_be_named(tmp_path: Path) -> None:
    written(tmp_path, frame(), layer="districts")
    path = written(tmp_path, frame(SQUARES[:1]), layer="parks")
    with pytest.raises(ConfigError, match=r'2 layers.*--layer: "districts", "parks"'):
        read(path)
    assert len(read(path, layer="parks").ids) == 1
    with pytest.raises(ConfigError, match=r'no layer "lakes".*"districts"'):
        read(path, layer="lakes")


def test_a_file_is_what_its_name_says_or_is_not_opened(tmp_path: Path) -> None:
    real = written(tmp_path, frame())
    disguise = (
        f'<OGRVRTDataSource><OGRVRTLayer name="zones"><SrcDataSource>{real}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
    )
    for suffix in FORMATS:
        path = tmp_path / f"disguise{suffix}"
        path.write_text(disguise)
        with pytest.raises(ConfigError, match="zones-invalid.*content is not that of"):
            read(path)
    for name in ("zones.vrt", "zones.zip", "zones.csv", "zones"):
        (tmp_path / name).write_bytes(real.read_bytes())
        with pytest.raises(ConfigError, match=r"zones-invalid.*not read.*\.gpkg"):
            read(tmp_path / name)


@pytest.mark.parametrize("path", ["/vsicurl/http://127.0.0.1:9/zones.gpkg", "gone.gpkg", "/tmp", "GPKG:zones.gpkg:layer.gpkg"])
def test_only_local_files_are_opened(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="zones-invalid.*no such file"):
        read(tmp_path / path)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb", ".parquet"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_file_cut_short_is_one_clear_error_or_whole_zones(tmp_path: Path, suffix: str, kept: float) -> None:
    path = written(tmp_path, frame(SQUARES * 40), suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ConfigError, match="zones-invalid"):
        read(path)


def test_geojson_that_is_none_and_parquet_without_geometry_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": "no"}))
    (tmp_path / "b.geojson").write_text("{" * 2000)
    frame().drop(columns="geometry").to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.shp").write_bytes(struct.pack(">i", 9994) + bytes(96))
    for name in ("a.geojson", "b.geojson", "c.parquet", "d.shp"):
        with pytest.raises(ConfigError, match="zones-invalid"):
            read(tmp_path / name)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, table = written(tmp_path, frame()), written(tmp_path, frame(), ".parquet")
    for name, value, said in (
        ("MAX_POLYGONS", 2, "3 polygons"),
        ("MAX_VERTICES", 14, "15 vertices"),
        ("MAX_FILE_BYTES", 99, "GB"),
    ):
        with monkeypatch.context() as limits:
            limits.setattr(polygons, name, value)
            for file in (path, table):
                with pytest.raises(ConfigError, match=f"zones-invalid.*{said}"):
                    read(file)


def test_coordinates_that_are_nowhere_on_earth_are_refused_or_far_away(tmp_path: Path) -> None:
    for far in (1e12, 1e200):
        path = written(tmp_path, frame([SQUARES[0], shapely.box(450_000, 4_640_000, far, far)]))
        with pytest.raises(ConfigError, match=r'polygon "2" has coordinates that are nowhere on Earth'):
            read(path)
    at_the_antipode = shapely.box(-177.2, -42.2, -177.0, -42.0)
    gnomonic = "+proj=stere +lat_0=42 +lon_0=3 +datum=WGS84"
    path = written(tmp_path, frame([at_the_antipode.buffer(0.3)], crs="EPSG:4326"))
    assert read_polygons(path, crs=gnomonic, bounds=(0.0, 0.0, 1000.0, 1000.0)).shapes.tolist() == [None]


def test_a_crs_without_a_place_on_earth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"zones-invalid.*no way from the CRS of the file to EPSG:32631"):
        read(written(tmp_path, frame(crs='LOCAL_CS["site plan",UNIT["metre",1]]')))


def test_zones_are_followed_in_groups_of_any_size_within_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, frame([shapely.box(2.4 + i, 41.9, 2.9 + i, 42.4) for i in range(3)], "EPSG:4326"), ".parquet")
    together = shapely.to_wkb(read(path).shapes).tolist()
    monkeypatch.setattr(outlines, "_AT_ONCE", 1)
    assert shapely.to_wkb(read(path).shapes).tolist() == together
    monkeypatch.setattr(polygons, "MAX_VERTICES", 250)  # each has 201, and 4 in the file
    with pytest.raises(ConfigError, match="too long to be followed"):
        read(path)


@pytest.mark.parametrize(
    ("crs", "shape"),
    [("EPSG:32632", shapely.box(-175, -5, -165, 5)), ("EPSG:3857", shapely.box(179, -5, 181, 5))],
    ids=["UTM is cut opposite to its zone", "Mercator is cut at 180 degrees"],
)
def test_a_zone_over_the_cut_of_a_projection_does_not_cover_what_lies_between_its_ends(
    tmp_path: Path, crs: str, shape: shapely.Polygon
) -> None:
    path = written(tmp_path, frame([shape], "EPSG:4326"))
    forward = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    here = forward.transform_bounds(9.0, 47.0, 9.1, 47.1)
    assert read_polygons(path, crs=crs, bounds=here).shapes.tolist() == [None]
    if crs == "EPSG:3857":
        for west in (179.5, -179.9):
            with pytest.raises(ConfigError, match='polygon "1" reaches where EPSG:3857 has no coordinates'):
                read_polygons(path, crs=crs, bounds=forward.transform_bounds(west, 1.0, west + 0.1, 1.1))


def test_zones_across_180_degrees_reach_a_map_on_either_side(tmp_path: Path) -> None:
    """A square of 20 km on the line, written in several ways, for a map in UTM zone 1."""
    crs = "EPSG:32701"
    forward = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = forward.transform(180, -18)
    bounds = (x - 5000, y - 5000, x + 5000, y + 5000)
    ways = [
        ("EPSG:4326", shapely.MultiPolygon([shapely.box(179.9, -18.1, 180, -17.9), shapely.box(-180, -18.1, -179.9, -17.9)])),
        ("EPSG:4326", shapely.box(179.9, -18.1, 180.1, -17.9)),
        ("EPSG:4326", shapely.box(-180.1, -18.1, -179.9, -17.9)),
    ]
    areas = []
    for source, shape in ways:
        (found,) = read_polygons(written(tmp_path, frame([shape], source), ".parquet"), crs=crs, bounds=bounds).shapes
        assert shapely.box(*bounds).difference(found).area < 1e-3 * 1e8
        areas.append(found.area)
    np.testing.assert_allclose(areas, areas[0], rtol=1e-6)
    west = Transformer.from_crs("EPSG:4326", "EPSG:32760", always_xy=True)
    a, b = west.transform(180, -18)
    (found,) = read_polygons(
        written(tmp_path, frame([shapely.box(a - 1e4, b - 1e4, a + 1e4, b + 1e4)], "EPSG:32760")), crs=crs, bounds=bounds
    ).shapes
    assert shapely.box(*bounds).difference(found).area == 0
    assert abs(found.area / 4e8 - 1) < 0.01
