"""What a store promises, on a disk and in a bucket alike; and what only a bucket can do wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers.s3 import KEY, SECRET, S3Server, s3_server

from eo_batch.core.errors import ConfigError, PolicyError, StoreError
from eo_batch.outputs import bucket
from eo_batch.outputs.places import place_of
from eo_batch.outputs.store import Store


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "run" if request.param == "disk" else request.getfixturevalue("prefix"))


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Address of a server on loopback that answers everything alike."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not wait for a store that is gone."""
    monkeypatch.setattr(bucket, "_RETRIES", {"max_retries": 1, "backoff": {"init_backoff": bucket.timedelta(milliseconds=1)}})
    bucket._connect.cache_clear()


def test_what_is_put_is_there_whole(store: Store) -> None:
    assert store.put("a/b.bin", b"first") == hashlib.sha256(b"first").hexdigest()
    store.put("a/b.bin", b"hello")
    assert (store.get("a/b.bin"), store.size("a/b.bin"), store.exists("a/b.bin"), store.exists("a")) == (b"hello", 5, True, False)


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.put("empty", b"")
    assert (store.get("empty"), store.size("empty"), store.exists("empty")) == (b"", 0, True)
    with store.open("empty") as file:
        assert file.read() == b""


def test_what_is_not_there_is_said_alike(store: Store) -> None:
    for ask in (store.get, store.size, store.open):
        with pytest.raises(FileNotFoundError):
            ask("none")
    store.delete("none")
    assert (store.exists("none"), list(store.list("none")), store.folders("none")) == (False, [], ())


def test_create_never_replaces(store: Store) -> None:
    assert [store.create("a", b"first"), store.create("a", b"second"), store.create("a", b"first")] == [True, False, False]
    assert store.get("a") == b"first"
    store.delete("a")
    assert store.create("a", b"third")


@pytest.mark.parametrize("content", ["{}", "the same"])
def test_exactly_one_of_many_creators_wins(store: Store, content: str) -> None:
    wins: list[int] = []
    start = threading.Barrier(8)

    def compete(number: int) -> None:
        start.wait()
        if store.create("lease", content.format(number).encode() * 100_000):
            wins.append(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = wins
    assert store.get("lease") == content.format(winner).encode() * 100_000


def test_lists_are_sorted_by_their_whole_text(store: Store) -> None:
    paths = ["z", "a/1.json", "a/1/x", "a/1", "a-b/c", "a.txt", "ab"]
    for path in paths:
        if path != "a/1":  # a file and a folder of one name cannot be on a disk
            store.put(path, b"")
    assert list(store.list()) == sorted(set(paths) - {"a/1"})
    assert list(store.list("a")) == ["a/1.json", "a/1/x"]
    assert store.folders("a") == ("1",)


def test_more_files_than_one_page_are_listed(prefix: str) -> None:
    store, names = Store(prefix), [f"many/{number:04d}" for number in range(1005)]
    for name in names:
        store.put(name, b"")
    assert list(store.list("many")) == names


def test_a_large_file_is_written_piece_by_piece_and_read_where_asked(store: Store) -> None:
    data = os.urandom(11 << 20)
    with store.writer("large") as target:
        for start in range(0, len(data), 1 << 20):
            target.write(data[start : start + (1 << 20)])
        assert not store.exists("large")
    assert (target.bytes, target.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.get("large") == data
    with store.open("large") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(5 << 20)
        assert (file.read(3 << 20), file.tell()) == (data[5 << 20 : 8 << 20], 8 << 20)


def test_an_error_in_a_block_leaves_nothing(store: Store) -> None:
    def fail(name: str) -> None:
        with getattr(store, name)("x.tif") as target:
            target.write_bytes(b"half") if name == "filling" else target.write(b"half")
            raise KeyError(name)

    for name in ("writer", "filling"):
        with pytest.raises(KeyError):
            fail(name)
    assert list(store.list()) == []


def test_a_library_fills_a_real_file(store: Store) -> None:
    with store.filling("maps/x.tif") as path:
        assert path.suffix == ".tif"
        path.write_bytes(b"picture")
        path.with_name(path.name + ".aux.xml").write_bytes(b"left beside")
    assert (list(store.list()), store.get("maps/x.tif")) == (["maps/x.tif"], b"picture")


def test_parquet_is_read_through_the_store(store: Store) -> None:
    with store.writer("rows.parquet") as target:
        pq.write_table(pa.table({"n": range(100_000)}), target, row_group_size=10_000)
    with store.open("rows.parquet") as file, pq.ParquetFile(file) as parquet:
        assert parquet.read_row_group(7)["n"].to_pylist() == list(range(70_000, 80_000))


def test_a_file_of_another_store_is_adopted(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = place_of(store.where)
    for other in (Store(str(place.beside("other"))), Store(tmp_path / "far"), Store(request.getfixturevalue("prefix") + "/far")):
        other.put("a/b", b"theirs")
        store.put("a/b", b"ours")
        store.adopt("a/b", other)
        assert store.get("a/b") == b"theirs"
        other.put("a/b", b"changed")
        assert store.get("a/b") == b"theirs"
        with pytest.raises(FileNotFoundError):
            store.adopt("a/none", other)


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", "a//../x", ".hidden", "a\\b", "a\0b", ""])
def test_paths_that_leave_the_run_are_refused(store: Store, path: str) -> None:
    for ask in (store.get, store.exists, store.delete, lambda p: store.put(p, b"")):
        with pytest.raises(PolicyError, match="path-escape"):
            ask(path)


def test_a_store_is_found_again_by_what_it_says_of_itself(store: Store) -> None:
    store.put("a", b"x")
    assert Store(store.where).get("a") == b"x"
    assert store.named("a") == f"{store.where}/a"


def test_a_creator_that_never_heard_the_answer_knows_its_own_object(s3: S3Server, prefix: str) -> None:
    store = Store(prefix)
    s3.tell(lose="^PUT .*/lease", times=2)
    assert store.create("lease", b"mine")
    assert s3.tell(left=True) == 0
    assert not store.create("lease", b"mine")


def test_lost_answers_change_nothing_else_either(s3: S3Server, prefix: str) -> None:
    store = Store(prefix)
    s3.tell(lose="", times=3)
    store.put("a", b"x")
    assert s3.tell(left=True) == 0
    s3.tell(lose="", times=2)
    assert (store.get("a"), list(store.list())) == (b"x", ["a"])
    s3.tell(lose="DELETE")
    store.delete("a")
    assert not store.exists("a")


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(prefix: str) -> None:
    store = Store(prefix)
    store.put("a", bytes(3 << 20))
    with store.open("a") as file:
        file.read(10)
        store.put("a", bytes([1]) * (3 << 20))
        with pytest.raises(StoreError, match="store-unreachable"):
            file.read()


def test_wrong_credentials_are_one_clear_error_without_them(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIACANARY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canarysecret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canarytoken")
    store = Store(prefix)
    asks = [
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: store.create("a", b""),
        lambda: list(store.list()),
        lambda: store.exists("a"),
        lambda: store.folders("a"),
        lambda: store.delete("a"),
        lambda: store.open("a"),
        lambda: store.adopt("a", Store(f"{prefix}/other")),
    ]
    for ask in asks:
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.code == "store-denied"
        assert "403" in caught.value.why
        assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__dict__}".lower()


def test_a_bucket_that_is_not_there_is_named(prefix: str) -> None:
    for ask in (lambda s: s.put("a", b""), lambda s: s.get("a"), lambda s: list(s.list())):
        with pytest.raises(StoreError, match=r"store-unreachable: s3://nowhere/run.*NoSuchBucket"):
            ask(Store("s3://nowhere/run"))


def test_a_store_that_is_gone_is_said_to_be(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = Store("s3://maps/run")
        store.put("a", b"x")
        server.stop()
        for ask in (
            lambda: store.put("a", b""),
            lambda: store.create("b", b""),
            lambda: store.get("a"),
            lambda: store.exists("a"),
        ):
            with pytest.raises(StoreError, match="store-unreachable: s3://maps/run/"):
                ask()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (400, "ExpiredToken", "store-denied: .*HTTP 400, ExpiredToken. Check the credentials"),
        (403, "RequestTimeTooSkewed", "store-denied: .*RequestTimeTooSkewed. Set the clock"),
        (301, "PermanentRedirect", "store-unreachable: .*: it is in another region. Check"),
        (503, "SlowDown", "store-unreachable: .*HTTP 503, SlowDown"),
    ],
)
def test_what_a_store_answers_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, impatient: None, status: int, code: str, said: str
) -> None:
    with answering(status, f"<Error><Code>{code}</Code><Message>canarysecret</Message></Error>".encode()) as endpoint:
        for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        with pytest.raises(StoreError, match=said) as caught:
            Store("s3://maps/run").get("a")
    assert "canary" not in str(caught.value)


def test_a_store_that_is_gone_is_asked_again_until_time_is_over(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = {**bucket._RETRIES, "retry_timeout": bucket.timedelta(seconds=5)}
    monkeypatch.setattr(bucket, "_RETRIES", patience)
    bucket._connect.cache_clear()
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = Store("s3://maps/run")
        store.put("a", b"x")
        server.stop()
        began = time.monotonic()
        with pytest.raises(StoreError, match="store-unreachable"):
            store.get("a")
        assert time.monotonic() - began >= 5
    bucket._connect.cache_clear()


def test_folders_that_a_console_made_are_no_files(s3: S3Server, prefix: str) -> None:
    import boto3

    known = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "eu-central-1"}
    client = boto3.client("s3", endpoint_url=s3.endpoint, **known)
    inside = prefix.removeprefix("s3://maps/")
    for key in (f"{inside}/", f"{inside}/receipts/"):
        client.put_object(Bucket="maps", Key=key, Body=b"")
    store = Store(prefix)
    store.put("receipts/a.json", b"{}")
    assert list(store.list("receipts")) == ["receipts/a.json"]
    assert inside not in list(store.list())


@pytest.mark.parametrize("name", ["writer", "filling"])
def test_an_error_of_the_operating_system_in_a_block_is_not_that_of_the_store(prefix: str, name: str) -> None:
    def fail(error: OSError) -> None:
        with getattr(Store(prefix), name)("x.tif"):
            raise error

    with pytest.raises(FileNotFoundError, match="an asset"):
        fail(FileNotFoundError("an asset"))
    with pytest.raises(StoreError, match=r"disk-full: x.tif.*No space left.*TMPDIR"):
        fail(OSError(28, "No space left on device"))


def test_a_pipe_where_a_file_should_be_is_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events")
    assert Store(tmp_path).get("events") == b""


def test_a_large_file_waits_where_there_is_room(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bucket, "_append", full)
    store = Store(prefix)
    with pytest.raises(StoreError, match=r"disk-full.*TMPDIR"), store.writer("large") as target:
        target.write(b"x")
    assert not store.exists("large")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://key:canarysecret@maps/run", "holds no credentials"),
        ("s3://maps/run?X-Amz-Signature=canarysecret", "no query"),
        ("gs://maps/run", "no place for a run"),
        ("https://maps.example/run?sig=canarysecret", "no place for a run"),
        ("file:///tmp/run", "no place for a run"),
        ("s3:/maps/run", "no place for a run"),
        ("s3:///run", "no name of a bucket"),
        ("s3://Maps/run", "no name of a bucket"),
        ("s3://ab/run", "no name of a bucket"),
        ("s3://maps/../run", "plain names"),
        ("s3://maps/a//b", "plain names"),
        ("s3://maps/.hidden", "plain names"),
        ("s3://maps/a\nb", "plain names"),
    ],
)
def test_other_places_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Store(text)
    assert "canary" not in str(caught.value)


def test_a_path_that_lost_a_slash_is_explained() -> None:
    with pytest.raises(ConfigError, match="give it as text"):
        Store(Path("s3://maps/run"))


def test_an_endpoint_that_is_not_encrypted_is_refused_elsewhere(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    with pytest.raises(ConfigError, match="not encrypted"):
        Store(prefix)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    Store(prefix)


@pytest.mark.parametrize(
    ("start", "to", "seen"),
    [
        ("/runs/new", "/runs/old", "../old"),
        ("s3://maps/runs/new", "s3://maps/runs/old", "../old"),
        ("s3://maps/new", "s3://maps/old", "../old"),
        ("s3://maps/new", "s3://other/old", "s3://other/old"),
        ("s3://maps/new", "/runs/old", "/runs/old"),
        ("/runs/new", "s3://maps/old", "s3://maps/old"),
    ],
)
def test_the_way_from_one_place_to_another_leads_back(start: str, to: str, seen: str) -> None:
    assert place_of(to).seen_from(place_of(start)) == seen
    assert place_of(start).at(seen) == place_of(to)


def test_a_way_never_leaves_its_bucket() -> None:
    assert str(place_of("s3://maps/a").at("../../../b")) == "s3://maps/b"
    with pytest.raises(ConfigError):
        place_of("s3://maps/a").at("s3://user:secret@maps/b")


def test_what_is_inside_a_place_is_known() -> None:
    inside = [("s3://maps/run", "s3://maps/run"), ("s3://maps/run", "s3://maps/run/a"), ("/run", "/run/a")]
    outside = [
        ("s3://maps/run", "s3://maps/runs"),
        ("s3://maps/run", "s3://other/run"),
        ("/run", "s3://maps/run"),
        ("/run", "/runs"),
    ]
    assert [place_of(one).holds(place_of(other)) for one, other in (*inside, *outside)] == [True] * 3 + [False] * 4


def test_a_run_on_a_disk_never_loads_the_client_of_buckets() -> None:
    code = "import sys; from eo_batch.outputs.store import Store; Store('.').exists('a'); print('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_two_clients_of_one_bucket_are_one(prefix: str) -> None:
    one, other = Store(prefix), Store(f"{prefix}/other")
    assert one.door._client is other.door._client  # type: ignore[attr-defined]


def test_requests_of_simple_acts_are_as_few_as_can_be(s3: S3Server, prefix: str) -> None:
    store = Store(prefix)
    s3.tell(count=True)
    acts = {
        "put": lambda: store.put("a", b"x"),
        "create": lambda: store.create("b", b"x"),
        "get": lambda: store.get("a"),
        "exists": lambda: store.exists("a"),
        "list": lambda: list(store.list()),
    }
    told = {}
    for name, act in acts.items():
        act()
        told[name] = s3.tell(count=True)
    assert told == {"put": {"PUT": 1}, "create": {"PUT": 1}, "get": {"GET": 1}, "exists": {"HEAD": 1}, "list": {"LIST": 1}}
