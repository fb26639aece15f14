"""C: pixels over a network that fails. The same pixels, or one clear error for the chunks that need them; never nodata."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import rasterio
from clocks import clock_of
from servers.files import Fault, FileServer
from toy import make_toy, toy_pipeline
from wholerun import (
    BAD,
    failed,
    finishes,
    name_catalog,
    over_http,
    results,
    resume,
    run,
    spoil,
    told,
)

from eo_batch.sources import access, asset_errors, raster
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.gates import gate_of, server_of

OWNER = 'band "green" of item toy/a1: '
BODY = 20_000
"""Beyond the header: ranges that end after this offset hold pixels."""


PATIENCE = "asks for slower reads; now 1 request at once"
"""What is told of a host that refused the only reader."""


@pytest.mark.parametrize(("asked", "waited"), [("2", 2.0), ("1000000000", 120.0), (None, None)])
def test_c01_a_server_that_asks_for_patience_gets_it_within_bounds(
    toy: Path,
    golden: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    asked: str | None,
    waited: float | None,
) -> None:
    monkeypatch.setattr(asset_errors.random, "uniform", lambda low, high: high)  # the longest wait that could be drawn
    headers = () if asked is None else (("Retry-After", asked),)
    with FileServer(toy) as server:
        server.script(BAD, *[Fault("status", 429, headers)] * 4)
        over_http(toy, server)
        clock = clock_of(server.base, monkeypatch)
        status, _, err = run(toy)
    assert (status, err) == (0, f"warning: asset-rate-limited: {server_of(server.base)} {PATIENCE}\n")
    assert results(toy / "run") == golden
    assert clock.waits
    assert (waited in clock.waits) if waited else max(clock.waits) <= 4.0


@pytest.mark.usefixtures("impatient")
def test_c01_a_server_that_refuses_again_and_again_is_told_of_once_and_changes_no_byte(toy: Path, golden: dict[str, str]) -> None:
    with FileServer(toy) as server:
        over_http(toy, server)
        gate = gate_of(server_of(server.base))
        # As the gate counts: GDAL asks for several ranges at once, so numbers of requests are of no read.
        server.choose = lambda path, stop: (
            Fault("status", 429) if path.endswith(".tif") and gate.refused_in_a_row(0) < 2 else None
        )
        status, _, err = run(toy)
        assert gate.refusals > 2
    assert (status, err) == (0, f"warning: asset-rate-limited: {server_of(server.base)} {PATIENCE}\n")
    assert results(toy / "run") == golden


@pytest.mark.usefixtures("impatient")
def test_c01_a_server_that_always_asks_for_patience_fails_the_chunk_with_advice(toy: Path, golden: dict[str, str]) -> None:
    with FileServer(toy) as server:
        server.script(BAD, Fault("status", 429, (("Retry-After", "2"),), repeat=True))
        over_http(toy, server)
        failed(run(toy), toy, OWNER, "asset-rate-limited", "HTTP 429 from 127.0.0.1", "after 4 tries", "requests_at_once")
        server.script(BAD)
        finishes(toy, golden)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("code", "times"), [(500, 1), (502, 1), (503, 3)])
def test_c02_server_errors_that_pass_change_nothing(toy: Path, golden: dict[str, str], code: int, times: int) -> None:
    with FileServer(toy) as server:
        for name in (BAD, "b1_nir.tif"):
            server.script(name, *[Fault("status", code)] * times)
        over_http(toy, server)
        assert run(toy) == (0, (run.__doc__ and "") or "", "") or told(toy)["state"] == "complete"
        assert not any(server.scripts.values()), "a fault was never met"
    assert results(toy / "run") == golden


@pytest.mark.usefixtures("impatient")
def test_c02_server_errors_that_stay_fail_the_chunk_and_the_run_goes_on(tmp_path: Path) -> None:
    make_toy(tmp_path, dates=1, size=360)
    (tmp_path / "pipeline.toml").write_text(toy_pipeline(size=360, prompts=("bright",)))
    with FileServer(tmp_path) as server:
        server.script("b1_nir.tif", Fault("status", 503, repeat=True))
        over_http(tmp_path, server)
        parts = ('band "nir" of item toy/b1: ', "asset-unreachable", "after 4 tries in ", "HTTP 503 from 127.0.0.1")
        failed(run(tmp_path), tmp_path, *parts, "eo-batch resume")
        assert told(tmp_path)["finished"] >= 1, "the west needs nothing of that file"
        server.script("b1_nir.tif")
        assert resume(tmp_path)[0] == 0


@pytest.mark.usefixtures("impatient")
def test_c03_a_file_that_is_not_there_fails_the_chunk_and_is_never_nodata(toy: Path, golden: dict[str, str]) -> None:
    with FileServer(toy) as server:
        server.script(BAD, Fault("status", 404, repeat=True))
        over_http(toy, server)
        failed(run(toy), toy, OWNER, "asset-not-found", "HTTP 404", 'Set missing_assets = "skip" to continue without it.')
        server.script(BAD)
        finishes(toy, golden)


@pytest.mark.usefixtures("impatient")
def test_c03_a_file_that_may_be_missing_is_counted_in_receipts_and_marker(toy: Path) -> None:
    spoil(toy, "[source]", '[source]\nmissing_assets = "skip"')
    with FileServer(toy) as server:
        server.script(BAD, Fault("status", 404, repeat=True))
        over_http(toy, server)
        status, _, err = run(toy)
    assert status == 0, err
    assert "1 scenes were left out" in err
    facts = [json.loads(path.read_bytes())["facts"] for path in (toy / "run" / "receipts").rglob("*.json")]
    assert {name for fact in facts for name in fact["skipped"]} == {"toy/a1"}
    assert all("toy/a1" not in fact["items"] for fact in facts if fact["skipped"])
    assert json.loads((toy / "run" / "COMPLETE.json").read_bytes())["skipped_items"] == ["toy/a1"]


@pytest.mark.usefixtures("impatient")
def test_c04_a_public_file_that_is_forbidden_is_asked_for_once_in_each_chunk(toy: Path, golden: dict[str, str]) -> None:
    with FileServer(toy) as server:
        server.script(BAD, Fault("status", 403, repeat=True))
        over_http(toy, server)
        lines = failed(run(toy), toy, OWNER, "asset-forbidden", "HTTP 403", "(not signed)")
        assert all("tries" not in line for line in lines)
        server.script(BAD)
        finishes(toy, golden)


class Signer:
    """A store that takes one token at a time, and the service that gives it; counts what the store was shown."""

    def __init__(self, toy: Path, store: FileServer, service: FileServer, *, ends_after: int, renews: bool = True) -> None:
        self.keys, self.ends_after, self.renews = service.root / "token" / "account" / "container", ends_after, renews
        self.number, self.shown = 1, 0
        self.keys.parent.mkdir(parents=True)
        self.give("2099-01-01T00:00:00Z")
        store.tokens = self  # type: ignore[assignment]

    def give(self, expiry: str) -> None:
        self.keys.write_text(json.dumps({"token": f"sig=token{self.number}", "msft:expiry": expiry}))

    def __bool__(self) -> bool:
        return True

    def __contains__(self, token: object) -> bool:
        self.shown += 1
        if self.ends_after and self.shown > self.ends_after:
            self.number, self.ends_after = 2, 0
            if self.renews:
                self.give("2099-01-01T00:00:00Z")
        return token == f"token{self.number}"


def sign(toy: Path, store: FileServer, service: FileServer) -> None:
    """Put the scenes into `store` and have a catalog beside `service` sign them."""
    (store.root / "account" / "container").mkdir(parents=True)
    for path in toy.glob("*.tif"):
        path.rename(store.root / "account" / "container" / path.name)
    document = json.loads((toy / "catalog.json").read_text())
    for asset in (asset for item in document["features"] for asset in item["assets"].values()):
        asset["href"] = store.url(f"account/container/{asset['href']}")
    (service.root / "catalog.json").write_text(json.dumps(document))
    name_catalog(toy, service.url("catalog.json"), signing="planetary-computer", sign_url=service.url("token"))


@pytest.fixture
def signed(toy: Path):
    for name in ("store", "keys"):
        (toy / name).mkdir()
    with FileServer(toy / "store") as store, FileServer(toy / "keys") as service:
        sign(toy, store, service)
        yield store, service


@pytest.mark.usefixtures("impatient")
def test_c05_a_signature_that_ends_during_the_run_is_renewed(toy: Path, golden: dict[str, str], signed) -> None:
    signer = Signer(toy, *signed, ends_after=12)
    status, _, err = run(toy)
    assert (status, err) == (0, "")
    assert signer.number == 2, "the signature never ended"
    assert results(toy / "run") == golden
    assert b"token1" not in (toy / "run" / "items.parquet").read_bytes()


@pytest.mark.usefixtures("impatient")
def test_c05_a_signature_that_stays_refused_is_renewed_twice_and_then_told(toy: Path, golden: dict[str, str], signed) -> None:
    signer = Signer(toy, *signed, ends_after=12, renews=False)
    outcome = run(toy)
    failed(outcome, toy, "asset-forbidden", "HTTP 403 from 127.0.0.1 (re-sign failed 2 times)")
    assert "token1" not in outcome[2]
    signer.number = 1
    finishes(toy, golden)


@pytest.mark.usefixtures("impatient")
def test_c06_a_service_that_gives_ended_tokens_is_told_before_any_read(toy: Path, golden: dict[str, str], signed) -> None:
    store, service = signed
    signer = Signer(toy, store, service, ends_after=0)
    signer.give("2020-01-01T00:00:00Z")
    failed(run(toy), toy, "asset-forbidden", "token from signer is already expired")
    assert store.asked == []
    signer.give("2099-01-01T00:00:00Z")
    finishes(toy, golden)


@pytest.mark.parametrize(
    "kind", ["stall", pytest.param("slow", marks=pytest.mark.slow), pytest.param("hang", marks=pytest.mark.slow)]
)
def test_c07_a_slow_server_ends_at_the_deadline_and_other_chunks_are_made(
    toy: Path, golden: dict[str, str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(raster.GDAL_ENV, "GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(asset_errors, "PROBE_TIMEOUT_S", (1.0, 1.0))
    monkeypatch.setattr(Retry.__init__, "__defaults__", (2, 0.0, 0.0))
    with FileServer(toy) as server:
        server.script(BAD, Fault(kind, after=BODY, repeat=True))
        over_http(toy, server)
        failed(run(toy, "--cluster", "local", "--workers", 4), toy, OWNER, "asset-timeout", "after 2 tries")
        server.script(BAD)
        monkeypatch.undo()
        finishes(toy, golden)


DAMAGE = {
    "body shorter than announced": Fault("short", after=BODY),
    "shorter range than asked for": Fault("clean-short", after=BODY),
    "login page instead of a range": Fault("html", after=BODY),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", DAMAGE)
def test_c08_wrong_bytes_that_pass_change_nothing(toy: Path, golden: dict[str, str], fault: str) -> None:
    with FileServer(toy) as server:
        server.script(BAD, *[DAMAGE[fault]] * 2)
        over_http(toy, server)
        status, _, err = run(toy)
        assert (status, err) == (0, "")
    assert results(toy / "run") == golden


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("again", [False, True])
def test_c08_a_whole_file_instead_of_a_range_is_read_as_the_file_it_is(toy: Path, golden: dict[str, str], again: bool) -> None:
    with FileServer(toy) as server:
        server.script(BAD, Fault("whole", after=BODY, repeat=again))
        over_http(toy, server)
        assert run(toy)[::2] == (0, "")
    assert results(toy / "run") == golden


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", DAMAGE)
def test_c08_wrong_bytes_that_stay_are_corrupt_and_never_pixels(toy: Path, golden: dict[str, str], fault: str) -> None:
    with FileServer(toy) as server:
        server.script(BAD, replace(DAMAGE[fault], repeat=True))
        over_http(toy, server)
        failed(run(toy), toy, OWNER, "asset-corrupt", "127.0.0.1 sent bytes that are not the file", "after 4 tries")
        server.script(BAD)
        finishes(toy, golden)


@pytest.mark.usefixtures("impatient")
def test_c09_a_server_that_cuts_each_third_connection_costs_no_byte(toy: Path, golden: dict[str, str]) -> None:
    asked: list[str] = []

    def each_third(path: str, stop: int) -> Fault | None:
        asked.append(path)
        return Fault("reset") if path.endswith(".tif") and len(asked) % 3 == 0 else None

    with FileServer(toy, choose=each_third) as server:
        over_http(toy, server)
        status, _, err = run(toy)
    assert (status, err) == (0, "")
    assert len(asked) > 12
    assert results(toy / "run") == golden


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "faults",
    [
        [Fault("reset")],
        [Fault("clean-short", after=20_000)],
        [Fault("status", 429, (("Retry-After", "1000000000"),)), Fault("reset"), Fault("short")],
    ],
    ids=["reset", "clean-short", "three"],
)
def test_c09_passing_faults_of_several_kinds_cost_no_byte(toy: Path, golden: dict[str, str], faults: list[Fault]) -> None:
    with FileServer(toy) as server:
        for name in (BAD, "b1_nir.tif"):
            server.script(name, *faults)
        over_http(toy, server)
        status, _, err = run(toy)
        assert (status, [line for line in err.splitlines() if PATIENCE not in line]) == (0, [])
        assert not any(server.scripts.values()), "a fault was never met"
    assert results(toy / "run") == golden


def test_c10_a_file_that_is_replaced_during_the_run_fails_its_chunks_from_then_on(
    toy: Path, golden: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.0)  # every read asks which version it is
    finished: list[str] = []

    def replaced(path: str, stop: int) -> Fault | None:
        finished[:] = [each.stem for each in (toy / "run" / "receipts").rglob("*.json")]
        if finished and path == f"/{BAD}":
            server.etags[path] = '"2"'
        return None

    with FileServer(toy, choose=replaced) as server:
        over_http(toy, server)
        failed(run(toy), toy, OWNER, "asset-contract", "the file was replaced during the run (1 became 2)")
        assert told(toy)["finished"] == len(finished) >= 1
        server.choose = lambda path, stop: None
        server.etags.clear()
        finishes(toy, golden)


def corrupt(path: Path) -> None:
    """Overwrite the beginning of a compressed tile."""
    with rasterio.open(path) as raster:
        start = int(raster.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)


def flip(path: Path, seed: int) -> None:
    """Flip 20 bits of compressed pixels: of 40 seeds, the decoder notices 31."""
    with rasterio.open(path) as raster:
        start = int(raster.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
        size = int(raster.get_tag_item("BLOCK_SIZE_0_1", "TIFF", bidx=1))
    data, draw = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(20):
        data[start + draw.randrange(size)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (corrupt, ["asset-corrupt", "could not be read"]),
        (partial(flip, seed=0), ["asset-corrupt", "could not be read"]),
        (truncate, ["asset-corrupt", "could not be read"]),
        (lambda path: path.write_bytes(b""), ["asset-corrupt", "not a readable GeoTIFF"]),
        (lambda path: path.write_text("<html>please log in</html>"), ["asset-corrupt", "not a readable GeoTIFF"]),
        (lambda path: path.unlink(), ["asset-not-found", BAD, 'Set missing_assets = "skip"']),
    ],
    ids=["corrupt", "20 bits", "truncated", "empty", "html", "missing"],
)
def test_c11_a_damaged_file_fails_its_chunks_and_the_mended_one_finishes_the_run(
    toy: Path, golden: dict[str, str], damage: Callable[[Path], object], parts: list[str]
) -> None:
    kept = shutil.copy(toy / BAD, toy / "kept.tif")
    damage(toy / BAD)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as apart:  # this process would keep the spoilt file open
        outcome = apart.submit(run, toy).result()
    failed(outcome, toy, OWNER, *parts)
    Path(kept).replace(toy / BAD)
    finishes(toy, golden)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("file:///etc/passwd", ["href-scheme", "files are not allowed"]),
        ("http://169.254.169.254/x", ["href-private-address", "169.254"]),
        ("/a1_green.tif", ["href-host", "more than 5 redirects"]),
    ],
    ids=["file", "metadata service", "circle"],
)
def test_c13_a_redirect_to_a_forbidden_place_is_not_followed(toy: Path, target: str, parts: list[str]) -> None:
    with FileServer(toy) as server:
        server.script(BAD, Fault("status", 302, (("Location", target),), repeat=True))
        over_http(toy, server)
        failed(run(toy), toy, OWNER, *parts)
