"""G: inputs of somebody who means harm. One line, the documented exit status, and nothing is read, written or run for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from servers.files import FileServer
from wholerun import BAD, BBOX, failed, finishes, invoke, over_http, refused, results, resume, run, spoil, spoil_item

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize(
    "href",
    [
        "file:///etc/passwd",
        "/vsicurl/http://127.0.0.1:9/x.tif",
        "/vsizip//vsicurl/https://example.org/a.zip/b.tif",
        'NETCDF:"/etc/passwd":x',
        "//example.org/x.tif",
        r"\\\\example.org\\share\\x.tif",
        "ftp://example.org/x.tif",
        "https://example.org/proxy?url=http://127.0.0.1/",
    ],
)
def test_g01_an_address_that_is_no_web_address_is_refused_before_any_open(toy: Path, href: str) -> None:
    forbidden(toy, href, "href-scheme")


@pytest.mark.parametrize(
    "host",
    ["localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0x7f000001", "2130706433", "0177.1", "printer"],
)
def test_g02_an_address_of_this_machine_or_network_is_refused_before_any_open(toy: Path, host: str) -> None:
    forbidden(toy, f"https://{host}/x.tif", "href-private-address")


def forbidden(toy: Path, href: str, code: str) -> None:
    """A remote catalog whose item has its pixels at `href` is refused by name, and nothing but the catalog was asked for."""
    spoil_item(toy, lambda item: item["assets"]["green"].update(href=href))
    with FileServer(toy) as server:
        over_http(toy, server)
        line = refused(toy, 2, f'{code}: band "green" of item toy/a1: href "')
        assert all(asked.path == "/catalog.json" for asked in server.asked)
    assert any(advice in line for advice in ("Leave the item out", "Give the name", "Allowed are")), line


def test_g01_a_name_of_a_driver_is_but_a_name_at_the_catalogs_own_server(toy: Path) -> None:
    spoil_item(toy, lambda item: item["assets"]["green"].update(href="GTIFF_DIR:1:/etc/passwd"))
    with FileServer(toy) as server:
        over_http(toy, server)
        failed(run(toy), toy, "asset-not-found", "HTTP 404 from 127.0.0.1")


def test_g01_a_file_outside_of_a_local_catalog_is_refused_by_name(toy: Path) -> None:
    spoil_item(toy, lambda item: item["assets"]["green"].update(href="file:///etc/passwd"))
    refused(toy, 2, 'path-escape: band "green" of item toy/a1: href "/etc/passwd"', "Set root")


def test_g02_a_named_catalog_on_a_private_host_needs_allow_private(toy: Path, golden: dict[str, str]) -> None:
    (toy / "catalogs").mkdir()
    with FileServer(toy) as pixels, FileServer(toy) as catalog:
        document = json.loads((toy / "catalog.json").read_text())
        for asset in (asset for item in document["features"] for asset in item["assets"].values()):
            asset["href"] = pixels.url(asset["href"])
        (toy / "catalog.json").write_text(json.dumps(document))
        spoil(toy, "catalog.json", "there")
        entry = f'title = "there"\nurl = "{catalog.url("catalog.json")}"\nkind = "static"\nasset_hosts = ["127.0.0.1"]\n'
        (toy / "catalogs" / "there.toml").write_text(entry)
        refused(toy, 2, "href-private-address: ", "item toy/a1")
        assert not pixels.asked
        (toy / "catalogs" / "there.toml").write_text(entry + "allow_private = true\n")
        assert run(toy)[0] == 0
    assert results(toy / "run") == golden


def disguise(path: Path) -> None:
    (path.parent / "secret.txt").write_text("x" * 40_000)
    path.write_text(
        '<VRTDataset rasterXSize="200" rasterYSize="200"><SRS>EPSG:32632</SRS>'
        "<GeoTransform>726400,10,0,5210600,0,-10</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        '<SourceFilename relativetoVRT="1">secret.txt</SourceFilename></VRTRasterBand></VRTDataset>'
    )


def declare(width: int, block: int, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.unlink()
        place = {"crs": "EPSG:32632", "transform": from_origin(726_400, 5_210_600, 10, 10), "tiled": True}
        profile = {"driver": "GTiff", "width": width, "height": width, "count": 1, "blockxsize": block, "blockysize": block}
        with rasterio.open(path, "w", **{**profile, **place, **options}) as target:
            if width == block:
                target.write(np.zeros((target.count, width, width), np.uint8))

    return write


def spoilt(toy: Path, golden: dict[str, str], damage: Callable[[Path], object], *parts: str) -> None:
    """Chunks of a file after `damage` fail by name, and the run ends well once it is mended."""
    kept = shutil.copy(toy / BAD, toy / "kept.tif")
    damage(toy / BAD)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as apart:  # this process would keep the spoilt file open
        outcome = apart.submit(run, toy).result()
    failed(outcome, toy, 'band "green" of item toy/a1: ', *parts)
    Path(kept).replace(toy / BAD)
    finishes(toy, golden)


@pytest.mark.parametrize("after_a_warp", [False, True])
def test_g03_a_vrt_that_is_called_tif_is_never_opened(toy: Path, golden: dict[str, str], after_a_warp: bool) -> None:
    if after_a_warp:  # a WarpedVRT brings back drivers that GDAL was told to skip
        with rasterio.open(toy / BAD) as source, WarpedVRT(source, crs="EPSG:32633") as warped:
            warped.read(1, window=((0, 8), (0, 8)))
    spoilt(toy, golden, disguise, "asset-corrupt", "not a readable GeoTIFF")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (
            declare(1_000_000, 8192, dtype="float32", SPARSE_OK=True, BIGTIFF="YES"),
            ["asset-too-big", "declares 4.0 TB (limit 64 GB)"],
        ),
        (declare(8704, 8704, dtype="uint8", compress="zstd"), ["asset-too-big", "has blocks of 76 MB (limit 67 MB)"]),
        (declare(64, 64, dtype="uint8", count=65), ["asset-too-big", "declares 65 bands (limit 64)"]),
    ],
    ids=["4 TB", "block", "bands"],
)
def test_g04_a_file_that_would_take_all_memory_is_refused_from_its_header(
    toy: Path, golden: dict[str, str], damage: Callable[[Path], object], parts: list[str]
) -> None:
    spoilt(toy, golden, damage, *parts)


@pytest.mark.parametrize(
    "name", ["../../../../escaped", "a/b", "a" * 300, "a\0b", "CON", "B1", "\x1b[2Jevil\n2024 forged line", "\u202egnp"]
)
def test_g05_an_item_id_is_never_a_path_nor_a_terminal_command(toy: Path, golden: dict[str, str], name: str) -> None:
    spoil_item(toy, lambda item: item.update(id=name))
    around = {path for path in toy.parent.rglob("*") if "run" not in path.relative_to(toy.parent).parts}
    assert run(toy)[0] == 0
    masks = {name for name in golden if name.startswith("masks.zarr/mask/")}
    assert {name: results(toy / "run")[name] for name in masks} == {name: golden[name] for name in masks}
    assert {path for path in toy.parent.rglob("*") if "run" not in path.relative_to(toy.parent).parts} == around
    for arguments in (
        ("search", toy / "pipeline.toml"),
        ("search", toy / "pipeline.toml", "--json"),
        ("status", toy / "run"),
        ("export", toy / "run", "--out", toy / "maps"),
    ):
        status, out, err = invoke(*arguments)
        assert status == 0, err
        assert not any(line.startswith("2024 forged") for line in (out + err).splitlines())


@pytest.mark.parametrize("place", ["", "parts", "receipts", "masks.zarr"])
def test_g06_a_link_that_was_planted_in_a_run_is_never_followed(toy: Path, golden: dict[str, str], place: str) -> None:
    outside = toy / "outside"
    outside.mkdir()
    kept = (toy / BAD).read_bytes()
    (toy / BAD).write_bytes(b"")
    assert run(toy)[0] == 3
    (toy / BAD).write_bytes(kept)
    if place:
        shutil.rmtree(toy / "run" / place, ignore_errors=True)
        (toy / "run" / place).symlink_to(outside)
        status, _, err = resume(toy)
        assert status in (2, 3)  # refused at once, or chunk by chunk
        assert err
        assert all("path-escape: " in line for line in err.splitlines()), err
    else:
        (toy / "run").rename(toy / "moved")
        (toy / "run").symlink_to(toy / "moved")  # the folder itself is the operator's to place
        finishes(toy, golden)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("chunk_px", "chunk_pxx", ['pipeline.toml: unknown key "grid.chunk_pxx"', 'Did you mean "chunk_px"?']),
        ("[[prompts]]", "[[promts]]", ['unknown key "promts"', 'Did you mean "prompts"?']),
        ("threshold", "treshold", ['unknown key "prompts.1.treshold"', 'Did you mean "threshold"?']),
        (BBOX, "bbox = [nan, 47.0, 12.1, 47.1]", ["config-invalid: ", "pipeline.toml: region.bbox.1: ", "finite"]),
        (BBOX, "bbox = [12.0, 47.0, 12.1]", ["config-invalid: ", "region.bbox.4"]),
        ("2024-07-01", "2024-05-01", ["config-invalid: ", "before end 2024-05-01"]),
        ('["green", "nir"]', '["green", "nur"]', ["source.bands", 'band "nur"', 'mean "nir"?', "Available: green, nir"]),
        ('name = "window-mean"', 'name = "window-maen"', ["model.name", 'Did you mean "window-mean"?']),
        ("window_px = 64", "window_px = 8192", ["pipeline.toml: model.window_px: ", "4096"]),
        ("chunk_px = 128", "chunk_px = 0", ["pipeline.toml: grid.chunk_px: ", "64"]),
        ("chunk_px = 128", 'chunk_px = "512; rm"', ["pipeline.toml: grid.chunk_px: ", "integer"]),
        ("chunk_px = 128", "chunk_px = 100000", ["pipeline.toml: grid.chunk_px: ", "16384"]),
        ("threshold = 0.5", "threshold = nan", ["prompts.1.threshold", "finite"]),
        ("resolution = 10", "resolution = 1e-9", ["region-invalid: ", "too fine", "coarser grid.resolution"]),
        ("resolution = 10", "resolution = 1e9", ["region-invalid: ", "smaller than one pixel", "finer grid.resolution"]),
        ("EPSG:32632", "EPSG:99999", ["grid.crs: unknown CRS", "auto"]),
        ("catalog.json", "nope.json", ['source.catalog: no catalog file "nope.json"', "Give a path"]),
        ('"catalog.json"', '"earth-serch"', ['no catalog "earth-serch"', 'Did you mean "earth-search"?']),
        ("catalog.json", "ftp://example.org/catalog.json", ["source.catalog: ", "not an http(s) address"]),
    ],
)  # fmt: skip
def test_g09_a_pipeline_that_asks_for_the_impossible_is_refused(toy: Path, old: str, new: str, parts: list[str]) -> None:
    spoil(toy, old, new)
    refused(toy, 2, *parts)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('include = "other.toml"', ['unknown key "include"']),
        ('catalog = "${HOME}/catalog.json"', ["source.catalog: "]),
        ('name = "eo_batch.models.probe.WindowMean"', ["model.name"]),
    ],
)
def test_g09_nothing_is_interpolated_included_or_imported_by_name(toy: Path, line: str, parts: list[str]) -> None:
    key = line.partition(" ")[0]
    old = {"include": '\nname = "toy"', "catalog": 'catalog = "catalog.json"', "name": 'name = "window-mean"'}[key]
    spoil(toy, old, f"{old}\n{line}" if key == "include" else line)
    refused(toy, 2, *parts)


@pytest.mark.parametrize("place", ["pipeline", "option"])
def test_g09_an_unknown_cluster_is_refused_before_a_folder_is_made(toy: Path, place: str) -> None:
    if place == "pipeline":
        spoil(toy, "[output]", '[cluster]\nkind = "seriel"\n[output]')
    option = ("--cluster", "seriel") if place == "option" else ()
    status, out, err = invoke("run", toy / "pipeline.toml", "--out", toy / "run", "--quiet", *option)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert '"seriel"' in err
    assert not (toy / "run").exists()


def test_g09_a_pipeline_of_200_megabytes_is_refused_unread(toy: Path) -> None:
    with (toy / "pipeline.toml").open("ab") as file:
        file.truncate(200_000_000)
    refused(toy, 2, "config-too-large: ", "200,000,000 bytes (limit 1,000,000)", "pipeline.toml", "Check the path")


def test_g09_a_pipeline_that_is_not_there_is_refused(toy: Path) -> None:
    (toy / "pipeline.toml").unlink()
    refused(toy, 2, f"config-invalid: {toy}/pipeline.toml: cannot read the pipeline: No such file", "Check the path")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"name: x\nregion:\n  bbox: [1, 2, 3, 4]\n", ["not TOML", "line 1"]),
        (b"a: &a [*a, *a]\n", ["not TOML", "line 1"]),
        (b"{}", ["not TOML"]),
        (b"\xff\xfe\x00", ["not TOML"]),
        (b'name = "a"\n\x1b[31m', ["not TOML", "line 2"]),
        (b"a=" + b"[" * 50_000, ["not TOML: nested too deeply"]),
        (b"", ["name: field required"]),
    ],
)
def test_g10_a_pipeline_that_is_not_toml_is_refused(toy: Path, content: bytes, parts: list[str]) -> None:
    (toy / "pipeline.toml").write_bytes(content)
    refused(toy, 2, f"config-invalid: {toy}/pipeline.toml: ", *parts)


def test_g12_an_item_id_in_a_failure_is_escaped(toy: Path) -> None:
    spoil_item(toy, lambda item: item.update(id="\x1b[2Jevil\n2024 forged line"))
    (toy / BAD).write_bytes(b"")
    outcome = run(toy)
    failed(outcome, toy, r"\x1b[2Jevil\n2024 forged line")
    assert all(line.startswith(("failure: ", "warning: item ")) for line in outcome[2].splitlines())
    invoke("status", toy / "run")
