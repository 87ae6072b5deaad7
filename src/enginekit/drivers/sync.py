"""The blocking driver: runs operations and reads replies on the calling thread.

    from enginekit.drivers import sync
    facts = sync.default().run(engine.probe())

Threads share one driver. Nothing needs to be closed, but what is closed early is hung up at once,
so that the server stops generating.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

from urllib3.exceptions import HTTPError

from enginekit.drivers import _errors, _gather
from enginekit.drivers._errors import NotHTTPError
from enginekit.drivers._pool import Link, Pool, Route, connect
from enginekit.drivers._reading import Reading, inflated
from enginekit.drivers._request import (
    CONNECT,
    MAX_ANSWER,
    MAX_REFUSAL,
    REFUSAL_WAIT,
    Outgoing,
    first_wait,
    prepare,
    redirected,
    refused,
)
from enginekit.drivers._wire import Incoming
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

FOREIGN = (OSError, NotHTTPError, HTTPError, UnicodeError)
"""What may come out of the socket layer and urllib3; `_errors` turns each into one of ours."""


class SyncDriver:
    """Runs operations, blocking. Holds the idle connections; safe for threads, empty after a fork."""

    def __init__(self) -> None:
        self._pool = Pool()
        _drivers.append(self)

    def run(self, operation: Operation[_T]) -> _T:
        """Run an operation to its end and return what it returns.

        Raises what the operation raises: an EngineKitError, whatever happened on the wire.
        """
        return self._run(operation, None)

    def close(self) -> None:
        """Close idle connections. The driver stays usable."""
        self._pool.clear()

    def _run(self, operation: Operation[_T], until: _gather.Until | None) -> _T:
        opened: list[SyncStream] = []
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
                    outcome = self._perform(effect, until)
                    if isinstance(outcome, SyncStream):
                        opened.append(outcome)
                except EngineKitError as error:
                    failed = error
                except Exception as error:
                    if not isinstance(effect, Blocking):
                        raise
                    failed = error
                if until is not None and until.passed:
                    if isinstance(effect, Blocking):
                        _gather.release(outcome)
                    raise _gather.AbandonedError
        except StopIteration as end:
            value: _T = end.value
            return value
        except BaseException:
            for stream in opened:
                stream.close()
            raise
        finally:
            operation.close()

    def _perform(self, effect: Any, until: _gather.Until | None) -> Any:
        match effect:
            case Call():
                return self._call(effect, until)
            case Open():
                return self._open(effect, until)
            case Sleep():
                seconds = max(0.0, effect.seconds)
                time.sleep(seconds if until is None else min(seconds, until.left))
                return None
            case Blocking():
                return effect.function()
            case Gather():
                return _gather.run_threads(self._run, effect, until)
        raise TypeError(f"an operation yielded {effect!r}, which is no effect")

    # -- whole answers ------------------------------------------------------------------

    def _call(self, call: Call, until: _gather.Until | None) -> Answer:
        budget = call.timeout if until is None else min(call.timeout, until.left)
        request = prepare(call)
        attempt = _Attempt(call, request, "", "whole reply", budget, CONNECT)
        link, answer = attempt.send(self._pool)
        try:
            if 300 <= answer.status < 400:
                raise redirected(call, answer.status, answer.headers)
            try:
                body = _read_all(answer, MAX_ANSWER)
            except FOREIGN as error:
                raise attempt.cut(error) from error
            if body is None:
                raise MalformedReply(
                    f"the answer of {call.target.base_url}{call.path} is larger than "
                    f"{MAX_ANSWER >> 20} MiB",
                    url=call.target.base_url,
                    status=answer.status,
                )
        finally:
            self._pool.give(link, answer) if answer.over else link.close()
        body = inflated(answer.headers, body, call.target.base_url)
        return Answer(status=answer.status, headers=answer.headers, body=body)

    # -- streams ------------------------------------------------------------------------

    def _open(self, effect: Open, until: _gather.Until | None) -> SyncStream:
        encoded, budgets, engine = effect.encoded, effect.budgets, effect.engine
        call = encoded.call
        phase, budget = first_wait(call, budgets)
        if until is not None:
            budget = min(budget, until.left)
        attempt = _Attempt(call, prepare(call), engine.name, phase, budget, budgets.connect)
        link, answer = attempt.send(self._pool)
        stream: SyncStream | None = None
        try:
            if 300 <= answer.status < 400:
                raise redirected(call, answer.status, answer.headers, engine.name)
            if not 200 <= answer.status < 300:
                link.wire.until(min(attempt.deadline, time.monotonic() + REFUSAL_WAIT))
                body = b""
                with contextlib.suppress(*FOREIGN):
                    body = _read_all(answer, MAX_REFUSAL, keep_partial=True) or b""
                with contextlib.suppress(EngineKitError):
                    body = inflated(answer.headers, body, call.target.base_url)
                raise refused(engine, call, answer.status, answer.headers, body)
            stream = SyncStream(self._pool, link, answer, encoded, attempt, budgets.between_tokens)
            stream._start()
            return stream
        finally:
            if stream is None:
                self._pool.give(link, answer) if answer.over else link.close()


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
        attempt: _Attempt,
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
                reading.feed(data)
        if reading.over:
            self._give_up(keep=reading.failure is None)

    def _start(self) -> None:
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


class _Attempt:
    """One request under way: its budget, and what errors mean at this point."""

    __slots__ = ("_connect", "_request", "budget", "call", "deadline", "engine", "phase", "proxy")

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
        self.deadline = time.monotonic() + budget
        self.proxy: str | None = None
        self._request = request
        self._connect = min(connect_budget, budget)

    def send(self, pool: Pool) -> tuple[Link, Incoming]:
        """Send the request and read the head of the answer.

        On a connection that had been idle and turns out to be dead before any byte of the answer,
        the request is sent once more on a new one.
        """
        request = self._request
        route = Route.to(request.site, self.call.target)
        self.proxy = None if route.proxy is None else route.proxy.url
        link = pool.take(route)
        if link is not None:
            link.wire.came = False
            try:
                return link, self._exchange(link, request)
            except FOREIGN as error:
                link.close()
                if link.wire.came or isinstance(error, TimeoutError | NotHTTPError):
                    raise self.error(error) from error
            except BaseException:
                link.close()
                raise
        link = self._dial(route)
        try:
            return link, self._exchange(link, request)
        except FOREIGN as error:
            link.close()
            raise self.error(error) from error
        except BaseException:
            link.close()
            raise

    def _dial(self, route: Route) -> Link:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self.error(TimeoutError())
        try:
            return connect(route, min(self._connect, left))
        except FOREIGN as error:
            raise self._translate(error, "connect", self._connect) from error

    def _exchange(self, link: Link, request: Outgoing) -> Incoming:
        link.wire.until(self.deadline)
        with contextlib.suppress(BrokenPipeError):  # an early answer may be there to be read
            link.wire.send(_head(request, link.route) + (request.body or b""))
        answer = Incoming(link.wire)
        answer.read_head(request.method)
        return answer

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
            _errors.urllib3_table(),
            url=self.call.target.base_url,
            engine=self.engine,
            phase=phase,
            budget=budget,
            proxy=self.proxy,
        )


def _head(request: Outgoing, route: Route) -> bytes:
    path = request.site.origin + request.path if route.absolute else request.path
    lines = [f"{request.method} {path} HTTP/1.1", f"host: {request.site.authority}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if route.absolute and route.proxy is not None:
        lines += [f"{name}: {value}" for name, value in route.proxy.headers]
    if request.body is not None:
        lines.append(f"content-length: {len(request.body)}")
    elif request.method == "POST":
        lines.append("content-length: 0")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1")


def _read_all(answer: Incoming, limit: int, *, keep_partial: bool = False) -> bytes | None:
    """The whole body; None, or what came, when it is larger than `limit` or breaks off."""
    parts: list[bytes] = []
    size = 0
    try:
        while data := answer.some():
            parts.append(data)
            size += len(data)
            if size > limit:
                return b"".join(parts) if keep_partial else None
    except FOREIGN:
        if not keep_partial:
            raise
    return b"".join(parts)


# ------------------------------------------------------------------------------------ life

_drivers: list[SyncDriver] = []
_default: SyncDriver | None = None
_default_lock = threading.Lock()
_pid = os.getpid()


def default() -> SyncDriver:
    """The driver that the whole process shares."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = SyncDriver()
    return _default


def _after_fork() -> None:
    """In a child: the parent's connections are not ours to use, and its locks may be held."""
    global _default_lock, _pid
    _default_lock = threading.Lock()
    _pid = os.getpid()
    for driver in _drivers:
        driver._pool = Pool()


def _at_exit() -> None:
    if os.getpid() == _pid:
        for driver in _drivers:
            driver.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
