"""Reading over HTTP from a server that misbehaves: the same pixels, or one clear error, never nodata."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clocks import clock_of
from scenes import IMPATIENT, grid_over, item_of, pipeline, read_grid, smooth, step_of, table_of, write_raster
from servers.files import Fault, FileServer

from eo_batch.core.errors import AssetError
from eo_batch.core.records import BandAsset
from eo_batch.core.spec import CatalogSpec
from eo_batch.sources import asset_errors, raster
from eo_batch.sources.access import AssetAccess
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.stack import SceneSource, open_source

PIXELS = smooth(1024, 1024)
BODY = 100_000
"""Beyond the header: ranges that end after this offset hold pixels."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    write_raster(tmp_path / "a.tif", PIXELS)
    with FileServer(tmp_path) as running:
        yield running


def remote_source(server: FileServer, *, query: str = "", missing: str = "fail", retry: Retry = IMPATIENT) -> SceneSource:
    asset = BandAsset("red", server.url("a.tif") + query)
    item = item_of(0, {"red": BandAsset("red", str(server.root / "a.tif"))})
    grid = grid_over(server.root / "a.tif", "EPSG:32633", 10.0, margin=0)
    catalog = CatalogSpec(
        title="test", url=f"{server.base}/catalog.json", kind="static", asset_hosts=["127.0.0.1"], allow_private=True
    )
    spec = pipeline(["red"], missing=missing)
    return open_source(table_of(replace(item, bands={"red": asset})), grid, spec, catalog, retry=retry)


def pixels_of(source: SceneSource) -> np.ndarray:
    return read_grid(source)[0][0]


def error_of(source: SceneSource) -> AssetError:
    with pytest.raises(AssetError) as caught:
        read_grid(source)
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown
    assert "tmp" not in caught.value.why
    return caught.value


ONCE = {
    "500": Fault("status", 500, after=BODY),
    "503": Fault("status", 503, after=BODY),
    "429": Fault("status", 429, (("Retry-After", "0"),), after=BODY),
    "404": Fault("status", 404, after=BODY),
    "reset": Fault("reset", after=BODY),
    "short body": Fault("short", after=BODY),
    "shorter range": Fault("clean-short", after=BODY),
    "login page": Fault("html", after=BODY),
    "whole file instead of a range": Fault("whole", after=BODY),
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fault", ONCE, ids=str)
def test_a_passing_fault_changes_no_pixel(server: FileServer, fault: str, times: int) -> None:
    server.script("a.tif", *[ONCE[fault]] * times)
    assert np.array_equal(pixels_of(remote_source(server)), PIXELS.astype(np.float32))


@pytest.mark.parametrize("faulty_open", [True, False])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("status", 404), "asset-not-found"),
        (Fault("status", 403), "asset-forbidden"),
        (Fault("status", 401), "asset-forbidden"),
        (Fault("status", 500), "asset-unreachable"),
        (Fault("status", 503), "asset-unreachable"),
        (Fault("status", 429), "asset-rate-limited"),
        (Fault("reset"), "asset-unreachable"),
    ],
)
def test_a_lasting_fault_is_one_clear_error(server: FileServer, fault: Fault, code: str, faulty_open: bool) -> None:
    source = remote_source(server, query="?v=SECRET")
    if not faulty_open:
        read_one_chunk(source)
    server.script("a.tif", replace(fault, repeat=True))
    error = error_of(source)
    assert error.code == code
    assert 'band "red" of item test/item0' in str(error)
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize("kind", ["short", "clean-short", "html", "whole"])
def test_lasting_damage_on_the_way_is_corrupt(server: FileServer, kind: str) -> None:
    server.script("a.tif", Fault(kind, after=BODY, repeat=True))
    error = error_of(remote_source(server, query="?v=SECRET"))
    assert error.code == "asset-corrupt"
    assert "after 4 tries" in str(error)


def test_a_truncated_remote_file_is_corrupt(server: FileServer) -> None:
    data = (server.root / "a.tif").read_bytes()
    (server.root / "a.tif").write_bytes(data[: len(data) * 3 // 4])
    assert error_of(remote_source(server)).code == "asset-corrupt"


def test_a_file_that_is_not_there_is_asked_for_once_only(server: FileServer) -> None:
    source = remote_source(server)
    (server.root / "a.tif").unlink()
    assert error_of(source).code == "asset-not-found"
    assert len(server.requests_of("a.tif")) <= 3


def test_a_file_that_cannot_be_used_is_not_asked_for_again(server: FileServer) -> None:
    source = remote_source(server)
    (server.root / "a.tif").write_text("this is no raster")
    first = error_of(source)
    asked = len(server.requests_of("a.tif"))
    assert str(error_of(source)) == str(first)
    assert len(server.requests_of("a.tif")) == asked


def test_a_file_that_could_not_be_reached_is_asked_for_again(server: FileServer) -> None:
    server.script("a.tif", Fault("status", 503, repeat=True))
    source = remote_source(server)
    assert error_of(source).code == "asset-unreachable"
    server.script("a.tif")
    assert np.isfinite(pixels_of(source)).any()


def test_a_scene_that_is_not_there_is_skipped_on_request_only(server: FileServer) -> None:
    source = remote_source(server, missing="skip")
    (server.root / "a.tif").unlink()
    _, valid, givers = read_grid(source)
    assert not valid.any()
    assert not givers.any()


def test_only_not_found_is_skipped(server: FileServer) -> None:
    server.script("a.tif", Fault("status", 500, repeat=True))
    assert error_of(remote_source(server, missing="skip")).code == "asset-unreachable"


def test_nothing_but_the_file_itself_is_asked_for(server: FileServer) -> None:
    pixels_of(remote_source(server))
    assert {asked.path for asked in server.asked} == {"/a.tif"}


def test_a_server_that_never_answers_times_out(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(raster.GDAL_ENV, "GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(asset_errors, "PROBE_TIMEOUT_S", (1.0, 1.0))
    source = remote_source(server, retry=Retry(tries=1, base_s=0.0))
    read_one_chunk(source)
    server.script("a.tif", Fault("hang", repeat=True))
    assert error_of(source).code == "asset-timeout"


def test_waiting_is_as_long_as_the_server_asks_but_bounded() -> None:
    retry = Retry(base_s=1.0, cap_s=60.0)
    assert retry.wait_s(0, 2.0) == 2.0
    assert retry.wait_s(0, 1e9) == 120.0
    assert all(0 <= retry.wait_s(n) <= min(60.0, 2.0**n) for n in range(20))


def test_the_wait_a_server_asks_for_is_seen(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clock_of(server.base, monkeypatch)
    server.script("a.tif", *[Fault("status", 429, (("Retry-After", "7"),))] * 6)
    assert np.array_equal(pixels_of(remote_source(server, retry=Retry(base_s=0.001))), PIXELS.astype(np.float32))
    assert 7.0 in clock.waits


def test_an_expired_signature_is_renewed(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = _signed(monkeypatch, server)
    source = remote_source(server)
    read_one_chunk(source)
    server.tokens = {"SECRET-2"}
    assert np.array_equal(pixels_of(source), PIXELS.astype(np.float32))
    assert tokens() == "SECRET-2"


def test_a_signature_that_stays_refused_ends_after_two_renewals(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = _signed(monkeypatch, server)
    server.tokens = {"another"}
    assert error_of(remote_source(server)).code == "asset-forbidden"
    assert tokens() == "SECRET-3"


def _signed(monkeypatch: pytest.MonkeyPatch, server: FileServer) -> Callable[[], str]:
    """Sign hrefs with a token that `expired` replaces by the next one."""
    number = [1]
    server.tokens = {"SECRET-1"}
    plain = AssetAccess.open_path

    def expired(self: AssetAccess, href: str, path: str = "") -> None:
        number[0] += 1

    monkeypatch.setattr(AssetAccess, "open_path", lambda self, href: f"{plain(self, href)}?sig=SECRET-{number[0]}")
    monkeypatch.setattr(AssetAccess, "expired", expired)
    return lambda: f"SECRET-{number[0]}"


def read_one_chunk(source: SceneSource) -> None:
    """Open the file and read a corner of it."""
    source.read_scene(replace(source.grid, chunk_px=64).chunk(0, 0, 0), step_of(source.items))
