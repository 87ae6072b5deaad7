"""The stream that `Open` is answered with, async."""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import aiohttp

from enginekit.drivers._async_send import FOREIGN, Attempt
from enginekit.drivers._reading import Reading
from enginekit.drivers._request import RETURN_WAIT
from enginekit.drivers._session import Sessions
from enginekit.engine import Encoded
from enginekit.errors import EngineKitError, Unreachable
from enginekit.types import Chunk, Receipt


class AsyncStream(AsyncIterator[Chunk]):
    """A reply as it comes: iterate over its chunks with `async for`; the last one carries `end`.

    The first chunk is decoded already. Iterating raises EngineTimeout when the wait between tokens
    runs out, StreamTruncated when the reply is cut, and whatever the engine reports inside it.
    Cancelling a task that waits here hangs up.
    """

    def __init__(
        self,
        sessions: Sessions,
        response: aiohttp.ClientResponse,
        encoded: Encoded,
        headers: dict[str, str],
        attempt: Attempt,
        between: float,
    ) -> None:
        self._reading = Reading(encoded, headers)
        self._ready = self._reading.ready
        self.encoded = encoded
        self._content = response.content
        self._attempt = attempt
        self._between = between
        self._sessions = sessions
        self._deadline = math.inf
        self._expired = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._closed_by: Any = None
        self._response: aiohttp.ClientResponse | None = response
        sessions.streaming.add(response)

    @property
    def receipt(self) -> Receipt:
        """What became of each field of the request."""
        return self.encoded.receipt

    @property
    def closed(self) -> bool:
        """Whether the connection has been given up; chunks may still be waiting to be read."""
        return self._response is None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._ready:
            return self._ready.popleft()
        return await self._next()

    async def _next(self) -> Chunk:
        reading = self._reading
        while not self._ready:
            if reading.over:
                if reading.failure is not None:
                    raise reading.failure
                raise StopAsyncIteration
            if self._response is None:
                if self._closed_by is asyncio.current_task():
                    raise StopAsyncIteration
                reading.abort(Unreachable("another task closed the stream"))
            else:
                await self._wait()
        return self._ready.popleft()

    async def _wait(self) -> None:
        """Wait for the next chunk, for `between_tokens` seconds from now."""
        attempt = self._attempt
        if attempt.phase == "first token":
            attempt.phase, attempt.budget = "between tokens", self._between
        if attempt.phase == "between tokens":
            loop = self._sessions.loop
            self._deadline = loop.time() + self._between
            if self._watchdog is None:
                self._watchdog = loop.call_at(
                    self._deadline, _watch, weakref.ref(self), loop, self._between
                )
        while not self._ready and not self._reading.over:
            await self._read()
        self._deadline = math.inf

    async def _read(self) -> None:
        """One read and what it decodes to; gives up the connection when the reply is over."""
        reading = self._reading
        try:
            data = await self._content.readany()
        except asyncio.CancelledError:
            self.give_up(keep=False)
            raise
        except FOREIGN as error:
            rest = self._unread()
            if rest:
                reading.feed(rest)
            if not reading.over:
                reading.abort(self._transport_error(error))
        else:
            try:
                reading.feed(data)
            except BaseException:
                self.give_up(keep=False)
                raise
        if reading.over:
            self.give_up(keep=reading.reusable)

    def _unread(self) -> bytes:
        """What had come before the connection broke: `readany()` raises first and would lose it."""
        if self._expired or self._closed_by is not None:
            return b""
        buffer = getattr(self._content, "_buffer", None)
        if not buffer:
            return b""
        data = b"".join(buffer)[getattr(self._content, "_buffer_offset", 0) :]
        buffer.clear()
        return data

    def _transport_error(self, error: BaseException) -> EngineKitError:
        if self._expired:
            return self._attempt.error(TimeoutError())
        if self._closed_by is not None:
            return Unreachable("another task closed the stream")
        return self._attempt.error(error)

    async def start(self) -> None:
        """Read until the first chunk that carries something. Raises what prevents it."""
        reading = self._reading
        loop = self._sessions.loop
        self._deadline = self._attempt.deadline
        try:
            while not reading.started:
                if reading.over:
                    if reading.failure is not None:
                        raise reading.failure
                    return
                # A body that came whole with its head is read without a wait: no timer.
                if self._watchdog is None and not self._content.is_eof():
                    self._watchdog = loop.call_at(
                        self._deadline, _watch, weakref.ref(self), loop, self._between
                    )
                await self._read()
        except BaseException:
            self.give_up(keep=False)
            raise
        finally:
            if self._watchdog is not None:
                self._watchdog.cancel()
                self._watchdog = None
            self._deadline = math.inf

    def _expire(self) -> None:
        self._expired = True
        if self._response is not None:
            self._response.close()

    def give_up(self, *, keep: bool) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._sessions.slots.release()
        self._sessions.streaming.discard(response)
        if keep:
            self._sessions.finish(response, RETURN_WAIT)
        else:
            response.close()

    async def aclose(self) -> None:
        """Hang up; the server stops generating. Does nothing when the reply is over.

        Chunks that were decoded already can still be read.
        """
        if self._response is not None:
            self._closed_by = asyncio.current_task()
            self.give_up(keep=False)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        response = getattr(self, "_response", None)
        if response is None:
            return
        loop = self._sessions.loop
        if loop.is_closed():
            return
        # Garbage may be collected in any thread.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_drop, self._sessions, response, self._watchdog)


def _drop(
    sessions: Sessions, response: aiohttp.ClientResponse, watchdog: asyncio.TimerHandle | None
) -> None:
    if watchdog is not None:
        watchdog.cancel()
    sessions.slots.release()
    sessions.streaming.discard(response)
    response.close()


def _watch(
    reference: weakref.ref[AsyncStream], loop: asyncio.AbstractEventLoop, between: float
) -> None:
    """One timer a stream: it fires at most once per `between` seconds and moves with the deadline."""
    stream = reference()
    if stream is None or stream.closed:
        return
    now = loop.time()
    if now >= stream._deadline:
        stream._expire()
        return
    again = min(stream._deadline, now + between)
    stream._watchdog = loop.call_at(again, _watch, reference, loop, between)
