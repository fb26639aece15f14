"""Hosts that ask for slower reads: all reads of this process from that host wait and are fewer, and are as many again later."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from clocks import Clock, MustWait
from numpy.typing import NDArray
from scenes import IMPATIENT, grid_over, smooth, write_raster
from servers.files import Fault, FileServer

from eo_batch.core.errors import AssetError
from eo_batch.core.grid import Span
from eo_batch.core.records import BandAsset
from eo_batch.core.spec import CatalogSpec
from eo_batch.sources.access import AssetAccess
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.gates import HostGate, HostRefuses, SlowHosts, Turns, gate_of, server_of
from eo_batch.sources.reader import AssetReader, BandRead

BLOCK = 256
SIDE = 8
PIXELS = smooth(SIDE * BLOCK, SIDE * BLOCK)
THREADS = 8


def enter(gate: HostGate, at_once: float = 8, *, since: int = 0, tries: int = 99) -> int:
    return gate.enter(at_once, since=since, tries=tries)


def fill(gate: HostGate, at_once: float = 8) -> list[int]:
    """All turns that are to be had."""
    turns = []
    while True:
        try:
            turns.append(enter(gate, at_once))
        except MustWait:
            return turns


def answer(gate: HostGate, turns: list[int], at_once: float = 8) -> None:
    for entered in turns:
        gate.leave(entered, at_once, is_answered=True)


def test_a_host_that_never_complains_is_asked_by_as_many_as_are_allowed() -> None:
    gate = Clock().gate()
    for _ in range(3):
        turns = fill(gate)
        assert len(turns) == 8
        answer(gate, turns)
    assert gate.limit == math.inf


def test_a_refusal_halves_what_was_asked_at_once_and_never_ends_at_none() -> None:
    gate, sizes = Clock().gate(), []
    for _ in range(5):
        turns = fill(gate)
        sizes.append(len(turns))
        assert gate.refuse(turns[0], 0.0)
        for entered in turns:
            gate.leave(entered, 8, is_answered=False)
    assert sizes == [8, 4, 2, 1, 1]


def test_a_lone_reader_that_is_refused_counts_as_one() -> None:
    gate = Clock().gate()
    gate.refuse(enter(gate), 0.0)
    assert gate.limit == 1


def test_refusals_of_what_was_asked_before_the_first_one_are_one_refusal() -> None:
    gate = Clock().gate()
    turns = fill(gate)
    assert [gate.refuse(entered, 1.0) for entered in turns] == [True] + [False] * 7
    assert (gate.limit, gate.refusals) == (4, 1)


def test_nobody_enters_before_the_longest_time_that_was_asked_for() -> None:
    clock = Clock()
    gate = clock.gate()
    first, second = enter(gate), enter(gate)
    gate.refuse(first, 7.0)
    gate.refuse(second, 3.0)
    answer(gate, [first, second])
    enter(gate)
    assert clock.waits == [7.0]


def test_answers_let_one_more_in_until_all_are_in_again() -> None:
    gate = Clock().gate()
    turns = fill(gate)
    gate.refuse(turns[0], 0.0)
    answer(gate, turns)  # they were asked before the refusal and prove nothing
    sizes = []
    while gate.limit < math.inf:
        turns = fill(gate)
        sizes.append(len(turns))
        answer(gate, turns)
    assert sizes == [4, 5, 6, 7]
    assert len(fill(gate)) == 8


def test_a_limit_that_nobody_reaches_does_not_rise() -> None:
    gate = Clock().gate()
    turns = fill(gate)
    gate.refuse(turns[0], 0.0)
    answer(gate, turns)
    for _ in range(100):
        answer(gate, [enter(gate)])
    assert gate.limit == 4


def test_who_looks_as_the_time_of_patience_ends_enters() -> None:
    clock = Clock()
    gate = clock.gate()
    gate.refuse(enter(gate), 1.0)
    answer(gate, [0])
    looks = iter([0.999, 1.001, 1.002])
    gate.now = lambda: next(looks, 2.0)
    enter(gate)  # nobody asks, so nobody would wake whoever waits without a time


def test_who_has_read_lets_those_who_wait_go_first() -> None:
    came, is_waiting = list[str](), threading.Event()

    def wait(changed: threading.Condition, seconds: float | None) -> None:
        is_waiting.set()
        changed.wait(seconds)

    def read(gate: HostGate, name: str) -> None:
        entered = enter(gate, 1)
        came.append(name)
        gate.leave(entered, 1, is_answered=True)

    gate = HostGate("example.org", wait=wait)
    entered = enter(gate, 1)
    other = threading.Thread(target=read, args=(gate, "other"))
    other.start()
    assert is_waiting.wait(30)
    gate.leave(entered, 1, is_answered=True)
    read(gate, "again")
    other.join()
    assert came == ["other", "again"]


def test_who_waits_gives_up_with_a_host_that_refuses_all() -> None:
    clock = Clock()
    gate = clock.gate()
    for _ in range(3):
        entered = enter(gate)
        gate.refuse(entered, 120.0)
        gate.leave(entered, 8, is_answered=False)
    gate.refuse(enter(gate, since=0, tries=4), 120.0)
    with pytest.raises(HostRefuses):
        enter(gate, since=0, tries=4)
    assert clock.waits == [120.0] * 3


def test_an_answer_to_anybody_gives_new_hope() -> None:
    gate = Clock().gate()
    for is_answered in (False, False, True, False, False):
        entered = enter(gate)
        if not is_answered:
            gate.refuse(entered, 1.0)
        gate.leave(entered, 8, is_answered=is_answered)
    enter(gate, since=0, tries=3)


def test_who_comes_while_the_host_wants_no_reads_waits_no_longer_than_who_was_refused() -> None:
    clock = Clock()
    gate = clock.gate()
    gate.refuse(enter(gate), 120.0)
    gate.leave(0, 8, is_answered=False)
    began, late = clock.time, Turns(gate, at_once=8, tries=4, tell=lambda host, at_once: None)

    def ask() -> None:
        with late:
            late.refuse(120.0)
            raise InterruptedError

    for _ in range(3):
        with pytest.raises(InterruptedError):
            ask()
    with pytest.raises(HostRefuses):
        ask()
    assert clock.time - began == 3 * 120.0


def test_an_error_in_a_turn_ends_the_turn() -> None:
    gate = Clock().gate()
    with pytest.raises(ZeroDivisionError), Turns(gate, at_once=1, tries=4, tell=lambda host, at_once: None):
        raise ZeroDivisionError
    with Turns(gate, at_once=1, tries=4, tell=lambda host, at_once: None):
        pass


def test_files_of_this_machine_have_turns_without_end() -> None:
    gate = gate_of(server_of("/data/a.tif"))
    with (
        Turns(gate, at_once=1, tries=1, tell=lambda host, at_once: None),
        Turns(gate, at_once=1, tries=1, tell=lambda host, at_once: None),
    ):
        assert gate.host == ""


def test_each_number_is_told_once() -> None:
    slow = SlowHosts()
    for at_once in (4, 2, 4, 2, 1):
        slow.note("example.org", at_once)
    told = ("4 requests", "2 requests", "1 request")
    assert slow.take() == tuple(f"asset-rate-limited: example.org asks for slower reads; now {text} at once" for text in told)
    pickle.loads(pickle.dumps(slow)).note("example.org", 1)
    assert slow.take() == ()


@pytest.mark.parametrize(
    ("href", "host"),
    [
        ("https://User:SECRET@Data.Example.org/a.tif?sig=SECRET", "data.example.org"),
        ("http://127.0.0.1:81/a.tif", "127.0.0.1:81"),
        ("s3://bucket/a.tif", "s3 bucket"),
        ("/data/a.tif", ""),
        ("http://[::1/a.tif", ""),
    ],
)
def test_a_host_is_known_by_its_name_and_port(href: str, host: str) -> None:
    assert server_of(href) == host


def file_of(thread: int) -> str:
    """Each thread reads its own: GDAL asks for a file that two open at once while it keeps Python, and so the server, waiting."""
    return f"{thread}.tif"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    write_raster(tmp_path / "0.tif", PIXELS, compress="none")
    for number in range(1, THREADS):
        (tmp_path / file_of(number)).hardlink_to(tmp_path / "0.tif")
    with FileServer(tmp_path) as running:
        yield running


def reader_of(server: FileServer, *, retry: Retry = IMPATIENT, at_once: int = 8) -> AssetReader:
    catalog = CatalogSpec(
        title="test",
        url=f"{server.base}/catalog.json",
        kind="static",
        asset_hosts=["127.0.0.1", "localhost"],
        allow_private=True,
    )
    grid = grid_over(server.root / "0.tif", "EPSG:32633", 10.0, margin=0)
    return AssetReader(server.base, AssetAccess(catalog), grid, at_once, retry)


def read_block(reader: AssetReader, href: str, number: int) -> NDArray[np.float32]:
    """Block `number` of a file, which one request gets."""
    y, x = (reader.grid.rows.start, reader.grid.cols.start)
    row, col = y + number // SIDE * BLOCK, x + number % SIDE * BLOCK
    out = np.zeros((BLOCK, BLOCK), np.float32)
    reader.read(BandRead(BandAsset("red", href), "the file"), Span(row, row + BLOCK), Span(col, col + BLOCK), out=out)
    return out


def is_expected(found: NDArray[np.float32], number: int) -> bool:
    row, col = number // SIDE * BLOCK, number % SIDE * BLOCK
    return np.array_equal(found, PIXELS[row : row + BLOCK, col : col + BLOCK].astype(np.float32))


def gate_at(server: FileServer) -> HostGate:
    return gate_of(server_of(server.base))


def refused(server: FileServer, seconds: int) -> None:
    """Have a read be asked for patience, and give up at once."""
    server.script("0.tif", Fault("status", 429, (("Retry-After", str(seconds)),), repeat=True))
    with pytest.raises(AssetError, match="asset-rate-limited"):
        read_block(reader_of(server, retry=Retry(tries=1)), server.url("0.tif"), 0)
    server.script("0.tif")


def test_nobody_asks_a_host_before_the_time_that_it_told_one_reader(server: FileServer) -> None:
    refused(server, 1)
    before, reader = len(server.asked), reader_of(server)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: read_block(reader, server.url(file_of(number)), number), range(4)))
    assert all(is_expected(block, number) for number, block in enumerate(found))
    assert min(asked.at for asked in server.asked[before:]) - server.asked[before - 1].at >= 1.0


def test_another_host_is_read_from_meanwhile(server: FileServer) -> None:
    refused(server, 100)
    elsewhere = server.url("1.tif").replace("127.0.0.1", "localhost")
    assert is_expected(read_block(reader_of(server), elsewhere, 3), 3)
    assert gate_at(server).is_closed, "the other host was not refusing any more"
    assert gate_of(server_of(elsewhere)).limit == math.inf


def test_a_503_that_asks_for_patience_is_a_refusal_and_one_that_does_not_is_none(server: FileServer) -> None:
    reader = reader_of(server, retry=Retry(tries=1))
    for thread, headers, refusals in ((0, (), 0), (1, (("Retry-After", "1"),), 1)):
        server.script(file_of(thread), Fault("status", 503, headers, repeat=True))
        with pytest.raises(AssetError, match="asset-unreachable"):
            read_block(reader, server.url(file_of(thread)), 0)
        assert gate_at(server).refusals == refusals


class Crowd:
    """Has requests wait at the server until as many are there as the host's gate lets through, at most eight.

    The first eight are refused, with what is asked about why; when eight are there again, the crowd is `over`.
    """

    def __init__(self, gate: Callable[[], HostGate]) -> None:
        self.gate, self.over = gate, threading.Event()
        self.sizes, self.refused = list[int](), set[str]()
        self._here, self._group, self._changed = 0, 0, threading.Condition()

    def __call__(self, path: str, stop: int) -> Fault | None:
        if stop <= 1:  # only asks whether the file is there, and then what the server says of it
            is_refused = path in self.refused
            if stop:
                self.refused.discard(path)
            return Fault("status", 429) if is_refused else None
        with self._changed:
            group = self._group
            if not group:
                self.refused.add(path)
            self._here += 1
            if self._here >= min(THREADS, self.gate().limit):
                self.sizes.append(self._here)
                if self._here == THREADS and group:
                    self.over.set()
                self._here, self._group = 0, group + 1
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._group > group or self.over.is_set(), timeout=30)
        return None if group else Fault("status", 429)


def test_a_refusal_halves_the_requests_at_the_server_and_answers_bring_them_back(server: FileServer) -> None:
    reader = reader_of(server)
    for thread in range(THREADS):
        reader.access.resolve(server.url(file_of(thread)))  # where addresses lead is known from here on
    before, crowd = len(server.asked), Crowd(lambda: gate_at(server))
    server.choose = crowd

    def read_on(thread: int) -> bool:
        is_good, number = True, 0
        while not crowd.over.is_set():
            is_good &= is_expected(read_block(reader, server.url(file_of(thread)), number), number)
            number = (number + 1) % (SIDE * SIDE)
        return is_good

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(read_on, range(THREADS)))
    assert crowd.sizes[:2] == [8, 4]
    assert crowd.sizes == [8, *sorted(crowd.sizes[1:])]
    assert crowd.sizes[-1] == 8
    assert max(asked.at_once for asked in server.asked[before:]) == 8
    assert reader.slow_hosts.take() == (
        f"asset-rate-limited: {server_of(server.base)} asks for slower reads; now 4 requests at once",
    )


def test_a_host_that_refuses_often_gives_the_same_pixels(server: FileServer) -> None:
    reader, asked = reader_of(server, retry=Retry(tries=50, base_s=0.0, cap_s=0.0)), count(1)
    server.choose = lambda path, stop: Fault("status", 429) if next(asked) // 10 % 4 == 0 else None

    def is_good(thread: int) -> bool:
        numbers = range(thread, SIDE * SIDE, THREADS)
        return all(is_expected(read_block(reader, server.url(file_of(thread)), number), number) for number in numbers)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(is_good, range(THREADS)))
    assert gate_at(server).refusals
