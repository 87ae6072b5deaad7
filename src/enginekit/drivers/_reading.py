"""A reply between its bytes and its reader: what the blocking and the async stream share. No I/O."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any

from enginekit.engine import Encoded
from enginekit.errors import EngineKitError, MalformedReply
from enginekit.types import Chunk

_INFLATE = {"gzip", "x-gzip", "deflate"}


class Reading:
    """One reply being decoded.

    Attributes:
        ready: chunks decoded and not yet handed out.
        over: nothing more will be decoded: the reply is complete, or it failed.
        started: a chunk that carries something has been decoded.
    """

    __slots__ = ("_decoder", "_inflate", "_url", "over", "ready", "started")

    def __init__(self, encoded: Encoded, headers: Mapping[str, str]) -> None:
        self._decoder = encoded.decoder()
        self._url = encoded.call.target.base_url
        self._inflate = inflater(headers, self._url)
        self.ready: deque[Chunk] = deque()
        self.over = False
        self.started = False

    def feed(self, data: bytes) -> None:
        """Decode more of the body; b"" is its end."""
        decoder = self._decoder
        if self._inflate is not None:
            ended = not data
            try:
                data = self._inflate.flush() if ended else self._inflate.decompress(data)
            except zlib.error as error:
                self.abort(MalformedReply(f"the body cannot be inflated: {error}", url=self._url))
                return
            if data:
                self._take(decoder.feed(data))
            if ended and not self._inflate.eof:
                self.abort(MalformedReply("the compressed body is cut", url=self._url))
            elif ended and not decoder.done and decoder.failure is None:
                self._take(decoder.eof())
                self.over = True
        elif data:
            self._take(decoder.feed(data))
        else:
            self._take(decoder.eof())
            self.over = True
        if decoder.done or decoder.failure is not None:
            self.over = True

    def abort(self, error: EngineKitError) -> None:
        """The transport failed."""
        self._take(self._decoder.abort(error))
        self.over = True

    @property
    def failure(self) -> EngineKitError | None:
        """Why the reply is not whole; None while it may be, and when it is."""
        return self._decoder.failure

    @property
    def reusable(self) -> bool:
        """Whether the server is done with this reply, too: not when it failed or was ended early."""
        return self.failure is None and not getattr(self._decoder, "early", False)

    def _take(self, chunks: list[Chunk]) -> None:
        if not self.started:
            self.started = any(map(carries, chunks))
        self.ready.extend(chunks)


def carries(chunk: Chunk) -> bool:
    """Whether a chunk satisfies "first token": it holds text, reasoning, a call or the end."""
    return bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.end is not None)


def inflater(headers: Mapping[str, str], url: str) -> Any:
    """What undoes the content coding, None for none. A proxy may compress though we asked not to.

    Raises MalformedReply for a coding that the standard library cannot undo.
    """
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in _INFLATE:
        return zlib.decompressobj(wbits=47 if coding != "deflate" else 15)
    raise MalformedReply(
        f"{url} answered with content-encoding {coding!r} though identity was asked for", url=url
    )


def inflated(headers: Mapping[str, str], body: bytes, url: str) -> bytes:
    """A whole body without its content coding. Raises MalformedReply when that fails."""
    undo = inflater(headers, url)
    if undo is None:
        return body
    try:
        whole = bytes(undo.decompress(body) + undo.flush())
    except zlib.error as error:
        raise MalformedReply(f"the answer of {url} cannot be inflated: {error}", url=url) from error
    if body and not undo.eof:
        raise MalformedReply(f"the compressed answer of {url} is cut", url=url)
    return whole
