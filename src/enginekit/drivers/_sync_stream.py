"""The stream that `Open` is answered with, blocking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType

from enginekit.drivers._pool import Link, Pool
from enginekit.drivers._reading import Reading
from enginekit.drivers._sync_send import FOREIGN, Attempt
from enginekit.drivers._wire import Incoming
from enginekit.engine import Encoded
from enginekit.errors import Unreachable
from enginekit.types import Chunk, Receipt


class SyncStream(Iterator[Chunk]):
    """A reply as it comes: iterate over its chunks; the last one carries `end`.

    The first chunk is decoded already. Iterating raises EngineTimeout when the wait between tokens
    runs out, StreamTruncated when the reply is cut, and whatever the engine reports inside it.
    May be closed from another thread: a reader that waits then gets StreamTruncated at once.
    """

    def __init__(
        self,
        pool: Pool,
        link: Link,
        answer: Incoming,
        encoded: Encoded,
        attempt: Attempt,
        between: float,
    ) -> None:
        self.encoded = encoded
        self._link: Link | None = link
        self._pool = pool
        self._answer = answer
        self._attempt = attempt
        self._between = between
        self._reading = Reading(encoded, answer.headers)
        self._ready = self._reading.ready
        self._reads = threading.Lock()
        self._hands_over = threading.Lock()
        self._closed_by: int | None = None

    @property
    def receipt(self) -> Receipt:
        """What became of each field of the request."""
        return self.encoded.receipt

    @property
    def closed(self) -> bool:
        """Whether the connection has been given up; chunks may still be waiting to be read."""
        return self._link is None

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Chunk:
        if self._ready:
            return self._ready.popleft()
        return self._next()

    def _next(self) -> Chunk:
        reading = self._reading
        with self._reads:
            while not self._ready:
                if reading.over:
                    if reading.failure is not None:
                        raise reading.failure
                    raise StopIteration
                if self._link is None:
                    if self._closed_by == threading.get_ident():
                        raise StopIteration
                    reading.abort(Unreachable("another thread closed the stream"))
                else:
                    self._wait()
        return self._ready.popleft()

    def _wait(self) -> None:
        """Wait for the next chunk, for `between_tokens` seconds from now."""
        attempt = self._attempt
        if attempt.phase == "first token":
            attempt.phase, attempt.budget = "between tokens", self._between
        if attempt.phase == "between tokens":
            self._answer.wire.begin(self._between)
        while not self._ready and not self._reading.over:
            self._read()

    def _read(self) -> None:
        """One read and what it decodes to; gives up the connection when the reply is over."""
        reading = self._reading
        try:
            data = self._answer.some()
        except FOREIGN as error:
            reading.abort(
                Unreachable("another thread closed the stream")
                if self._closed_by is not None
                else self._attempt.error(error)
            )
        else:
            if not data and self._closed_by is not None:
                reading.abort(Unreachable("another thread closed the stream"))
            else:
                try:
                    reading.feed(data)
                except BaseException:
                    self._give_up(keep=False)
                    raise
        if reading.over:
            self._give_up(keep=reading.reusable)

    def start(self) -> None:
        """Read until the first chunk that carries something. Raises what prevents it."""
        reading = self._reading
        try:
            while not reading.started:
                if reading.over:
                    if reading.failure is not None:
                        raise reading.failure
                    return
                self._read()
        except BaseException:
            self.close()
            raise

    def _give_up(self, *, keep: bool) -> None:
        with self._hands_over:
            link, self._link = self._link, None
        if link is None:
            return
        if keep:
            self._pool.give(link, self._answer)
        else:
            link.close()

    def close(self) -> None:
        """Hang up; the server stops generating. Does nothing when the reply is over.

        Chunks that were decoded already can still be read.
        """
        if self._link is None:
            return
        if self._closed_by is None:
            self._closed_by = threading.get_ident()
        if self._reads.acquire(blocking=False):
            try:
                self._give_up(keep=False)
            finally:
                self._reads.release()
            return
        with self._hands_over:
            if self._link is not None:
                self._link.hang_up()

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None:
            link.close()
