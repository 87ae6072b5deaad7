"""HTTP/1.1 answers read off a blocking socket, under a deadline that covers every single read.

The standard library's reader sets one timeout and then makes as many reads as a line or a chunk
takes, so a server that drips bytes is never late; and it hands out one HTTP chunk a call. Here each
`recv` gets what is left of the budget, and all chunks that arrived together come out together.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from enginekit.drivers._errors import EndedEarlyError, NotHTTPError

_READ: Final = 65536
_MAX_LINE: Final = 65536
_MAX_HEADERS: Final = 256

_UNTIL_EOF = -1


class Wire:
    """Bytes off one connection, buffered.

    A *wait* begins with `begin(budget)`; whatever is read after it must come within `budget`
    seconds of the first read that blocks.
    """

    __slots__ = ("_budget", "_buffer", "_deadline", "_fresh", "_position", "_set", "came", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.came = False
        """Whether any byte of the present answer has come."""
        self._buffer = b""
        self._position = 0
        self._budget = 0.0
        self._deadline = 0.0
        self._fresh = True
        self._set: float | None = None

    def begin(self, budget: float) -> None:
        """Start a wait of `budget` seconds."""
        self._budget = budget
        self._fresh = True

    def until(self, deadline: float) -> None:
        """Start a wait that ends at a moment of `time.monotonic()`."""
        self._deadline = deadline
        self._fresh = False

    @property
    def pending(self) -> bool:
        """Whether bytes lie in the buffer."""
        return self._position < len(self._buffer)

    def send(self, data: bytes) -> None:
        """Send all, within the present wait."""
        self._arm()
        self.sock.sendall(data)

    def fill(self) -> bool:
        """One read into the buffer; False at the end of the connection. Raises TimeoutError."""
        self._arm()
        data = self.sock.recv(_READ)
        if not data:
            return False
        self.came = True
        if self._position < len(self._buffer):
            data = self._buffer[self._position :] + data
        self._buffer = data
        self._position = 0
        return True

    def _arm(self) -> None:
        # The timeout stays as it is while each wait is answered by its first read: no system call.
        if self._fresh:
            self._fresh = False
            timeout = self._budget
            self._deadline = time.monotonic() + timeout
        else:
            timeout = self._deadline - time.monotonic()
            if timeout <= 0:
                raise TimeoutError
        if timeout != self._set:
            self.sock.settimeout(timeout)
            self._set = timeout

    def line(self) -> bytes | None:
        """A line of the buffer without its line end, or None when none is complete."""
        end = self._buffer.find(b"\n", self._position)
        if end < 0:
            if len(self._buffer) - self._position > _MAX_LINE:
                raise NotHTTPError("a line of the answer's head is longer than 64 KiB")
            return None
        start, self._position = self._position, end + 1
        return self._buffer[start:end].removesuffix(b"\r")

    def peek(self) -> tuple[bytes, int]:
        """The buffer and where its unread part begins."""
        return self._buffer, self._position

    def skip_to(self, position: int) -> None:
        """Count what comes before `position` in the buffer as read."""
        self._position = position

    def take(self, most: int) -> bytes:
        """At most `most` bytes of the buffer; all of it when negative."""
        start = self._position
        if start == 0 and (most < 0 or most >= len(self._buffer)):
            data, self._buffer = self._buffer, b""
            return data
        end = len(self._buffer) if most < 0 else min(start + most, len(self._buffer))
        self._position = end
        return self._buffer[start:end]


class Incoming:
    """One answer: its head once `read_head` has run, its body piece by piece by `some`.

    `over` says that the body is complete; `reusable` that the connection may serve another request.
    """

    __slots__ = ("_chunked", "_left", "_state", "headers", "keep", "over", "status", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.status = 0
        self.headers: dict[str, str] = {}
        self.keep = False
        self.over = False
        self._chunked = False
        self._left = 0
        self._state = 0

    @property
    def reusable(self) -> bool:
        """The body is complete, the server keeps the connection, and nothing unasked came."""
        return self.over and self.keep and not self.wire.pending

    # -- head ---------------------------------------------------------------------------

    def read_head(self, method: str) -> None:
        """Read status line and headers, skipping 1xx. Raises NotHTTPError, EndedEarlyError."""
        while True:
            version = self._status_line()
            self._header_lines()
            if not 100 <= self.status < 200:
                break
        headers = self.headers
        connection = headers.get("connection", "").lower()
        self.keep = "close" not in connection and (
            version != b"HTTP/1.0" or "keep-alive" in connection
        )
        coding = headers.get("transfer-encoding", "")
        if method == "HEAD" or self.status in (204, 304):
            self._left, self.over = 0, True
        elif coding:
            if coding.lower() != "chunked":
                raise NotHTTPError(f"transfer-encoding {coding!r}")
            self._chunked = True
        elif (length := headers.get("content-length")) is not None:
            lengths = {part.strip() for part in length.split(",")}
            first = lengths.pop()
            if lengths or not first.isdecimal():
                raise NotHTTPError(f"content-length {length!r}")
            self._left = int(first)
            self.over = self._left == 0
        else:
            self._left = _UNTIL_EOF
            self.keep = False

    def _line(self) -> bytes:
        while (line := self.wire.line()) is None:
            if not self.wire.fill():
                raise EndedEarlyError(
                    "the connection ended inside the answer's head"
                    if self.wire.came
                    else "the connection ended without an answer"
                )
        return line

    def _status_line(self) -> bytes:
        line = self._line()
        version, _, rest = line.partition(b" ")
        code = rest.lstrip()[:3]
        if not version.startswith(b"HTTP/1.") or len(code) != 3 or not code.isdigit():
            raise NotHTTPError(f"the answer begins with {line[:80].decode('latin-1')!r}")
        self.status = int(code)
        return version

    def _header_lines(self) -> None:
        headers: dict[str, str] = {}
        last = ""
        for _ in range(_MAX_HEADERS):
            line = self._line().decode("latin-1")
            if not line:
                self.headers = headers
                return
            if line[0] in " \t" and last:
                headers[last] += " " + line.strip()
                continue
            name, colon, value = line.partition(":")
            if not colon:
                raise NotHTTPError(f"{line[:80]!r} is not a header")
            last, value = name.strip().lower(), value.strip()
            headers[last] = f"{headers[last]}, {value}" if last in headers else value
        raise NotHTTPError(f"more than {_MAX_HEADERS} headers")

    # -- body ---------------------------------------------------------------------------

    def some(self) -> bytes:
        """The next bytes of the body, as many as are there; b"" once it is complete.

        Raises TimeoutError, OSError, EndedEarlyError (cut) and NotHTTPError (bad chunk).
        """
        if self.over:
            return b""
        if self._chunked:
            return self._some_chunks()
        wire = self.wire
        if not wire.pending and not wire.fill():
            if self._left != _UNTIL_EOF:
                raise EndedEarlyError(f"the connection ended {self._left} bytes before the body")
            self.over = True
            return b""
        data = wire.take(self._left)
        if self._left != _UNTIL_EOF:
            self._left -= len(data)
            self.over = self._left == 0
        return data

    def _some_chunks(self) -> bytes:
        """Data of every chunk in the buffer; blocks only while there is none.

        States: 0 a size line is next, 1 inside a chunk, 2 the line end after one, 3 trailers.
        """
        wire = self.wire
        out: list[bytes] = []
        while True:
            self._state = self._take_chunks(out)
            if out or self.over:
                break
            if not wire.fill():
                raise EndedEarlyError("the connection ended inside a chunked body")
        return b"".join(out) if len(out) != 1 else out[0]

    def _take_chunks(self, out: list[bytes]) -> int:
        """Move the chunks of the buffer to `out`; returns the state at the buffer's end."""
        wire = self.wire
        buffer, at = wire.peek()
        end = len(buffer)
        state, left = self._state, self._left
        while True:
            if state == 1:
                stop = at + left
                if stop > end:
                    if at < end:
                        out.append(buffer[at:])
                        left = stop - end
                        at = end
                    break
                out.append(buffer[at:stop])
                if buffer.startswith(b"\r\n", stop):
                    at = stop + 2
                    state = 0
                else:
                    at = stop
                    state = 2
            line_end = buffer.find(b"\n", at)
            if line_end < 0:
                if end - at > _MAX_LINE:
                    raise NotHTTPError("a line between chunks is longer than 64 KiB")
                break
            line = buffer[at:line_end]
            at = line_end + 1
            if state == 0:
                left = _chunk_size(line)
                state = 1 if left else 3
            elif state == 2:
                if line not in (b"\r", b""):
                    raise NotHTTPError("a chunk is longer than it says")
                state = 0
            elif line in (b"\r", b""):
                self.over = True
                break
        self._left = left
        wire.skip_to(at)
        return state

    def ended_within(self, seconds: float) -> bool:
        """Whether the body's end comes within `seconds` and leaves the connection reusable."""
        self.wire.begin(seconds)
        try:
            while not self.over and self.some():
                pass
        except (OSError, NotHTTPError):
            return False
        return self.reusable


def _chunk_size(line: bytes) -> int:
    try:
        # int() also takes signs, underscores and blanks, which no server sends.
        size = int(line, 16)
    except ValueError:
        size = -1
        if b";" in line:
            return _chunk_size(line.partition(b";")[0])
    if size < 0:
        raise NotHTTPError(f"chunk size {line[:40].decode('latin-1')!r}")
    return size
