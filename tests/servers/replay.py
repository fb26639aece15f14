"""A scripted HTTP server on loopback: recorded sessions played again, and faults on demand."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """One answer: a JSON document or bytes, and how it is sent.

    Parameters
    ----------
    cut : bytes of the body that are sent before the connection is closed, or None for all.
    reset : close the connection without any answer.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False


@dataclass
class Replay:
    """Answers of a server by path, in order; the last one of a path is given for ever.

    Parameters
    ----------
    replies : path -> replies, or a function of (method, path with query, body) -> Reply.
    seen : (method, path with query, body) of all requests.
    """

    replies: Mapping[str, Sequence[Reply]] | Callable[[str, str, bytes], Reply]
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    url: str = ""
    _count: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: bytes) -> Reply:
        with self._lock:
            self.seen.append((method, path, body))
            if callable(self.replies):
                return self.replies(method, path, body)
            key = urlsplit(path).path.rstrip("/") or "/"
            listed = self.replies.get(f"{method} {key}", self.replies.get(key))
            if not listed:
                return Reply({"code": "NotFound"}, 404)
            number = self._count.get(key, 0)
            self._count[key] = number + 1
            return listed[min(number, len(listed) - 1)]


@contextmanager
def serve_replies(replies: Mapping[str, Sequence[Reply]] | Callable[[str, str, bytes], Reply]) -> Iterator[Replay]:
    """A running server; `{url}` in JSON bodies and headers is its own address."""
    replay = Replay(replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply("GET")

        def do_POST(self) -> None:
            self._reply("POST")

        def _reply(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = replay.answer(method, self.path, body)
            if reply.reset:
                self.close_connection = True
                self.connection.close()
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            data = data.replace(b"{url}", replay.url.encode())
            self.send_response_only(reply.status)
            headers = {
                "Date": self.date_time_string(),
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **reply.headers,
            }
            for name, value in headers.items():
                self.send_header(name, value.replace("{url}", replay.url))
            self.end_headers()
            self.wfile.write(data if reply.cut is None else data[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            return

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ValueError, OSError):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    replay.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield replay
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def recorded(path: Path) -> tuple[dict[str, list[Reply]], list[dict[str, Any]]]:
    """Replies of a recorded session by method and path, hosts replaced by `{url}`, and the recorded exchanges."""
    exchanges = json.loads(gzip.decompress(path.read_bytes()))
    replies: dict[str, list[Reply]] = {}
    for exchange in exchanges:
        request, response = exchange["request"], exchange["response"]
        parts = urlsplit(request["uri"])
        body = response["body"] if isinstance(response["body"], str) else json.dumps(response["body"])
        body = body.replace(f"{parts.scheme}://{parts.netloc}", "{url}")
        key = f"{request['method']} {parts.path.rstrip('/') or '/'}"
        replies.setdefault(key, []).append(Reply(body.encode(), response["status"]))
    return replies, exchanges
