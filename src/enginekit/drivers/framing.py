"""Cut a body into events: server-sent events, JSON lines, or one whole document.

Pure and incremental: `feed` takes bytes cut anywhere and returns the payloads they complete, as
bytes and undecoded; `eof` returns what is left over, which may be a whole last event without its
blank line or the torn half of one. Only the decoder can tell those apart.
"""

from __future__ import annotations

from typing import Protocol

from enginekit.errors import MalformedReply

MAX_EVENT = 64 * 1024 * 1024
"""Bytes of one event or one whole document; more is taken for a runaway server."""

_BOM = b"\xef\xbb\xbf"


class Frames(Protocol):
    """What cuts bytes into payloads."""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads that these bytes complete. Raises MalformedReply past `MAX_EVENT`."""
        ...

    def eof(self) -> bytes | None:
        """What is left over, or None."""
        ...


class _Buffer:
    """Bytes of the event that is not complete yet, joined only when they have to be."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_EVENT:
            raise MalformedReply(f"one event of the reply is larger than {MAX_EVENT >> 20} MiB")

    def _take(self) -> bytes:
        joined = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return joined


class SSE(_Buffer):
    """Server-sent events: LF, CRLF or CR line ends, comments, multi-line data, a leading BOM.

    A field `error` counts as data: some servers report what went wrong there, and a reader that
    passes over unknown fields would lose it.
    """

    __slots__ = ("_cr", "_start")

    def __init__(self) -> None:
        super().__init__()
        self._start = True
        self._cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """Data payloads of the events that these bytes complete; comments give nothing."""
        if self._start:
            data = self._skip_bom(data)
            if self._start:
                return []
        if self._cr or b"\r" in data:
            data = self._unify(data)
        if self._parts:
            if b"\n" not in data:
                self._keep(data)
                return []
            data = self._take() + data
        end = data.rfind(b"\n\n")
        if end < 0:
            self._keep(data)
            return []
        if end + 2 < len(data):
            self._keep(data[end + 2 :])
        payloads = []
        for block in data[:end].split(b"\n\n"):
            if block[:6] == b"data: " and b"\n" not in block:
                payloads.append(block[6:])
            elif (payload := _data_of(block)) is not None:
                payloads.append(payload)
        return payloads

    def eof(self) -> bytes | None:
        """The data of an event that lacks its blank line, whole or torn."""
        return _data_of(self._take())

    def _skip_bom(self, data: bytes) -> bytes:
        data = self._take() + data
        if len(data) < 3 and _BOM.startswith(data):
            self._keep(data)
            return b""
        self._start = False
        return data.removeprefix(_BOM)

    def _unify(self, data: bytes) -> bytes:
        """Line ends to LF. A CR at the very end waits for the LF that may follow it."""
        if self._cr:
            data = b"\r" + data
        self._cr = data.endswith(b"\r")
        if self._cr:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data_of(block: bytes) -> bytes | None:
    lines = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value[:1] == b" " else value)
        elif line == b"data":
            lines.append(b"")
        elif line.startswith(b"error:"):
            # llama-server before b5500 or so wrote its errors into a field of that name.
            lines.append(line[6:].removeprefix(b" "))
    return b"\n".join(lines) if lines else None


class NDJSON(_Buffer):
    """One JSON document a line."""

    __slots__ = ()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that these bytes complete; empty ones give nothing."""
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return []
        if self._parts:
            head = self._take() + data[:end]
        else:
            head = data[:end]
        self._keep(data[end + 1 :])
        return [line for line in head.split(b"\n") if line and not line.isspace()]

    def eof(self) -> bytes | None:
        """A last line without its line end, whole or torn."""
        rest = self._take()
        return rest if rest.strip() else None


class Whole(_Buffer):
    """A body that is one document."""

    __slots__ = ()

    def feed(self, data: bytes) -> list[bytes]:
        """Nothing yet: the document is complete at the end of the body."""
        self._keep(data)
        return []

    def eof(self) -> bytes | None:
        """The body, empty or not."""
        return self._take()
