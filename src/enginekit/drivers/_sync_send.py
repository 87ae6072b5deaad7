"""One blocking request: sent, perhaps once more on a new connection, until its answer begins."""

from __future__ import annotations

import contextlib
import time

from urllib3.exceptions import HTTPError

from enginekit.drivers import _errors, _request
from enginekit.drivers._attempt import Meanings
from enginekit.drivers._errors import NotHTTPError
from enginekit.drivers._pool import Link, Pool, Route, connect
from enginekit.drivers._request import Outgoing
from enginekit.drivers._wire import Incoming
from enginekit.engine import Call
from enginekit.errors import (
    Phase,
)

FOREIGN = (OSError, NotHTTPError, HTTPError, UnicodeError)
"""What may come out of the socket layer and urllib3; `_errors` turns each into one of ours."""


class Attempt(Meanings):
    """One request under way: its budget, and what errors mean at this point."""

    __slots__ = ()

    _foreign = staticmethod(_errors.urllib3_table)

    def __init__(
        self,
        call: Call,
        request: Outgoing,
        engine: str,
        phase: Phase,
        budget: float,
        connect_budget: float,
    ) -> None:
        now = time.monotonic()
        super().__init__(call, request, engine, phase, budget, connect_budget, now)

    def send(self, pool: Pool) -> tuple[Link, Incoming]:
        """Send the request and read the head of the answer.

        On a connection that had been idle and turns out to be dead at once, before any byte of the
        answer, the request is sent once more on a new one.
        """
        request = self._request
        route = Route.to(request.site, self.call.target)
        self.proxy = None if route.proxy is None else route.proxy.url
        link = pool.take(route)
        if link is not None:
            link.wire.came = False
            began = time.monotonic()
            try:
                return link, self._exchange(link, request)
            except FOREIGN as error:
                link.close()
                late = not request.safe and time.monotonic() - began > _request.STALE_WITHIN
                if late or link.wire.came or isinstance(error, TimeoutError | NotHTTPError):
                    raise self.unanswered(error) from error
            except BaseException:
                link.close()
                raise
        link = self._dial(route)
        try:
            return link, self._exchange(link, request)
        except FOREIGN as error:
            link.close()
            raise self.unanswered(error) from error
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


def read_all(answer: Incoming, limit: int, *, keep_partial: bool = False) -> bytes | None:
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
