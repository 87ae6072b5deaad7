"""A scripted HTTP server on loopback that sends exactly the bytes it is told to.

    with Server() as server:
        server.on("/v1/models", json_reply({"data": []}))
        server.on("/v1/chat/completions", Reply(body=[event(a), 0.2, event(b)], fault="reset"))
        …                                  # talk to server.url
        assert server.requests[0].json["model"] == "m"
        assert server.wait_hung_up()

A body is a sequence of pieces: bytes or str (sent at once, one HTTP chunk each when chunked), a
number (a pause in seconds) or a `threading.Event` (wait until the test sets it). Each request is
answered by the replies of its path in order; the last one repeats. Faults by name:

    clean_eof               after the body the connection ends in good order, without its terminator
    reset                   after the body the connection is torn down (RST)
    silence                 after the body nothing more comes and the connection stays open
    close_without_response  the request is read, then the connection ends without a byte
    reset_without_response  the same by RST
    slow_first_byte         nothing, not even the status line, for `delay` seconds
    drip_head               the status line and the headers come one byte every `delay` seconds

"refuse" is a server property: `refused_url()` is an address where nothing listens.
"""

from __future__ import annotations

import base64
import contextlib
import json
import select
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

Piece: TypeAlias = bytes | str | float | int | threading.Event
Framing = Literal["chunked", "length", "close", "raw"]
Fault = Literal[
    "clean_eof",
    "reset",
    "silence",
    "close_without_response",
    "reset_without_response",
    "slow_first_byte",
    "drip_head",
]

REASONS = {200: "OK", 307: "Temporary Redirect", 404: "Not Found", 503: "Service Unavailable"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One scripted answer.

    Attributes:
        framing: `chunked`, `length` (content-length), `close` (until EOF) or `raw` (pieces are the
            whole answer, status line included).
        cut: send only this many bytes of the body, then the fault.
        close: close the connection after a whole answer and say so in a header.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[Piece] = ()
    framing: Framing = "chunked"
    fault: Fault | None = None
    cut: int | None = None
    delay: float = 0.5
    close: bool = False

    @property
    def payload(self) -> bytes:
        """All bytes of the body."""
        return b"".join(_bytes(piece) for piece in self.body if isinstance(piece, bytes | str))

    def but(self, **changes: Any) -> Reply:
        """A copy with some attributes changed: `reply.but(cut=17, fault="reset")`."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request as it came. Header names are lower case; `connection` counts from 1."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        """The body, parsed; None when there is none."""
        return json.loads(self.body) if self.body else None


Script: TypeAlias = Reply | Callable[[Seen], Reply]


def json_reply(value: Any, status: int = 200, **more: Any) -> Reply:
    """A whole JSON document with a content length."""
    more.setdefault("framing", "length")
    headers = {"content-type": "application/json", **more.pop("headers", {})}
    return Reply(status=status, headers=headers, body=[json.dumps(value)], **more)


def text_reply(text: str, status: int = 200, **more: Any) -> Reply:
    """A plain text with a content length."""
    more.setdefault("framing", "length")
    headers = {"content-type": "text/plain; charset=utf-8", **more.pop("headers", {})}
    return Reply(status=status, headers=headers, body=[text], **more)


def event(value: Any) -> bytes:
    """One server-sent event; a str goes out as it is (`"[DONE]"`), anything else as JSON."""
    data = value if isinstance(value, str) else json.dumps(value)
    return f"data: {data}\n\n".encode()


def sse(*pieces: Any, **more: Any) -> Reply:
    """A stream of server-sent events: dicts and lists are wrapped as events, the rest is a piece."""
    headers = {"content-type": "text/event-stream", **more.pop("headers", {})}
    body = [event(p) if isinstance(p, dict | list) else p for p in pieces]
    return Reply(headers=headers, body=body, **more)


def ndjson(*pieces: Any, **more: Any) -> Reply:
    """A stream of JSON lines: dicts are written as lines, the rest is a piece."""
    headers = {"content-type": "application/x-ndjson", **more.pop("headers", {})}
    body = [json.dumps(p) + "\n" if isinstance(p, dict) else p for p in pieces]
    return Reply(headers=headers, body=body, **more)


def replay(recording: Path | str | Mapping[str, Any], *, timed: bool = False, **more: Any) -> Reply:
    """The answer of a recording (a file or what it holds), piece by piece as it was recorded.

    `timed` keeps the pauses between the pieces; `more` overrides attributes of the Reply.
    """
    if not isinstance(recording, Mapping):
        recording = json.loads(Path(recording).read_text("utf-8"))
    answer = recording["response"]
    headers = {k.lower(): v for k, v in answer.get("headers", {}).items()}
    chunked = "chunked" in headers.get("transfer-encoding", "")
    framing: Framing = "length" if "content-length" in headers and not chunked else "chunked"
    for hop in ("transfer-encoding", "content-length", "connection", "keep-alive", "date"):
        headers.pop(hop, None)
    body: list[Piece] = []
    clock = 0.0
    for at, text in answer.get("chunks", ()):
        if timed and at > clock:
            body.append((at - clock) / 1000)
            clock = at
        body.append(base64.b64decode(text["b64"]) if isinstance(text, Mapping) else text)
    settings: dict[str, Any] = {
        "status": answer["status"],
        "headers": headers,
        "body": body,
        "framing": framing,
    }
    return Reply(**(settings | more))


def refused_url() -> str:
    """The address of a port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class _HungUpError(Exception):
    """The client left."""


class Server:
    """The server. A context manager; `url` is set from the start.

    Args:
        unix: listen on this path instead of a TCP port.
        tls: serve TLS by this context.
        keep_alive_requests: close a connection, unannounced, after this many requests.
        keep_alive_seconds: close a connection, unannounced, when idle for so long.
        host: the loopback address to listen on.
        port: the port; 0 takes a free one.
    """

    def __init__(
        self,
        *,
        unix: Path | str | None = None,
        tls: ssl.SSLContext | None = None,
        keep_alive_requests: int | None = None,
        keep_alive_seconds: float | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.requests: list[Seen] = []
        self.connections = 0
        self.hung_up: list[Seen] = []
        """Requests whose client left before its answer was whole."""
        self.closed_idle = 0
        """Connections that the server closed between requests."""
        self.default: Script = json_reply({"error": "no such route"}, 404)
        self._scripts: dict[tuple[str | None, str], list[Script]] = {}
        self._tls = tls
        self._most = keep_alive_requests
        self._idle = keep_alive_seconds
        self._change = threading.Condition()
        self._open: set[socket.socket] = set()
        self._stop = threading.Event()
        self._woken, self._wake = socket.socketpair()
        if unix is not None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(unix))
            self.url = f"unix://{unix}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, port))
            self.port: int = self._listener.getsockname()[1]
            name = f"[{host}]" if ":" in host else host
            self.url = f"{'https' if tls else 'http'}://{name}:{self.port}"
        self._listener.listen(1024)
        self._listener.settimeout(1.0)  # whoever knocked may be gone before it is let in
        self._thread = threading.Thread(target=self._accept, name="test-server", daemon=True)
        self._thread.start()

    # -- scripting ----------------------------------------------------------------------

    def on(self, path: str, *replies: Script, method: str | None = None) -> Server:
        """Answer requests to `path` (without its query) with `replies` in order; the last repeats.

        A script may be a function from the request to a Reply. Called again for the same path and
        method, it replaces what was there.
        """
        with self._change:
            self._scripts[method, path] = list(replies)
        return self

    def always(self, reply: Script) -> Server:
        """Answer every request that has no script of its own with `reply`."""
        self.default = reply
        return self

    # -- watching -----------------------------------------------------------------------

    def wait(self, condition: Callable[[Server], bool], timeout: float = 10.0) -> bool:
        """Wait until `condition(server)` holds; False when it does not within `timeout` seconds."""
        with self._change:
            return self._change.wait_for(lambda: condition(self), timeout)

    def wait_hung_up(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Wait until so many clients have left before their answer was whole."""
        return self.wait(lambda server: len(server.hung_up) >= count, timeout)

    def wait_requests(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Wait until so many requests have come."""
        return self.wait(lambda server: len(server.requests) >= count, timeout)

    def paths(self) -> list[str]:
        """`METHOD path` of each request, in order."""
        return [f"{seen.method} {seen.path}" for seen in self.requests]

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        with self._change:
            return len(self._open)

    # -- life ---------------------------------------------------------------------------

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._wake.send(b"!")
        self.drop_connections()
        # Closed under a thread that is about to accept, its number may be another server's by then.
        self._thread.join(5)
        for sock in (self._listener, self._woken, self._wake):
            sock.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def drop_connections(self) -> None:
        """Close every open connection now, as a server does that restarts."""
        with self._change:  # nobody closes one meanwhile, whose number another may get
            for sock in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            self._change.notify_all()

    # -- serving ------------------------------------------------------------------------

    def _accept(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for one in (self._listener, self._woken):
                waiting.register(one, selectors.EVENT_READ)
            while True:
                waiting.select()
                if self._stop.is_set():
                    return
                try:
                    sock, _ = self._listener.accept()
                except OSError:
                    continue
                with self._change:
                    self.connections += 1
                    number = self.connections
                    self._open.add(sock)
                    self._change.notify_all()
                threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()

    def _serve(self, raw: socket.socket, number: int) -> None:
        sock = raw
        try:
            with contextlib.suppress(OSError, _HungUpError):
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                    with self._change:
                        self._open.discard(raw)
                        self._open.add(sock)
                self._talk(sock, number)
        finally:
            with self._change:
                self._open.discard(raw)
                self._open.discard(sock)
                sock.close()
                self._change.notify_all()

    def _talk(self, sock: socket.socket, number: int) -> None:
        reader = sock.makefile("rb")
        served = 0
        while not self._stop.is_set():
            sock.settimeout(self._idle)
            try:
                if reader.peek(1)[:1] == b"\x16":  # a TLS hello: real servers say 400 and close
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
                    return
                seen = _read_request(reader, number)
            except TimeoutError:
                seen = None
                self.closed_idle += 1
            if seen is None:
                return
            sock.settimeout(None)
            with self._change:
                self.requests.append(seen)
                script = self._script(seen)
                self._change.notify_all()
            reply = script(seen) if callable(script) else script
            try:
                keep = self._answer(sock, reply, seen.method)
            except (_HungUpError, OSError):
                if not self._stop.is_set():
                    with self._change:
                        self.hung_up.append(seen)
                        self._change.notify_all()
                return
            served += 1
            if not keep:
                return
            if self._most is not None and served >= self._most:
                self.closed_idle += 1
                return

    def _script(self, seen: Seen) -> Script:
        path = seen.path.partition("?")[0]
        for key in ((seen.method, path), (None, path)):
            replies = self._scripts.get(key)
            if replies:
                return replies.pop(0) if len(replies) > 1 else replies[0]
        return self.default

    def _answer(self, sock: socket.socket, reply: Reply, method: str) -> bool:
        """Send one answer; returns whether the connection may serve another request."""
        if reply.fault == "close_without_response":
            return False
        if reply.fault == "reset_without_response":
            self._reset(sock)
            return False
        if reply.fault == "slow_first_byte":
            self._pause(sock, reply.delay)
        chunked = reply.framing == "chunked"
        if reply.framing != "raw":
            head = _head(reply)
            if reply.fault == "drip_head":
                for byte in head:
                    self._pause(sock, reply.delay)
                    sock.sendall(bytes([byte]))
            else:
                sock.sendall(head)
        left = len(reply.payload) if reply.cut is None else reply.cut
        for piece in () if method == "HEAD" else reply.body:
            if not isinstance(piece, bytes | str):
                self._pause(sock, piece)
                continue
            data = _bytes(piece)[:left]
            left -= len(data)
            if data:
                sock.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            if left <= 0 and reply.cut is not None:
                break
        if reply.fault == "reset":
            self._reset(sock)
            return False
        if reply.fault == "clean_eof":
            return False
        if reply.fault == "silence":
            self._pause(sock, None)
        if chunked and method != "HEAD":
            sock.sendall(b"0\r\n\r\n")
        return reply.framing in ("chunked", "length") and not reply.close

    def _reset(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._change:
            socket.close(sock.detach())

    def _pause(self, sock: socket.socket, wait: float | threading.Event | None) -> None:
        """Wait (None: for ever), watching whether the client leaves or the server is closed."""
        end = time.monotonic() + wait if isinstance(wait, int | float) else None
        while not self._stop.is_set():
            step = 0.02 if end is None else min(0.02, end - time.monotonic())
            if step <= 0:
                return
            if isinstance(wait, threading.Event) and wait.is_set():
                return
            if select.select([sock], [], [], step)[0] and _has_left(sock):
                raise _HungUpError
        raise _HungUpError


def _bytes(piece: bytes | str) -> bytes:
    return piece.encode() if isinstance(piece, str) else piece


def _head(reply: Reply) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    if reply.framing == "chunked":
        lines.append("transfer-encoding: chunked")
    elif reply.framing == "length":
        lines.append(f"content-length: {len(reply.payload)}")
    if reply.framing == "close" or reply.close:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _read_request(reader: Any, number: int) -> Seen | None:
    first = reader.readline(65536)
    if not first:
        return None
    method, path, _ = first.decode("latin-1").split(" ", 2)
    headers = dict(_header_lines(reader))
    length = int(headers.get("content-length", 0))
    body = reader.read(length) if length else b""
    if len(body) < length:
        return None
    return Seen(method=method, path=path, headers=headers, body=body, connection=number)


def _header_lines(reader: Any) -> Iterator[tuple[str, str]]:
    while (line := reader.readline(65536)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        yield name.strip().lower(), value.strip()


def _has_left(sock: socket.socket) -> bool:
    """Readable and nothing to read: the client closed its side (or sent a TLS close alert)."""
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(0.05)
            return sock.recv(1) == b""
        return sock.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            sock.settimeout(None)
