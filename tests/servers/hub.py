"""A hub on loopback that speaks enough of the Hugging Face protocol for the real huggingface_hub, and misbehaves as told.

`HEAD` and `GET` of `/REPO/resolve/REVISION/FILE` answer with `ETag`, `X-Repo-Commit`, `X-Linked-Etag`, `X-Linked-Size` and byte
ranges. Large files are redirected to a second server with a signed address, as the real hub does with its CDN.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

SIGNATURE = "X-Amz-Signature=5ec7e7"
"""Part of every redirected address; must never be seen by a person."""
PIECE = 1 << 20


@dataclass(frozen=True)
class Fault:
    """One misbehaviour of one answer that carries a body (of a HEAD where `head` is set).

    kind : "status" (answer `code`), "reset" (cut the connection after `after` bytes of the body), "short" (close it there),
        "wrong" (bytes of the right number that are not the file's), "whole" (200 with the whole file whatever was asked),
        "other-range" (206 with another part), "endless" (twice the file, no length announced), "loop" (redirect to itself).
    """

    kind: str
    code: int = 503
    after: int = 0
    head: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    repeat: bool = False


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    range: str
    authorization: str
    agent: str
    is_cdn: bool


@dataclass
class _Published:
    path: Path
    revision: str
    is_large: bool
    etag: str
    announced_bytes: int
    faults: list[Fault] = field(default_factory=list)


class Hub:
    """Hub and CDN at 127.0.0.1; a context manager."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._files: dict[str, _Published] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Hub:
        self._servers = [_QuietServer(("127.0.0.1", 0), _handler(self, is_cdn=is_cdn)) for is_cdn in (False, True)]
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def cdn(self) -> str:
        """Where large files come from: another origin."""
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def publish(self, repo: str, revision: str, filename: str, path: Path, *, is_large: bool = True, etag: str = "") -> None:
        """Serve a local file; large ones come from the CDN and carry their sha256 as etag, small ones git's name of them.

        Parameters
        ----------
        etag : announce this instead.
        """
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if is_large else _blob(file.read())
        key = f"/{repo}/resolve/{revision}/{filename}"
        self._files[key] = _Published(path, revision, is_large, etag or found, path.stat().st_size)

    def script(self, filename: str, *faults: Fault) -> None:
        """Next misbehaviours for the file of this name."""
        with self._lock:
            next(entry for key, entry in self._files.items() if key.endswith(f"/{filename}")).faults = list(faults)

    def announce(self, filename: str, *, size: int) -> None:
        """Announce another size for the file of this name."""
        next(entry for key, entry in self._files.items() if key.endswith(f"/{filename}")).announced_bytes = size

    def bodies_of(self, filename: str) -> list[Asked]:
        """Requests for the bytes of a file that reached the place they come from."""
        with self._lock:
            entry = next((key, entry) for key, entry in self._files.items() if key.endswith(f"/{filename}"))
            return [a for a in self.asked if a.method == "GET" and a.path == entry[0] and a.is_cdn == entry[1].is_large]

    def _note(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)

    def _next_fault(self, entry: _Published, *, is_head: bool) -> Fault | None:
        with self._lock:
            if not entry.faults or entry.faults[0].head != is_head:
                return None
            return entry.faults[0] if entry.faults[0].repeat else entry.faults.pop(0)


def _blob(content: bytes) -> str:
    """What git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        return  # clients that hang up are part of the tests


def _handler(hub: Hub, *, is_cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            headers = {name: self.headers.get(name, "") for name in ("Range", "Authorization", "User-Agent")}
            hub._note(Asked(self.command, path, headers["Range"], headers["Authorization"], headers["User-Agent"], is_cdn))
            entry = hub._files.get(path)
            if entry is None:
                return self._say(404, {"X-Error-Code": "EntryNotFound"})
            is_head = self.command == "HEAD"
            carries_body = not is_head and is_cdn == entry.is_large
            fault = hub._next_fault(entry, is_head=is_head) if is_head or carries_body else None
            if fault and fault.kind == "status":
                return self._say(fault.code, dict(fault.headers))
            if fault and fault.kind == "loop":
                return self._say(302, {"Location": self.path})
            facts = {
                "ETag": f'"{entry.etag}"',
                "X-Repo-Commit": entry.revision,
                "Accept-Ranges": "bytes",
            }
            if entry.is_large and not is_cdn:
                facts |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.announced_bytes)}
                return self._say(302, {**facts, "Location": f"{hub.cdn}{parts.path}?{SIGNATURE}"})
            if is_head:
                return self._say(200, facts, length=entry.announced_bytes)
            return self._body(entry, facts, fault)

        def _say(self, status: int, headers: dict[str, str], *, length: int = 0) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def _body(self, entry: _Published, facts: dict[str, str], fault: Fault | None) -> None:
            size, start = entry.path.stat().st_size, 0
            wanted = self.headers.get("Range", "")
            kind = fault.kind if fault else ""
            if wanted.startswith("bytes=") and kind != "whole":
                start = int(wanted[6:].partition("-")[0])
                if start >= size:
                    return self._say(416, {"Content-Range": f"bytes */{size}"})
            if kind == "other-range":
                start = start // 2
            status = 206 if wanted and kind != "whole" else 200
            if status == 206:
                facts = {**facts, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
            if kind == "endless":
                facts, self.close_connection = {**facts, "Connection": "close"}, True
            self.send_response(status)
            for name, value in facts.items():
                self.send_header(name, value)
            if kind != "endless":
                self.send_header("Content-Length", str(size - start))
            self.end_headers()
            self._send(entry.path, start, size, fault)

        def _send(self, path: Path, start: int, size: int, fault: Fault | None) -> None:
            kind = fault.kind if fault else ""
            stop = min(size, start + fault.after) if fault and kind in ("reset", "short") else size
            with path.open("rb") as file:
                file.seek(start)
                done = start
                while done < stop:
                    piece = file.read(min(PIECE, stop - done))
                    done += len(piece)
                    self.wfile.write(bytes(len(piece)) if kind == "wrong" else piece)
            if kind == "endless":
                self.wfile.write(bytes(size))
            if kind == "reset":
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            if kind == "short":
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    return Handler
