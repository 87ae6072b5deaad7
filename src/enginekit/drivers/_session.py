"""aiohttp sessions: one set per running event loop, closed with the loop.

A session's sockets belong to the loop that opened them. An async generator holds each set; the loop
finalises it (`shutdown_asyncgens`, which `asyncio.run` calls), so nothing has to be closed by hand
and nothing is left open to warn about.
"""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from enginekit.drivers import _request
from enginekit.drivers._target import Site

MAX_OPEN = 8192
"""Requests and unfinished streams of one event loop at a time, where the system allows as many."""
HEARD = 3
"""Turns of the loop within which a connection's end that has come is told to the protocol: one reads it,
the next says so, and one event loop asks its timers before the sockets."""
KEEP_IDLE = 55.0
"""Seconds an idle connection is kept; most servers and balancers close them at 60."""


class Sent:
    """What became of one attempt to send a request, told by the connector."""

    __slots__ = ("connected", "fresh", "protocol", "reused")

    def __init__(self, *, fresh: bool = False) -> None:
        self.fresh = fresh
        """Whether the attempt must have a new connection."""
        self.connected = False
        self.reused = False
        self.protocol: Any = None

    @property
    def stale(self) -> bool:
        """Whether the connection had served before and brought no byte of this answer."""
        return self.reused and not self.protocol.came

    @property
    def late(self) -> bool:
        """Whether the server was at work on the request when the connection ended."""
        return self.reused and bool(self.protocol.late)

    @property
    def unwritten(self) -> bool:
        """Whether the server cannot have the whole request: the connection took no more of it.

        A server that got no request in time hangs up, and a busy loop may see that before it comes
        to write: llama-server waits 5 s, and a thousand calls may begin at the same moment.
        """
        return self.connected and not self.protocol.wrote


sent: ContextVar[Sent] = ContextVar("enginekit_sent")


class _Protocol(ResponseHandler):
    """Notes whether a byte came, and how many requests it was used for."""

    came = False
    used = 0
    wrote = False
    """Whether the request had gone to the transport to its last byte."""
    late = False
    """Whether the server had the request for longer than a stale connection takes to say so, and the
    loop was free to hear it. The end of a connection that comes afterwards is not this one's."""
    _late_at: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Another request is about to be written."""
        self.used += 1
        self.came = self.wrote = self.late = False
        if self._late_at is not None:
            self._late_at.cancel()
            self._late_at = None

    def data_received(self, data: bytes) -> None:
        self.came = True
        super().data_received(data)

    def start_timeout(self) -> None:
        # aiohttp starts to wait for the answer when the request is written.
        self.wrote = True
        if self.used > 1:
            # Not the time that has passed: a loop that was busy hears of an early end late.
            if _request.STALE_WITHIN > 0:
                self._late_at = self._loop.call_later(_request.STALE_WITHIN, self._listen, HEARD)
            else:
                self.late = True
        super().start_timeout()

    def _listen(self, turns: int) -> None:
        """Be late after so many turns of the loop: what has come already is told within them."""
        if turns:
            self._loop.call_soon(self._listen, turns - 1)
        elif self.connected:
            self.late = True

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._late_at is not None:
            self._late_at.cancel()
        super().connection_lost(exc)

    def resume_reading(self, *args: Any, **more: Any) -> None:
        # aiohttp resumes after every HTTP chunk it hands out, paused or not; that costs as much as
        # a third of parsing a token.
        if self._reading_paused:
            super().resume_reading(*args, **more)


class _Notes(aiohttp.BaseConnector):
    """Tells `sent` of the connection that a request gets."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        note = sent.get(None)
        protocol: Any = connection.protocol
        while note is not None and note.fresh and getattr(protocol, "used", 0) > 0:
            connection.close()
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
        if note is not None and isinstance(protocol, _Protocol):
            note.connected = True
            note.protocol = protocol
            note.reused = protocol.used > 0
            protocol.begin()
        return connection


class _TCP(_Notes, aiohttp.TCPConnector):
    pass


if hasattr(aiohttp, "UnixConnector"):

    class _Unix(_Notes, aiohttp.UnixConnector):
        pass


class Sessions:
    """The sessions of one event loop, and the limit on what they have open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.slots = asyncio.Semaphore(open_limit())
        self.streaming: set[aiohttp.ClientResponse] = set()
        """Responses that streams read from."""
        self.finishing: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}
        self._sessions: dict[str | None, aiohttp.ClientSession] = {}
        self._keeper: AsyncGenerator[None, None] | None = None

    def to(self, site: Site) -> aiohttp.ClientSession:
        """The session for a site: one for TCP, one for each Unix socket."""
        session = self._sessions.get(site.socket_path)
        if session is None:
            session = self._sessions[site.socket_path] = self._new(site.socket_path)
        return session

    def _new(self, socket_path: str | None) -> aiohttp.ClientSession:
        connector: Any
        # limit=0: aiohttp's own limit of 100 would queue streams behind each other.
        if socket_path is None:
            connector = _TCP(limit=0, keepalive_timeout=KEEP_IDLE)
        else:
            connector = _Unix(socket_path, limit=0, keepalive_timeout=KEEP_IDLE)
        connector._factory = functools.partial(_Protocol, loop=self.loop)
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trust_env=False,
            max_line_size=65536,
            max_field_size=65536,
        )
        # aiohttp repeats a GET by itself, on fresh connections too; repeating is our business.
        session._retry_connection = False
        return session

    def finish(self, response: aiohttp.ClientResponse, seconds: float) -> None:
        """Let a decoded reply reach the end of its body, which frees its connection, or close it."""
        if response.closed or response.content.at_eof():
            response.release()
            return
        self.finishing[response] = self.loop.call_later(seconds, self._unfinished, response)
        response.content.on_eof(functools.partial(self._finished, response))

    def _finished(self, response: aiohttp.ClientResponse) -> None:
        timer = self.finishing.pop(response, None)
        if timer is not None:
            timer.cancel()

    def _unfinished(self, response: aiohttp.ClientResponse) -> None:
        self.finishing.pop(response, None)
        response.close()

    async def start(self) -> None:
        """Bind the life of the sessions to that of the loop."""
        self._keeper = self._keep()
        await self._keeper.__anext__()

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Close every connection."""
        for timer in self.finishing.values():
            timer.cancel()
        for response in [*self.finishing, *self.streaming]:
            response.close()
        self.finishing.clear()
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            await session.close()
        if sessions:
            # A transport closes its socket one turn of the loop after it was told to.
            await asyncio.sleep(0)

    async def abandon(self) -> None:
        """Forget sessions whose loop was closed without finalising its generators."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            await session.close()


class Loops:
    """Sessions by event loop."""

    def __init__(self) -> None:
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Sessions] = (
            weakref.WeakKeyDictionary()
        )

    async def current(self) -> Sessions:
        """The sessions of the running loop."""
        loop = asyncio.get_running_loop()
        sessions = self._by_loop.get(loop)
        if sessions is None:
            sessions = self._by_loop[loop] = Sessions(loop)
            await sessions.start()
            await self._sweep()
        return sessions

    async def close(self) -> None:
        """Close the connections of the running loop; the next request opens new ones."""
        sessions = self._by_loop.get(asyncio.get_running_loop())
        if sessions is not None:
            await sessions.close()

    async def _sweep(self) -> None:
        for loop, sessions in list(self._by_loop.items()):
            if loop.is_closed():
                del self._by_loop[loop]
                await sessions.abandon()


def open_limit() -> int:
    """How many requests may be open at a time: `MAX_OPEN`, or what the open-file limit leaves."""
    try:
        import resource
    except ImportError:
        return MAX_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_OPEN
    return max(16, min(MAX_OPEN, soft - max(64, soft // 8)))


_owners: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []
"""In a forked child: the parent's sessions, kept so that they are neither used nor finalised."""


def register(owner: Any) -> None:
    """Have `owner.forget()` called in a forked child; it returns what must not be finalised."""
    _owners.add(owner)


def _after_fork() -> None:
    _inherited.extend(owner.forget() for owner in list(_owners))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
