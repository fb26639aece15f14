"""An object store on loopback: moto's S3 in a process of its own, behind a front that counts, refuses and loses answers.

One request is served at a time, so that `If-None-Match` is as atomic as S3 promises it to be.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY, SECRET = "loopback-key", "loopback-secret"
BUCKET = "maps"
REFUSED = "<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message><AWSAccessKeyId>{}</AWSAccessKeyId></Error>"


@dataclass
class S3Server:
    """A running store with one bucket, `maps`."""

    process: subprocess.Popen[str]
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know of it; nothing of another store."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        known = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-central-1"}
        return {**clean, **known, "AWS_ENDPOINT_URL": self.endpoint}

    def tell(self, **what: Any) -> Any:
        """Ask the front: `count=True` for the requests since the last time, `lose=REGEX, times=N` to lose answers to them,
        `forgets=NAME` to leave a header of WSGI's unread until it is told something else."""
        request = urllib.request.Request(f"{self.endpoint}/_front", data=json.dumps(what).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server(port: int = 0) -> Iterator[S3Server]:
    """Start a store, end it with the block; also ends when this process does."""
    command = [sys.executable, str(Path(__file__)), str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield S3Server(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


class Front:
    """WSGI application before moto."""

    def __init__(self, moto: Any) -> None:
        self.moto, self.lock = moto, threading.Lock()
        self.asked: Counter[str] = Counter()
        self.lost: dict[str, int] = {}
        self.forgets = ""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        with self.lock:
            if environ["PATH_INFO"] == "/_front":
                return self.control(environ, start_response)
            length = int(environ.get("CONTENT_LENGTH") or 0)
            kind = self.kind(environ)
            self.asked[kind.split()[0]] += 1
            key = re.search(r"Credential=([^/,]*)/", environ.get("HTTP_AUTHORIZATION", ""))
            if key is None or key[1] != KEY:
                environ["wsgi.input"].read(length)
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [REFUSED.format(key[1] if key else "").encode() if environ["REQUEST_METHOD"] != "HEAD" else b""]
            if self.forgets:
                environ.pop(self.forgets, None)
            answer = list(self.moto(environ, start_response))
            if any(re.search(pattern, kind) and left > 0 for pattern, left in self.lost.items()):
                pattern = next(p for p, left in self.lost.items() if left > 0 and re.search(p, kind))
                self.lost[pattern] -= 1
                with suppress(OSError):
                    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return answer

    @staticmethod
    def kind(environ: dict[str, Any]) -> str:
        """ "LIST maps/x": what a request asks, and of which key."""
        query, method = environ.get("QUERY_STRING", ""), environ["REQUEST_METHOD"]
        name = "LIST" if method == "GET" and "list-type" in query else "DELETE" if "delete" in query else method
        return f"{name} {environ['PATH_INFO'].lstrip('/')} {query}".strip()

    def control(self, environ: dict[str, Any], start_response: Any) -> Any:
        what = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        told: Any = {}
        if "lose" in what:
            self.lost = {what["lose"]: what.get("times", 1)}
        self.forgets = what.get("forgets", "")
        if "count" in what:
            told, self.asked = dict(self.asked), Counter()
        if "left" in what:
            told = sum(self.lost.values())
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(told).encode()]


def main(port: int) -> None:
    """Serve until stdin ends; prints the port."""
    import logging

    from moto.backends import get_backend
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    get_backend("s3")["123456789012"]["aws"].create_bucket(BUCKET, "eu-central-1")
    front = Front(DomainDispatcherApplication(create_backend_app))
    server = None
    while server is None:
        try:
            server = make_server("127.0.0.1", port, front, threaded=True)
        except (OSError, SystemExit):
            time.sleep(0.05)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
