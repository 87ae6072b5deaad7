"""Blocking connections: dialled under one deadline, kept for reuse, dropped in a fork.

urllib3 makes each connection (TLS, certificate checks, proxy tunnels). Its pool is not used: it
repeats, redirects and reopens by rules of its own, and gives up the socket that a deadline needs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any, NamedTuple

from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig
from urllib3.util import parse_url
from urllib3.util.wait import wait_for_read

from enginekit.drivers import _tls
from enginekit.drivers._proxy import Proxy, proxy_for
from enginekit.drivers._target import Site
from enginekit.drivers._wire import Incoming, Wire
from enginekit.engine import Target

MAX_IDLE = 256
"""Idle connections kept for one destination."""
MAX_IDLE_SECONDS = 55.0
"""Longest time an idle connection is kept; most servers and balancers close them at 60."""

LAST_BYTES = 0.02
"""Seconds that the end of a finished reply's body may take when its connection is wanted again."""


class Route(NamedTuple):
    """All that decides whether one connection may stand for another."""

    site: Site
    proxy: Proxy | None
    ca_file: str | None
    client_cert: str | None
    verify: bool

    @classmethod
    def to(cls, site: Site, target: Target) -> Route:
        """The route to a target; asks the environment for a proxy."""
        return cls(
            site,
            proxy_for(site, target.proxy),
            target.ca_file,
            target.client_cert,
            target.verify,
        )

    @property
    def absolute(self) -> bool:
        """Whether requests name the whole URL, as a proxy for plain HTTP wants."""
        return self.proxy is not None and not self.site.tls


class Link:
    """A connection. `used` counts the answers it has given; `last` is the one not yet drained."""

    __slots__ = ("idle_since", "last", "pid", "route", "used", "wire")

    def __init__(self, route: Route, sock: Any) -> None:
        self.route = route
        self.wire = Wire(sock)
        self.used = 0
        self.idle_since = 0.0
        self.last: Incoming | None = None
        self.pid = os.getpid()

    def close(self) -> None:
        """Close for good."""
        with contextlib.suppress(OSError):
            self.wire.sock.close()

    def hang_up(self) -> None:
        """End the conversation from another thread: a reader wakes up, the server notices."""
        if self.pid != os.getpid():
            return
        sock: Any = self.wire.sock
        with contextlib.suppress(OSError):
            socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it, as far as can be told without sending."""
        if time.monotonic() - self.idle_since > MAX_IDLE_SECONDS:
            return False
        if self.last is not None and not self.last.ended_within(LAST_BYTES):
            return False
        self.last = None
        try:
            return not wait_for_read(self.wire.sock, timeout=0.0)
        except (OSError, ValueError):
            return False


class Pool:
    """Idle connections, last in first out. Safe for threads."""

    def __init__(self) -> None:
        self._idle: dict[Route, list[Link]] = {}
        self._lock = threading.Lock()

    def take(self, route: Route) -> Link | None:
        """An idle connection that seems alive, or None."""
        while True:
            with self._lock:
                links = self._idle.get(route)
                if not links:
                    return None
                link = links.pop()
                if not links:
                    del self._idle[route]
            if link.usable:
                return link
            link.close()

    def give(self, link: Link, answer: Incoming) -> None:
        """Keep a connection whose answer is done with; its very end may still be under way."""
        if not answer.keep or (answer.over and not answer.reusable) or link.pid != os.getpid():
            link.close()
            return
        now = time.monotonic()
        link.used += 1
        link.idle_since = now
        link.last = None if answer.over else answer
        with self._lock:
            links = self._idle.setdefault(link.route, [])
            links.append(link)
            # The first has been idle for longest.
            full = len(links) > MAX_IDLE or now - links[0].idle_since > MAX_IDLE_SECONDS
            oldest = links.pop(0) if full else None
        if oldest is not None:
            oldest.close()

    def __del__(self) -> None:
        self.clear()

    def after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that does not exist here."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Close every idle connection."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for links in idle.values():
            for link in links:
                link.close()

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        with self._lock:
            return sum(map(len, self._idle.values()))


# ------------------------------------------------------------------------------------ dialling


def connect(route: Route, seconds: float) -> Link:
    """A new connection, ready for a request: name look-up, TCP, proxy and TLS within `seconds`.

    The look-up itself cannot be interrupted; it counts. Raises OSError or an error of urllib3's.
    """
    deadline = time.monotonic() + seconds
    site, proxy = route.site, route.proxy
    host, port = (site.host, site.port) if proxy is None else (proxy.host, proxy.port)
    connection: HTTPConnection
    if not site.tls and (proxy is None or not proxy.tls):
        connection = _Plain(host, port, timeout=seconds)
    else:
        context = _tls.context(route.ca_file, route.client_cert, route.verify)
        connection = _Secure(host, port, timeout=seconds, ssl_context=context)
    if proxy is not None and site.tls:
        connection.proxy = parse_url(proxy.url)
        connection.proxy_config = ProxyConfig(
            _tls.context() if proxy.tls else None, False, None, None
        )
        connection.set_tunnel(
            site.host, site.port, dict(proxy.headers), "https" if proxy.tls else "http"
        )
    connection.enginekit_dial = (site.socket_path, deadline)
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return Link(route, connection.sock)


class _Dials:
    enginekit_dial: tuple[str | None, float]
    _dns_host: str
    port: int

    def _new_conn(self) -> socket.socket:
        path, deadline = self.enginekit_dial
        if path is not None:
            return dial_unix(path, deadline)
        return dial(self._dns_host, self.port, deadline)


class _Plain(_Dials, HTTPConnection):
    pass


class _Secure(_Dials, HTTPSConnection):
    pass


def dial(host: str, port: int, deadline: float) -> socket.socket:
    """A TCP connection to the first address that answers.

    Each address gets an equal share of what is left, so that one which swallows packets does not
    cost the others their turn. The socket's timeout is what remains until `deadline`.
    """
    found = socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM)
    failed: OSError | None = None
    for number, (family, kind, protocol, _, address) in enumerate(found):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(left / (len(found) - number))
            sock.connect(address)
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed or TimeoutError


def dial_unix(path: str, deadline: float) -> socket.socket:
    """A connection to a Unix socket. Raises OSError, also where there are none (Windows)."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this platform has no Unix sockets in Python")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
