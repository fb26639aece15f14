"""What a dispatch makes of a connection that breaks, of workers without a device, and of tasks that no worker outlives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from workerwork import nothing

from eo_batch.core.errors import ResourceError
from eo_batch.run.executors import dispatch
from eo_batch.run.executors.dispatch import Dispatch, _Flight

NO_GPU = ResourceError("no-gpu", "there is no GPU")


class Future:
    """A task that has ended; asking for its result does as `answer` does."""

    key, status = ("chunk", 1), "finished"

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def release(self) -> None:
        pass

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        pass


class Client:
    """A client whose scheduler has two workers, or does not answer."""

    scheduler = type("Scheduler", (), {"ncores": "ncores", "retire_workers": "retire_workers"})

    loop: SimpleNamespace

    def __init__(self, *, is_there: bool) -> None:
        self.is_there, self.retired = is_there, []

    def sync(self, question: str, *, workers: list[str] | None, **options: Any) -> dict[str, int]:
        if not self.is_there:
            raise CommClosedError
        if question == "retire_workers":
            self.retired += workers or []
        return {"tcp://a": 1, "tcp://b": 1}

    async def gather(self, future: Future, *, asynchronous: bool) -> Any:
        return future.answer()


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    """The event loop of a client, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    Client.loop = SimpleNamespace(asyncio_loop=loop)
    yield
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def begun(*, is_there: bool = True) -> tuple[Dispatch, Client]:
    client = Client(is_there=True)
    started = Dispatch(client, nothing, [], patience_s=1.0, tell=lambda worker, state: None)
    started._look_for_workers()
    client.is_there = is_there
    return started, client


def landed(started: Dispatch, worker: str, answer: Callable[[], Any]) -> list[Any]:
    return list(started._outcome(_Flight((1,), worker=worker, future=Future(answer))))


def broken(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


BREAKS = [CommClosedError(), FutureCancelledError(("chunk", 1), "connection-lost")]


@pytest.mark.parametrize("error", BREAKS)
def test_a_scheduler_that_dies_while_a_result_is_fetched_is_no_failure_of_the_chunk(error: Exception) -> None:
    started, _ = begun(is_there=False)
    with pytest.raises(ResourceError, match="cluster-lost"):
        landed(started, "tcp://a", broken(error))


@pytest.mark.parametrize("error", BREAKS)
def test_a_result_that_is_lost_on_its_way_is_made_again(error: Exception) -> None:
    started, _ = begun()
    assert landed(started, "tcp://a", broken(error)) == []
    assert [flight.task for flight in started._suspects] == [(1,)]


def test_workers_without_a_device_are_not_all_sent_away() -> None:
    started, client = begun()
    assert landed(started, "tcp://a", lambda: NO_GPU) == []
    assert landed(started, "tcp://b", lambda: NO_GPU) == [((1,), NO_GPU)]
    assert client.retired == ["tcp://a"]


def test_a_task_that_outlives_every_worker_is_given_up() -> None:
    started, _ = begun()
    flight = _Flight((1,))
    for _ in range(dispatch.ATTEMPTS):
        started._suspect(flight, was_expected=True)
    *lost, (task, error) = started._lost
    assert [again.attempt for _, again in lost] == list(range(2, 17))
    assert task == (1,)
    assert error.code == "worker-lost"
    assert "begun 16 times" in str(error)


def test_leaving_takes_no_attempt_from_those_that_deaths_are_given() -> None:
    started, _ = begun()
    flight = _Flight((1,))
    for was_expected in (False, True, False, True, False, False):
        started._suspect(flight, was_expected=was_expected)
    *lost, (_, error) = started._lost
    assert [(again.attempt, again.of) for _, again in lost] == [(2, 4), (3, 5), (4, 5), (5, 6), (6, 6)]
    assert "ended 4 workers" in str(error)


def test_the_last_stage_is_kept_of_what_is_in_flight_and_forgotten_with_the_next_attempt() -> None:
    started, client = begun()
    client.submit = lambda *task, **options: Future(nothing)  # type: ignore[attr-defined]
    flight = _Flight((1,))
    started._send(flight, "tcp://a")
    (key,) = started._aboard["tcp://a"]
    for stage in ("read", "score"):
        started._note_stage({"key": list(key), "stage": stage, "worker": "tcp://a"})
    started._note_stage({"key": key, "stage": "trace", "worker": "tcp://b"})  # of another worker
    started._note_stage({"key": ("chunk-of-another-driver", 1), "stage": "trace", "worker": "tcp://a"})
    started._lose("tcp://a", was_expected=False)
    assert started._lost == [((1,), dispatch.Again("tcp://a", "score", 2, 4))]
    started._send(flight, "tcp://b")
    assert flight.stage == ""


@pytest.mark.parametrize(
    "fact",
    [
        *(None, "text", b"\xff", 17, [], {}, {"action": "remove-worker"}, {"action": "remove-worker", "worker": ["tcp://a"]}),
        *({"action": ["add-worker"]}, {"key": "chunk", "stage": "score", "worker": "tcp://a"}, {"key": [[], {}], "stage": 1}),
    ],
)
def test_what_others_write_on_topics_of_a_scheduler_is_passed_over(fact: Any) -> None:
    started, _ = begun()
    started._note_worker(fact)
    started._note_stage(fact)
    assert started._inbox.empty()


def test_a_stage_is_a_text_whoever_tells_of_it() -> None:
    started, client = begun()
    client.submit = lambda *task, **options: Future(nothing)  # type: ignore[attr-defined]
    flight = _Flight((1,))
    started._send(flight, "tcp://a")
    (key,) = started._aboard["tcp://a"]
    started._note_stage({"key": key, "stage": {"of": "another kind"}, "worker": "tcp://a"})
    assert flight.stage == ""
