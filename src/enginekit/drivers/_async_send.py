"""One async request: sent, perhaps once more on a new connection, until its answer begins."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Awaitable
from functools import lru_cache
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from enginekit.drivers import _errors, _session, _tls
from enginekit.drivers._attempt import Meanings
from enginekit.drivers._proxy import proxy_for
from enginekit.drivers._request import MAX_REFUSAL, REFUSAL_WAIT, Outgoing
from enginekit.drivers._session import Sent, Sessions
from enginekit.engine import Call
from enginekit.errors import (
    Phase,
)

FOREIGN = (OSError, aiohttp.ClientError, HttpProcessingError, UnicodeError)
"""What may come out of the socket layer and aiohttp; `_errors` turns each into one of ours."""

_LARGE_BODY = 1 << 20
_AT_ONCE = 60 << 10
"""Bytes of a body that are handed over in one piece: all of it was written, or nothing."""


class Attempt(Meanings):
    """One request under way: its budget, and what errors mean at this point."""

    __slots__ = ()

    _foreign = staticmethod(_errors.aiohttp_table)

    def __init__(
        self,
        call: Call,
        request: Outgoing,
        engine: str,
        phase: Phase,
        budget: float,
        connect_budget: float,
    ) -> None:
        now = asyncio.get_running_loop().time()
        super().__init__(call, request, engine, phase, budget, connect_budget, now)

    async def send(self, sessions: Sessions) -> aiohttp.ClientResponse:
        """Send the request; returns once the head of the answer is there.

        On a connection that had been idle and turns out to be dead at once, before any byte of the
        answer, or that was closed before the request could be written, it is sent once more on a
        new one.
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
        if request.body is None:
            more["skip_auto_headers"] = ("content-type",)
        url = _url(site.origin, request.path)
        timeout = _timeout(self._connect)
        session = sessions.to(site)
        repeated = False
        # Of a larger body a part may be with the server when the rest cannot be written.
        at_once = request.body is None or len(request.body) <= _AT_ONCE
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
                broken = self._broken(error)
                unwritten = note.unwritten and broken and at_once
                stale = note.stale and broken and (request.safe or not note.late)
                if not repeated and (unwritten or stale):
                    repeated = True
                    continue
                if note.connected and not unwritten:
                    raise self.unanswered(error) from error
                raise self._translate(error, "connect", self._connect) from error
            finally:
                _session.sent.reset(token)

    @staticmethod
    def _broken(error: BaseException) -> bool:
        return _errors.meaning(error, _errors.aiohttp_table()) == "unreachable"


class Within:
    """The attempt's budget as a deadline; its end is raised as our EngineTimeout."""

    __slots__ = ("_attempt", "_limit")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._limit = asyncio.timeout_at(attempt.deadline)

    def __aenter__(self) -> Awaitable[Any]:
        return self._limit.__aenter__()

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> Awaitable[None]:
        if kind is None:  # a limit only ever turns a cancellation into its TimeoutError
            return self._limit.__aexit__(None, None, None)
        return self._failed(kind, error, at)

    async def _failed(
        self, kind: type[BaseException], error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, at)
        except TimeoutError:
            raise self._attempt.error(TimeoutError()) from None


@lru_cache(maxsize=1024)
def _url(origin: str, path: str) -> URL:
    return URL(origin + path, encoded=True)


@lru_cache(maxsize=64)
def _timeout(connect: float) -> aiohttp.ClientTimeout:
    # Budgets are ours to keep: aiohttp's default total of 300 s would cut long replies.
    return aiohttp.ClientTimeout(total=None, connect=connect)


def _payload(body: bytes | None) -> Any:
    # aiohttp warns of large bodies given as bytes, for it would send them in one piece.
    return io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body


def headers_of(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def read_all(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The whole body, or None when it is larger than `limit`."""
    parts: list[bytes] = []
    size = 0
    while data := await response.content.readany():
        parts.append(data)
        size += len(data)
        if size > limit:
            return None
    return b"".join(parts)


async def read_refusal(response: aiohttp.ClientResponse) -> bytes:
    """What comes of a refusal's body, within bounds."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(*FOREIGN):
        async with asyncio.timeout(REFUSAL_WAIT):
            while size < MAX_REFUSAL and (data := await response.content.readany()):
                parts.append(data)
                size += len(data)
    return b"".join(parts)
