"""A loopback server of files that knows ranges, and can cut, stall, refuse and lie."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """One path.

    Attributes:
        cuts: for each request in turn, after how many bytes its body breaks off; None sends it all.
            When used up, bodies are whole.
        ranges: whether `Range` is honoured.
        statuses: for each request in turn, a status to refuse with; 0 serves it.
        pace: seconds to wait before each 64 kB.
        headers: sent along.
        location: redirect there instead.
        head: headers of the answer to HEAD, which then has status 302.

    pip is always served whole and at once: it reads wheels too, to learn what they depend on.
    """

    data: bytes = b""
    cuts: list[int | None] = field(default_factory=list)
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    pace: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    location: str = ""
    head: dict[str, str] | None = None


class FileServer:
    """Serves `files` by path; `requests` holds (method, path, headers) of all that came."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.guard = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._get(self)

            def do_HEAD(self) -> None:
                outer._get(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def ranges(self, path: str) -> list[str]:
        """The Range header of each GET of a path that is not pip's, "" where it had none."""
        return [
            headers.get("range", "")
            for method, asked, headers in self.requests
            if method == "GET"
            and asked == path
            and not headers.get("user-agent", "").startswith("pip/")
        ]

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.guard:
            self.requests.append((handler.command, path, headers))
            served = self.files.get(path)
            pip = headers.get("user-agent", "").startswith("pip/")
            if served is not None and pip:
                served = replace(served, cuts=[], statuses=[], pace=0.0)
            status = served.statuses.pop(0) if served and served.statuses else 0
            cut = None
            if served and not status and handler.command == "GET" and served.cuts:
                cut = served.cuts.pop(0)
        handler.close_connection = True
        if served is None or status:
            self._plain(handler, status or 404, {})
        elif handler.command == "HEAD" and served.head is not None:
            self._plain(handler, 302, served.head)
        elif served.location:
            self._plain(handler, 302, {"Location": served.location})
        else:
            self._body(handler, served, headers.get("range", ""), cut)

    def _plain(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": "0", "Connection": "close", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    def _body(
        self, handler: BaseHTTPRequestHandler, served: Served, span: str, cut: int | None
    ) -> None:
        size, start = len(served.data), 0
        if span and served.ranges:
            start = int(span.removeprefix("bytes=").partition("-")[0])
            if start >= size:
                self._plain(handler, 416, {"Content-Range": f"bytes */{size}"})
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        for name, value in served.headers.items():
            handler.send_header(name, value)
        body = served.data[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if cut is not None:
            body = body[:cut]
        try:
            for at in range(0, len(body), 1 << 16):
                time.sleep(served.pace)
                handler.wfile.write(body[at : at + (1 << 16)])
                handler.wfile.flush()
        except OSError:
            pass
