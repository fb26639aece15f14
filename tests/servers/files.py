"""A file server on loopback that answers byte ranges, and misbehaves as told.

Faults are scripted per file: each request that asks for pixels of the file takes the next fault of its script, until the
script is used up. `repeat` faults stay for ever.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Fault:
    """One misbehaviour.

    kind : "status" (answer `code`), "reset" (cut the connection), "short" (fewer bytes than announced, then close),
        "clean-short" (a shorter range than asked for, announced as such), "html" (206 with a login page of the right
        length), "whole" (200 with the whole file), "hang" (no answer until the server stops), "stall" (half of the body, then
        nothing), "slow" (1 kB in each second).
    after : the fault waits for a range that ends beyond this offset.
    """

    kind: str
    code: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    after: int = 0
    repeat: bool = False


@dataclass
class Asked:
    """One request as the server saw it.

    status : of the answer; 0 as long as, or if, there is none.
    at : monotonic seconds when it came. at_once : requests that waited for their answer then, with this one.
    """

    method: str
    path: str
    query: str
    start: int | None
    status: int
    at: float
    at_once: int


@dataclass
class FileServer:
    """Serves the files below `root` at 127.0.0.1; use as a context manager.

    Parameters
    ----------
    tokens : when not empty, requests must carry `?sig=TOKEN` with one of these, else they get 403.
    choose : asked for the fault of each request that no script has one for, with the path and the end of the range.
    """

    root: Path
    tokens: set[str] = field(default_factory=set)
    scripts: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    etags: dict[str, str] = field(default_factory=dict)
    choose: Callable[[str, int], Fault | None] = lambda path, stop: None

    def __enter__(self) -> FileServer:
        self._lock, self._stop, self._answering = threading.Lock(), threading.Event(), 0
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def base(self) -> str:
        """Address of the root."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def url(self, name: str) -> str:
        """Address of a file."""
        return f"{self.base}/{name}"

    def script(self, name: str, *faults: Fault) -> None:
        """Next answers for `name`."""
        with self._lock:
            self.scripts[f"/{name}"] = list(faults)

    def requests_of(self, name: str) -> list[Asked]:
        """What was asked of `name` so far."""
        with self._lock:
            return [asked for asked in self.asked if asked.path == f"/{name}"]

    def _next_fault(self, path: str, stop: int) -> Fault | None:
        with self._lock:
            script = self.scripts.get(path, [])
            if script and stop >= script[0].after:
                return script[0] if script[0].repeat else script.pop(0)
        return self.choose(path, stop)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        return  # clients that hang up are part of the tests


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(body_wanted=False)

        def do_GET(self) -> None:
            self._answer(body_wanted=True)

        def _answer(self, *, body_wanted: bool) -> None:
            parts = urlsplit(self.path)
            start, stop = self._range()
            with server._lock:  # before it is answered: whoever has the answer may count
                server._answering += 1
                self._is_waiting = True
                self._asked = Asked(self.command, parts.path, parts.query, start, 0, time.monotonic(), server._answering)
                server.asked.append(self._asked)
            try:
                fault = server._next_fault(parts.path, stop or 0)
                self._serve(parts.path, parts.query, start, stop, fault, body_wanted)
            finally:
                self._waits_no_more()

        def _waits_no_more(self) -> None:
            with server._lock:
                server._answering -= self._is_waiting
                self._is_waiting = False

        def _range(self) -> tuple[int | None, int | None]:
            value = self.headers.get("Range", "")
            if not value.startswith("bytes="):
                return None, None
            first, _, last = value[6:].partition("-")
            return int(first), int(last) + 1 if last else None

        def _serve(
            self, path: str, query: str, start: int | None, stop: int | None, fault: Fault | None, body_wanted: bool
        ) -> None:
            if fault and fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            if fault and fault.kind == "hang":
                server._stop.wait(30)
                self.close_connection = True
                return
            if fault and fault.kind == "status":
                return self._send(fault.code, b"", dict(fault.headers), body_wanted)
            if server.tokens and parse_qs(query).get("sig", [""])[0] not in server.tokens:
                return self._send(403, b"denied", {}, body_wanted)
            file = server.root / path.lstrip("/")
            if not file.is_file():
                return self._send(404, b"not here", {}, body_wanted)
            data = file.read_bytes()
            headers = {"Accept-Ranges": "bytes", "ETag": server.etags.get(path, '"1"')}
            if self.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
                return self._send(412, b"", headers, body_wanted)
            if start is None or (fault and fault.kind == "whole"):
                return self._send(200, data, headers, body_wanted)
            stop = min(stop or len(data), len(data))
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body_wanted)
            if fault and fault.kind == "clean-short":
                stop = start + max(1, (stop - start) // 2)
            body = data[start:stop]
            if fault and fault.kind == "html":
                body = (b"<html><body>please log in</body></html>" * (len(body) // 39 + 1))[: len(body)]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self._send(206, body, headers, body_wanted, kind=fault.kind if fault else "")

        def _send(self, status: int, body: bytes, headers: dict[str, str], body_wanted: bool, *, kind: str = "") -> None:
            self._asked.status = status
            self._waits_no_more()  # before its last byte: whoever has the answer may ask again
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body_wanted and self.command != "HEAD":
                self._body(body, kind)
            if kind in ("short", "stall"):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def _body(self, body: bytes, kind: str) -> None:
            if kind == "slow":
                for start in range(0, len(body), 1000):
                    self.wfile.write(body[start : start + 1000])
                    if server._stop.wait(1.0):
                        return
            else:
                self.wfile.write(body[: len(body) // 2] if kind in ("short", "stall") else body)
            if kind == "stall":
                self.wfile.flush()
                server._stop.wait(30)

    return Handler
