"""The async driver: runs operations and reads replies on the running event loop.

    from enginekit.drivers import async_
    facts = await async_.default().run(engine.probe())

One driver serves any number of event loops, one after another or in several threads. Nothing needs
to be closed: connections are closed with their loop. A cancelled task hangs up at once, so that the
server stops generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from enginekit.drivers import _errors, _session, _tls
from enginekit.drivers._gather import late, release
from enginekit.drivers._proxy import proxy_for
from enginekit.drivers._reading import Reading, inflated
from enginekit.drivers._request import (
    CONNECT,
    MAX_ANSWER,
    MAX_REFUSAL,
    REFUSAL_WAIT,
    RETURN_WAIT,
    Outgoing,
    first_wait,
    prepare,
    redirected,
    refused,
)
from enginekit.drivers._session import Loops, Sent, Sessions
from enginekit.engine import (
    Answer,
    Blocking,
    Call,
    Encoded,
    Gather,
    Open,
    Operation,
    Sleep,
)
from enginekit.errors import (
    EngineKitError,
    EngineTimeout,
    MalformedReply,
    Phase,
    StreamTruncated,
    Unreachable,
)
from enginekit.types import Chunk, Receipt

_T = TypeVar("_T")

FOREIGN = (OSError, aiohttp.ClientError, HttpProcessingError, UnicodeError)
"""What may come out of the socket layer and aiohttp; `_errors` turns each into one of ours."""

_LARGE_BODY = 1 << 20


class AsyncDriver:
    """Runs operations on the running event loop."""

    def __init__(self) -> None:
        self._loops = Loops()
        _session.register(self)

    async def run(self, operation: Operation[_T]) -> _T:
        """Run an operation to its end and return what it returns.

        Raises what the operation raises: an EngineKitError, whatever happened on the wire.
        """
        opened: list[AsyncStream] = []
        outcome: Any = None
        failed: Exception | None = None
        try:
            while True:
                if failed is None:
                    effect = operation.send(outcome)
                else:
                    thrown, failed = failed, None
                    effect = operation.throw(thrown)
                outcome = None
                try:
                    outcome = await self._perform(effect)
                    if isinstance(outcome, AsyncStream):
                        opened.append(outcome)
                except EngineKitError as error:
                    failed = error
                except Exception as error:
                    if not isinstance(effect, Blocking):
                        raise
                    failed = error
        except StopIteration as end:
            value: _T = end.value
            return value
        except BaseException:
            for stream in opened:
                stream._give_up(keep=False)
            raise
        finally:
            operation.close()

    async def close(self) -> None:
        """Close the connections of the running loop. The driver stays usable."""
        await self._loops.close()

    def forget(self) -> Loops:
        """Drop every session without touching it, as a forked child must; returns them."""
        loops, self._loops = self._loops, Loops()
        return loops

    async def _perform(self, effect: Any) -> Any:
        match effect:
            case Call():
                return await self._call(effect)
            case Open():
                return await self._open(effect)
            case Sleep():
                return await asyncio.sleep(max(0.0, effect.seconds))
            case Blocking():
                return await in_thread(effect.function)
            case Gather():
                return await self._gather(effect)
        raise TypeError(f"an operation yielded {effect!r}, which is no effect")

    async def _gather(self, effect: Gather) -> list[Any]:
        tasks = [asyncio.create_task(self.run(operation)) for operation in effect.operations]
        if not tasks:
            return []
        try:
            await asyncio.wait(tasks, timeout=effect.deadline)
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
        results: list[Any] = []
        for task in tasks:
            if task in unfinished or task.cancelled():
                if not task.cancelled():
                    task.exception()
                results.append(late(effect.deadline))
            else:
                results.append(task.exception() or task.result())
        return results

    # -- whole answers ------------------------------------------------------------------

    async def _call(self, call: Call) -> Answer:
        request = prepare(call)
        sessions = await self._loops.current()
        attempt = _Attempt(call, request, "", "whole reply", call.timeout, CONNECT)
        async with _within(attempt), sessions.slots:
            response = await attempt.send(sessions)
            try:
                headers = _headers(response)
                if 300 <= response.status < 400:
                    raise redirected(call, response.status, headers)
                try:
                    body = await _read_all(response, MAX_ANSWER)
                except FOREIGN as error:
                    raise attempt.cut(error) from error
                if body is None:
                    raise MalformedReply(
                        f"the answer of {call.target.base_url}{call.path} is larger than "
                        f"{MAX_ANSWER >> 20} MiB",
                        url=call.target.base_url,
                        status=response.status,
                    )
            finally:
                response.release()
        body = inflated(headers, body, call.target.base_url)
        return Answer(status=response.status, headers=headers, body=body)

    # -- streams ------------------------------------------------------------------------

    async def _open(self, effect: Open) -> AsyncStream:
        encoded, budgets, engine = effect.encoded, effect.budgets, effect.engine
        call = encoded.call
        phase, budget = first_wait(call, budgets)
        request = prepare(call)
        sessions = await self._loops.current()
        attempt = _Attempt(call, request, engine.name, phase, budget, budgets.connect)
        stream: AsyncStream | None = None
        async with _within(attempt):
            await sessions.slots.acquire()
            try:
                response = await attempt.send(sessions)
                try:
                    headers = _headers(response)
                    if 300 <= response.status < 400:
                        raise redirected(call, response.status, headers, engine.name)
                    if not 200 <= response.status < 300:
                        body = await _refusal(response)
                        with contextlib.suppress(EngineKitError):
                            body = inflated(headers, body, call.target.base_url)
                        raise refused(engine, call, response.status, headers, body)
                    stream = AsyncStream(
                        sessions, response, encoded, headers, attempt, budgets.between_tokens
                    )
                finally:
                    if stream is None:
                        response.release()
            finally:
                if stream is None:
                    sessions.slots.release()
            await stream._start()
        return stream


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
        attempt: _Attempt,
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
            self._give_up(keep=False)
            raise
        except FOREIGN as error:
            reading.abort(self._transport_error(error))
        else:
            reading.feed(data)
        if reading.over:
            self._give_up(keep=reading.failure is None)

    def _transport_error(self, error: BaseException) -> EngineKitError:
        if self._expired:
            return self._attempt.error(TimeoutError())
        if self._closed_by is not None:
            return Unreachable("another task closed the stream")
        return self._attempt.error(error)

    async def _start(self) -> None:
        """Read until the first chunk that carries something. Raises what prevents it."""
        reading = self._reading
        try:
            while not reading.started:
                if reading.over:
                    if reading.failure is not None:
                        raise reading.failure
                    return
                await self._read()
        except BaseException:
            self._give_up(keep=False)
            raise

    def _expire(self) -> None:
        self._expired = True
        if self._response is not None:
            self._response.close()

    def _give_up(self, *, keep: bool) -> None:
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
            self._give_up(keep=False)

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


class _Attempt:
    """One request under way: its budget, and what errors mean at this point."""

    __slots__ = ("_connect", "_request", "budget", "call", "engine", "phase", "proxy")

    def __init__(
        self,
        call: Call,
        request: Outgoing,
        engine: str,
        phase: Phase,
        budget: float,
        connect_budget: float,
    ) -> None:
        self.call = call
        self.engine = engine
        self.phase: Phase = phase
        self.budget = budget
        self.proxy: str | None = None
        self._request = request
        self._connect = min(connect_budget, budget)

    async def send(self, sessions: Sessions) -> aiohttp.ClientResponse:
        """Send the request; returns once the head of the answer is there.

        On a connection that had been idle and turns out to be dead before any byte of the answer,
        the request is sent once more on a new one.
        """
        request, target = self._request, self.call.target
        site, headers = request.site, request.headers
        proxy = proxy_for(site, target.proxy)
        more: dict[str, Any] = {}
        if proxy is not None:
            self.proxy = proxy.url
            more = {"proxy": proxy.url, "proxy_headers": dict(proxy.headers)}
            if not site.tls:  # aiohttp sends proxy_headers with CONNECT only
                headers = headers | dict(proxy.headers)
        if site.tls or (proxy is not None and proxy.tls):
            more["ssl"] = _tls.context(target.ca_file, target.client_cert, target.verify)
        url = URL(site.origin + request.path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._connect)
        session = sessions.to(site)
        repeated = False
        while True:
            note = Sent(fresh=repeated)
            token = _session.sent.set(note)
            try:
                return await session.request(
                    request.method,
                    url,
                    data=_payload(request.body),
                    headers=headers,
                    allow_redirects=False,
                    timeout=timeout,
                    **more,
                )
            except FOREIGN as error:
                if note.stale and not repeated and self._broken(error):
                    repeated = True
                    continue
                if note.connected:
                    raise self.error(error) from error
                raise self._translate(error, "connect", self._connect) from error
            finally:
                _session.sent.reset(token)

    @staticmethod
    def _broken(error: BaseException) -> bool:
        return _errors.meaning(error, _errors.aiohttp_table()) == "unreachable"

    def error(self, error: BaseException) -> EngineKitError:
        """What an exception of the transport means now."""
        return self._translate(error, self.phase, self.budget)

    def cut(self, error: BaseException) -> EngineKitError:
        """What an exception inside a whole answer's body means."""
        ours = self.error(error)
        if isinstance(ours, EngineTimeout | MalformedReply):
            return ours
        return StreamTruncated(
            f"the answer of {self.call.target.base_url}{self.call.path} was cut: {error}",
            engine=self.engine,
            url=self.call.target.base_url,
        )

    def _translate(self, error: BaseException, phase: Phase, budget: float) -> EngineKitError:
        return _errors.translate(
            error,
            _errors.aiohttp_table(),
            url=self.call.target.base_url,
            engine=self.engine,
            phase=phase,
            budget=budget,
            proxy=self.proxy,
        )


@contextlib.asynccontextmanager
async def _within(attempt: _Attempt) -> AsyncIterator[None]:
    """The attempt's budget as a deadline; its end is raised as our EngineTimeout."""
    limit = asyncio.timeout(attempt.budget)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired() and not isinstance(error, EngineKitError):
            raise attempt.error(TimeoutError()) from None
        raise


def _payload(body: bytes | None) -> Any:
    # aiohttp warns of large bodies given as bytes, for it would send them in one piece.
    return io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _read_all(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The whole body, or None when it is larger than `limit`."""
    parts: list[bytes] = []
    size = 0
    while data := await response.content.readany():
        parts.append(data)
        size += len(data)
        if size > limit:
            return None
    return b"".join(parts)


async def _refusal(response: aiohttp.ClientResponse) -> bytes:
    """What comes of a refusal's body, within bounds."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(*FOREIGN):
        async with asyncio.timeout(REFUSAL_WAIT):
            while size < MAX_REFUSAL and (data := await response.content.readany()):
                parts.append(data)
                size += len(data)
    return b"".join(parts)


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in a thread of its own and return what it returns.

    Not the loop's executor: its few threads may all wait for locks, and the loop's shutdown waits
    for them. When the waiting task is cancelled, the function runs to its end and what it returns
    is let go (`release()` or `close()` where there is one).
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    context = contextvars.copy_context()

    def deliver(outcome: tuple[Any, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)
        elif outcome[1] is None:
            release(outcome[0])

    def work() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = (context.run(function), None)
        except BaseException as error:
            outcome = (None, error)
        try:
            loop.call_soon_threadsafe(deliver, outcome)
        except RuntimeError:  # the loop is closed
            release(outcome[0])

    threading.Thread(target=work, name="enginekit-blocking", daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value


_default: AsyncDriver | None = None


def default() -> AsyncDriver:
    """The driver that the whole process shares, whatever event loops come and go."""
    global _default
    if _default is None:
        _default = AsyncDriver()
    return _default
