"""Whole runs from bad input through the command line: one clear line, the documented exit status, nothing half-written.

A refusal before the first byte leaves no folder; a failed chunk leaves a run that `resume` finishes once the input is mended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rundigest import file_digests
from servers.files import Fault, FileServer
from toy import make_toy, toy_bbox, toy_pipeline
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.sources import http
from eo_batch.sources.asset_errors import Retry

SIZE = 200
CHUNKS = 4
BAD = "a1_green.tif"
BBOX = "bbox = [{}, {}, {}, {}]".format(*toy_bbox(SIZE))
RESULTS = ("masks.zarr/", "parts/", "footprints.parquet")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untouched toy; tests must not change it."""
    folder = tmp_path_factory.mktemp("clean") / "toy"
    make_toy(folder, dates=1, size=SIZE)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=SIZE, prompts=("bright",)))
    return folder


@pytest.fixture
def toy(clean: Path, tmp_path: Path) -> Path:
    """A copy of the toy to spoil."""
    return Path(shutil.copytree(clean, tmp_path / "toy"))


@pytest.fixture(scope="module")
def golden(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the results of an undisturbed run over local files."""
    out = tmp_path_factory.mktemp("golden") / "run"
    assert invoke("run", clean / "pipeline.toml", "--out", out, "--cluster", "serial", "--quiet")[0] == 0
    return results(out)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(Retry, "wait_s", lambda self, attempt, asked_s=0.0: 0.0)


def invoke(*arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a command in this process; text is checked for what must never be printed."""
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments])
    printed = answer.stdout + answer.stderr
    assert "Traceback" not in printed
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", printed), "a control character reached the terminal"
    return answer.exit_code, answer.stdout, answer.stderr


def run(toy: Path, *more: object) -> tuple[int, str, str]:
    return invoke("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "serial", "--quiet", *more)


def spoil(toy: Path, old: str, new: str) -> None:
    """Change the pipeline."""
    text = (toy / "pipeline.toml").read_text()
    assert old in text
    (toy / "pipeline.toml").write_text(text.replace(old, new, 1))


def spoil_item(toy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change item a1 of the catalog."""
    document = json.loads((toy / "catalog.json").read_text())
    change(next(item for item in document["features"] if item["id"] == "a1"))
    (toy / "catalog.json").write_text(json.dumps(document))


def results(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in file_digests(out).items() if name.startswith(RESULTS)}


def refused(toy: Path, status: int, *parts: str) -> str:
    """The one line of a run that was refused before it began."""
    found, out, err = run(toy)
    assert (found, out, err.count("\n")) == (status, "", 1), err
    assert not (toy / "run").exists()
    for part in parts:
        assert part in err, err
    return err


def fails_and_resumes(toy: Path, golden: dict[str, str], *parts: str) -> None:
    """A run whose chunks fail with one line each, ends with 3, and equals an undisturbed one after the file is mended."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as apart:  # the process may keep the spoilt file open
        status, _, err = apart.submit(run, toy).result()
    lines = err.splitlines()
    assert status == 3, err
    assert 1 <= len(lines) <= CHUNKS
    for line in lines:
        assert line.startswith("failure: chunk t0000/y000"), line
        for part in parts:
            assert part in line, line
    assert not (toy / "run" / "COMPLETE.json").exists()
    assert not list((toy / "run").rglob("*.partial"))
    listed = json.loads(invoke("status", toy / "run", "--json")[1])
    assert (listed["state"], listed["failed"]) == ("stopped", len(lines))
    mended(toy, golden)


def mended(toy: Path, golden: dict[str, str]) -> None:
    clean = toy / "mended.tif"
    clean.write_bytes((toy / "kept.tif").read_bytes())
    os.replace(clean, toy / BAD)
    status, _, err = invoke("resume", toy / "run", "--cluster", "serial", "--quiet")
    assert status == 0, err
    assert results(toy / "run") == golden


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("chunk_px", "chunk_pxx", ['pipeline.toml: unknown key "grid.chunk_pxx"', 'Did you mean "chunk_px"?']),
        ("[[prompts]]", "[[promts]]", ['unknown key "promts"', 'Did you mean "prompts"?']),
        ("threshold", "treshold", ['unknown key "prompts.1.treshold"', 'Did you mean "threshold"?']),
        (BBOX, "bbox = [12.0, 47.1, 12.1, 47.0]", ["region-invalid: ", "south < north"]),
        (BBOX, "bbox = [nan, 47.0, 12.1, 47.1]", ["config-invalid: ", "pipeline.toml: region.bbox.1: ", "finite"]),
        (BBOX, "bbox = [12.0, 47.0, 200.0, 47.1]", ["region-invalid: ", "-180..180"]),
        (BBOX, "bbox = [12.0, 47.0, 12.1]", ["config-invalid: ", "region.bbox.4"]),
        ("2024-07-01", "2024-05-01", ["config-invalid: ", "before end 2024-05-01"]),
        ('"toy"]', '"toi"]', ["catalog-empty: catalog.json: 0 items for toi", "2 of them in another collection", "Check"]),
        (BBOX, "bbox = [80.0, 10.0, 80.1, 10.1]", ["catalog-empty: ", "2 of them outside of the region"]),
        ('["green", "nir"]', '["green", "nur"]', ["source.bands", 'band "nur"', 'mean "nir"?', "Available: green, nir"]),
        ('name = "window-mean"', 'name = "window-maen"', ["model.name", 'Did you mean "window-mean"?']),
        ("window_px = 64", "window_px = 8192", ["pipeline.toml: model.window_px: ", "4096"]),
        ("chunk_px = 128", "chunk_px = 0", ["pipeline.toml: grid.chunk_px: ", "64"]),
        ("chunk_px = 128", 'chunk_px = "512; rm"', ["pipeline.toml: grid.chunk_px: ", "integer"]),
        ("chunk_px = 128", "chunk_px = 100000", ["pipeline.toml: grid.chunk_px: ", "16384"]),
        ("threshold = 0.5", "threshold = nan", ["prompts.1.threshold", "finite"]),
        ("resolution = 10", "resolution = 1e-9", ["region-invalid: ", "too fine", "coarser grid.resolution"]),
        ("resolution = 10", "resolution = 1e9", ["region-invalid: ", "smaller than one pixel", "finer grid.resolution"]),
        ("EPSG:32632", "EPSG:4326", ["region-invalid: ", "10 degree", "finer grid.resolution"]),
        ("EPSG:32632", "EPSG:99999", ["grid.crs: unknown CRS", "auto"]),
        ('"bright"', '""', ["prompt-invalid: prompt 1 is empty"]),
        ('"bright"', f'"{"x" * 10000}"', ["prompt-invalid: prompt 1 has 10,000 characters (limit 200)"]),
        ('"bright"', '"\\u001b[31mred"', ["prompt-invalid: prompt 1 holds control characters"]),
        ('"bright"', '"a\\u202eb"', ["prompt-invalid: prompt 1 holds control characters"]),
        ("[[prompts]]", '[[prompts]]\ntext = " bright "\n[[prompts]]', ["prompt-invalid: ", "prompts 1 and 2 are the same"]),
        ("catalog.json", "nope.json", ['source.catalog: no catalog file "nope.json"', "Give a path"]),
        ('"catalog.json"', '"earth-serch"', ['no catalog "earth-serch"', 'Did you mean "earth-search"?']),
        ("catalog.json", "ftp://example.org/catalog.json", ["source.catalog: ", "not an http(s) address"]),
    ],
)  # fmt: skip
def test_a_pipeline_that_asks_for_the_impossible_is_refused_in_one_line(toy: Path, old: str, new: str, parts: list[str]) -> None:
    spoil(toy, old, new)
    refused(toy, 2, *parts)


@pytest.mark.parametrize("place", ["pipeline", "option"])
def test_an_unknown_cluster_is_refused_before_a_folder_is_made(toy: Path, place: str) -> None:
    if place == "pipeline":
        spoil(toy, "[output]", '[cluster]\nkind = "seriel"\n[output]')
    option = ("--cluster", "seriel") if place == "option" else ()
    status, out, err = invoke("run", toy / "pipeline.toml", "--out", toy / "run", "--quiet", *option)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'unknown cluster "seriel". Did you mean "serial"? Use one of: local, serial.' in err
    assert not (toy / "run").exists()


def test_more_chunks_than_can_be_planned_are_refused_at_once(toy: Path) -> None:
    spoil(toy, BBOX, "bbox = [-180, -90, 180, 90]")
    refused(toy, 7, "plan-too-big: toy: ", "chunks (limit", "grid.resolution")


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
def test_a_pipeline_that_is_not_toml_is_refused(toy: Path, content: bytes, parts: list[str]) -> None:
    (toy / "pipeline.toml").write_bytes(content)
    refused(toy, 2, f"config-invalid: {toy}/pipeline.toml: ", *parts)


def test_a_pipeline_of_200_megabytes_is_refused_unread(toy: Path) -> None:
    with (toy / "pipeline.toml").open("ab") as file:
        file.truncate(200_000_000)
    refused(toy, 2, "config-too-large: ", "200,000,000 bytes (limit 1,000,000)", "pipeline.toml", "Check the path")


def test_a_pipeline_that_is_not_there_is_refused(toy: Path) -> None:
    (toy / "pipeline.toml").unlink()
    refused(toy, 2, f"config-invalid: {toy}/pipeline.toml: cannot read the pipeline: No such file", "Check the path")


WEST, SOUTH, EAST, NORTH = toy_bbox(SIZE)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["config-invalid: ", "cannot read the region file: No such file"]),
        ("<html>", ["region-invalid: ", "not GeoJSON"]),
        ("[" * 100_000, ["region-invalid: ", "not GeoJSON"]),
        ('{"a": 1}', ["region-invalid: ", "GeoJSON"]),
        ('{"type": "FeatureCollection", "features": []}', ["region-invalid: ", "no polygon"]),
        ('{"type": "Point", "coordinates": [12, 47]}', ["region-invalid: ", "not a polygon"]),
        ('{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 2], [3, 1], [NaN, 1]]]}', ["region-invalid: ", "no numbers"]),
        (
            json.dumps(
                {"type": "Polygon", "coordinates": [[[WEST, SOUTH], [EAST, NORTH], [EAST, SOUTH], [WEST, NORTH], [WEST, SOUTH]]]}
            ),
            ["region-invalid: ", "Self-intersection", "rings do not cross"],
        ),
        (
            '{"type": "Polygon", "coordinates": [[[7e5, 5e6], [7e5, 6e6], [8e5, 5e6], [7e5, 5e6]]]}',
            ["region-invalid: ", "longitude"],
        ),
    ],
)
def test_a_bad_region_file_is_named(toy: Path, content: str | None, parts: list[str]) -> None:
    spoil(toy, BBOX, 'file = "aoi.geojson"')
    if content is not None:
        (toy / "aoi.geojson").write_text(content)
    refused(toy, 2, f"{toy}/aoi.geojson: ", *parts)


@pytest.mark.parametrize(
    ("content", "status", "parts"),
    [
        ("<html>", 4, ["catalog-unreachable: ", "not JSON"]),
        ("[" * 100_000, 4, ["catalog-unreachable: ", "nested too deeply"]),
        ("[1, null]", 4, ["item-invalid: ", "not a STAC item"]),
        ('{"type": "FeatureCollection", "features": null}', 2, ["config-invalid: ", "list of features"]),
        ('{"type": "Catalog", "links": null}', 2, ["config-invalid: ", "not a STAC catalog"]),
        (
            '{"type": "FeatureCollection", "features": [], "links": [{"rel": "next", "href": "2"}]}',
            4,
            ["catalog-paging: ", "one page of a longer answer"],
        ),
        (
            '{"type": "Catalog", "id": "x", "links": [{"rel": "child", "href": "../../../../../../../../etc/passwd"}]}',
            2,
            ["path-escape: ", "/etc/passwd"],
        ),
    ],
)
def test_a_bad_catalog_file_is_refused(toy: Path, content: str, status: int, parts: list[str]) -> None:
    (toy / "catalog.json").write_text(content)
    refused(toy, status, *parts)


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ([Fault("status", 500, repeat=True)], "HTTP 500 after 5 tries"),
        ([Fault("status", 403, repeat=True)], "HTTP 403"),
        ([Fault("reset", repeat=True)], "Connection reset by peer after 5 tries"),
        ([Fault("status", 302, (("Location", "file:///etc/passwd"),), repeat=True)], "leads away from the web"),
    ],
)
def test_a_remote_catalog_that_fails_is_refused(toy: Path, faults: list[Fault], why: str) -> None:
    with FileServer(toy) as server:
        server.script("catalog.json", *faults)
        spoil(toy, "catalog.json", server.url("catalog.json"))
        refused(toy, 4, f"catalog-unreachable: {server.url('catalog.json')}: ", why, "Check the catalog and the network")


def test_a_remote_catalog_that_is_a_login_page_is_refused(toy: Path) -> None:
    (toy / "catalog.json").write_text("<html>please log in</html>")
    with FileServer(toy) as server:
        spoil(toy, "catalog.json", server.url("catalog.json"))
        refused(toy, 4, "catalog-unreachable: ", "the answer is not JSON")


@pytest.mark.parametrize("name", ["catalog.json", "items.parquet", "stac"])
def test_a_catalog_behind_a_closed_port_is_refused(toy: Path, name: str) -> None:
    with FileServer(toy) as server:
        address = server.url(name)
    spoil(toy, "catalog.json", address)
    refused(toy, 4, "catalog-unreachable: ", "Connection refused after 5 tries")


@pytest.mark.parametrize(
    ("href", "code"),
    [
        ("file:///etc/passwd", "href-scheme"),
        ("/vsicurl/http://127.0.0.1:9/x.tif", "href-scheme"),
        ("/vsizip//vsicurl/https://example.org/a.zip/b.tif", "href-scheme"),
        ('NETCDF:"/etc/passwd":x', "href-scheme"),
        ("//example.org/x.tif", "href-scheme"),
        ("https://localhost/x.tif", "href-private-address"),
        ("http://169.254.169.254/x.tif", "href-private-address"),
        ("http://0x7f000001/x.tif", "href-private-address"),
    ],
)
def test_an_item_of_a_remote_catalog_that_names_a_forbidden_place_is_refused_by_name(toy: Path, href: str, code: str) -> None:
    spoil_item(toy, lambda item: item["assets"]["green"].update(href=href))
    with FileServer(toy) as server:
        spoil(toy, "catalog.json", server.url("catalog.json"))
        line = refused(toy, 2, f'{code}: band "green" of item toy/a1: href "')
        assert all(asked.path == "/catalog.json" for asked in server.asked)
    assert any(advice in line for advice in ("Leave the item out", "Give the name of the host")), line


def test_a_file_outside_of_a_local_catalog_is_refused_by_name(toy: Path) -> None:
    spoil_item(toy, lambda item: item["assets"]["green"].update(href="file:///etc/passwd"))
    refused(toy, 2, 'path-escape: band "green" of item toy/a1: href "/etc/passwd"', "Set root")


@pytest.mark.parametrize(("field", "value"), [("raster:scale", "abc"), ("raster:scale", 0), ("raster:offset", [1])])
def test_a_scale_that_is_no_number_is_never_guessed(toy: Path, field: str, value: object) -> None:
    spoil_item(toy, lambda item: item["assets"]["green"]["bands"][0].update({field: value}))
    refused(toy, 4, 'item-invalid: band "green" of item toy/a1: ', f"{field} is {json.dumps(value)}")


def corrupt(path: Path) -> None:
    """Overwrite the beginning of a compressed tile; damage further inside can decode to other pixels without any error."""
    with rasterio.open(path) as raster:
        start = int(raster.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


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
        with rasterio.open(path, "w", **profile, **place, **options) as target:
            if width == block:
                target.write(np.zeros((1, width, width), np.uint8))

    return write


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (corrupt, ["asset-corrupt", "could not be read"]),
        (truncate, ["asset-corrupt", "could not be read"]),
        (lambda path: path.write_bytes(b""), ["asset-corrupt", "not a readable GeoTIFF"]),
        (lambda path: path.write_text("<html>please log in</html>"), ["asset-corrupt", "not a readable GeoTIFF"]),
        (disguise, ["asset-corrupt", "not a readable GeoTIFF"]),
        (lambda path: path.unlink(), ["asset-not-found", BAD, 'Set missing_assets = "skip"']),
        (
            declare(1_000_000, 8192, dtype="float32", SPARSE_OK=True, BIGTIFF="YES"),
            ["asset-too-big", "declares 4.0 TB (limit 64 GB)"],
        ),
        (declare(8704, 8704, dtype="uint8", compress="zstd"), ["asset-too-big", "has blocks of 76 MB (limit 67 MB)"]),
    ],
    ids=["corrupt", "truncated", "empty", "html", "vrt", "missing", "4TB", "block-bomb"],
)
def test_a_bad_file_fails_its_chunks_by_name_and_resume_finishes_once_it_is_mended(
    toy: Path, golden: dict[str, str], damage: Callable[[Path], object], parts: list[str]
) -> None:
    shutil.copy(toy / BAD, toy / "kept.tif")
    damage(toy / BAD)
    fails_and_resumes(toy, golden, 'band "green" of item toy/a1: ', *parts)


@pytest.fixture
def hostile_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose segmenter answers with NaN from its n-th call on."""
    info = tmp_path / "packages" / "eo_hostile-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eo-hostile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eo_batch.segmenters]\nhostile = hostile_segmenter:make\n")
    (info.parent / "hostile_segmenter.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from eo_batch.models.probe import WindowMean

        class Hostile(WindowMean):
            def decode(self, images, prompts):
                calls.append(1)
                logits = np.array(super().decode(images, prompts))
                if len(calls) > sound:
                    logits[0, 0, 3, 3] = np.nan
                return logits

        def make(model, bands):
            global calls, sound
            calls, sound = [], int(model.options["sound"])
            return Hostile(tuple(bands), cost=0)
        """)
    )
    monkeypatch.syspath_prepend(info.parent)


@pytest.mark.usefixtures("hostile_segmenter")
def test_a_segmenter_that_answers_nan_is_refused_before_the_run(toy: Path) -> None:
    spoil(toy, 'name = "window-mean"', 'name = "hostile"')
    spoil(toy, "[output]", "[model.options]\nsound = 0\n[output]")
    refused(toy, 2, "model-not-finite: ", "logits are NaN", "Check the weights")


@pytest.mark.usefixtures("hostile_segmenter")
def test_nan_scores_fail_their_chunks_and_never_become_a_mask(toy: Path) -> None:
    spoil(toy, 'name = "window-mean"', 'name = "hostile"')
    spoil(toy, "[output]", "[model.options]\nsound = 6\n[output]")
    status, _, err = run(toy)
    failed = re.findall(r"failure: chunk t0000/y(\d{4})_x(\d{4}) failed: model-not-finite: .* of 4,096 logits are NaN", err)
    assert status == 3
    assert 1 <= len(failed) < CHUNKS
    for y, x in failed:
        assert not (toy / f"run/masks.zarr/mask/c/0/0/{int(y)}/{int(x)}").exists()
        assert not (toy / f"run/receipts/t0000/y{y}_x{x}.json").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written, by root neither where a file system can be mounted."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid():
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("root may write everywhere, and no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_may_not_be_written_is_refused(toy: Path, read_only: Path) -> None:
    status, out, err = invoke("run", toy / "pipeline.toml", "--out", read_only / "run", "--cluster", "serial", "--quiet")
    assert (status, out, err.count("\n")) == (7, "", 1)
    assert err.startswith("store-denied: ")
    assert f"Give this user the right to read and write `{read_only}/run`" in err
    assert list(read_only.iterdir()) == []


def test_a_file_in_the_place_of_the_run_is_refused_and_kept(toy: Path) -> None:
    (toy / "run").write_text("mine")
    for arguments in (
        ("run", toy / "pipeline.toml", "--out", toy / "run", "--quiet"),
        ("resume", toy / "run"),
        ("status", toy / "run"),
    ):
        status, out, err = invoke(*arguments)
        assert (status, out, err.count("\n")) == (7, "", 1)
        assert err == f"store-denied: {toy}/run: a file is where a folder must be. Give the path of a folder.\n"
    assert (toy / "run").read_text() == "mine"


def test_a_folder_with_other_files_is_refused_and_kept(toy: Path) -> None:
    (toy / "run").mkdir()
    (toy / "run" / "footprints.parquet").write_text("mine")
    status, out, err = run(toy)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'holds other files, such as "footprints.parquet". Give a new or empty folder as --out.' in err
    assert [path.name for path in (toy / "run").iterdir()] == ["footprints.parquet"]
    assert (toy / "run" / "footprints.parquet").read_text() == "mine"


def test_a_run_is_never_started_twice_nor_resumed_from_another_pipeline(toy: Path, golden: dict[str, str]) -> None:
    assert run(toy)[0] == 0
    status, out, err = run(toy)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{toy}/run: this folder already holds a run. Continue it with eo-batch resume {toy}/run" in err
    for old, new, parts in (
        ("threshold = 0.5", "threshold = 0.6", ["prompts-changed: ", '"bright" >= 0.5 became "bright" >= 0.6']),
        ("resolution = 10", "resolution = 20", ["spec-changed: grid.resolution: 10.0 became 20.0"]),
    ):
        changed = toy / "changed.toml"
        changed.write_text((toy / "pipeline.toml").read_text().replace(old, new))
        for arguments in (
            ("run", changed, "--out", toy / "run", "--quiet"),
            ("resume", toy / "run", "--pipeline", changed, "--quiet"),
        ):
            status, out, err = invoke(*arguments)
            assert (status, out, err.count("\n")) == (8, "", 1)
            assert all(part in err for part in [*parts, "Start a new run"]), err
    assert results(toy / "run") == golden
    assert json.loads(invoke("verify", toy / "run", "--json")[1])["ok"]


def test_a_folder_without_a_run_cannot_be_resumed_and_is_not_made(toy: Path) -> None:
    status, out, err = invoke("resume", toy / "nothing")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"config-invalid: {toy}/nothing: there is no run in this folder. Start one: ")
    assert not (toy / "nothing").exists()


@pytest.mark.parametrize("name", ["../../../../escaped", "a/b", "CON", "\x1b[2Jevil\n2024 forged line", "\u202egnp"])
def test_an_item_id_is_never_a_path_nor_a_terminal_command(toy: Path, golden: dict[str, str], name: str) -> None:
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


def test_an_item_id_in_a_failure_is_escaped(toy: Path) -> None:
    spoil_item(toy, lambda item: item.update(id="\x1b[2Jevil\n2024 forged line"))
    (toy / BAD).write_bytes(b"")
    status, _, err = run(toy)
    assert status == 3
    assert all(line.startswith("failure: ") and r"\x1b[2Jevil\n2024 forged line" in line for line in err.splitlines())
    invoke("status", toy / "run")


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", 503)],
        [Fault("reset")],
        [Fault("short")],
        [Fault("clean-short", after=20_000)],
        [Fault("status", 429, (("Retry-After", "1000000000"),)), Fault("reset"), Fault("short")],
    ],
    ids=["503", "reset", "short", "clean-short", "three"],
)
def test_a_run_over_http_with_passing_faults_has_the_bytes_of_a_local_one(
    toy: Path, golden: dict[str, str], faults: list[Fault]
) -> None:
    with FileServer(toy) as server:
        for name in (BAD, "b1_nir.tif"):
            server.script(name, *faults)
        spoil(toy, "catalog.json", server.url("catalog.json"))
        status, _, err = run(toy)
        assert (status, err) == (0, "")
        assert all(not script for script in server.scripts.values()), "a fault was never met"
    assert results(toy / "run") == golden


def test_a_named_catalog_on_a_private_host_needs_allow_private(toy: Path, golden: dict[str, str]) -> None:
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


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (Fault("status", 503, repeat=True), ["asset-unreachable", "after 4 tries", "HTTP 503 from 127.0.0.1", "eo-batch resume"]),
        (Fault("reset", repeat=True), ["asset-unreachable", "after 4 tries", "reset", "eo-batch resume"]),
        (Fault("html", repeat=True), ["asset-corrupt", "127.0.0.1 sent bytes that are not the file"]),
        (Fault("status", 404, repeat=True), ["asset-not-found", "HTTP 404", 'missing_assets = "skip"']),
        (Fault("status", 403, repeat=True), ["asset-forbidden", "HTTP 403", "credentials"]),
        (Fault("status", 302, (("Location", "file:///etc/passwd"),), repeat=True), ["href-scheme", "files are not allowed"]),
        (Fault("status", 302, (("Location", "http://169.254.169.254/x"),), repeat=True), ["href-private-address", "169.254"]),
    ],
)
def test_a_lasting_fault_fails_its_chunks_by_name(toy: Path, fault: Fault, parts: list[str]) -> None:
    with FileServer(toy) as server:
        server.script(BAD, fault)
        spoil(toy, "catalog.json", server.url("catalog.json"))
        status, _, err = run(toy)
    assert status == 3
    for line in err.splitlines():
        assert line.startswith("failure: chunk t0000/y000")
        assert 'band "green" of item toy/a1: ' in line
        assert all(part in line for part in parts), line
    assert not (toy / "run" / "COMPLETE.json").exists()
