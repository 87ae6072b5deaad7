"""Fetching one image: the only code of `enginekit.kit.images` that touches a socket. Blocking."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import Any, NoReturn, TypeAlias

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from enginekit._version import __version__
from enginekit.drivers import _tls
from enginekit.kit import images
from enginekit.kit.images import Image, Limits, Place

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""Host and port to IP addresses, in the order to try them."""
Guard: TypeAlias = Callable[[str], str]
"""An IP address to why it may not be connected to, or ""."""

_CONNECT = 5.0
"""Seconds one address may take to answer the call."""
_ADDRESSES = 4
"""How many addresses of one name are tried."""
_BLOCK = 65536
_MOVED = frozenset({301, 302, 303, 307, 308})


def system_resolver(host: str, port: int) -> Sequence[str]:
    """The addresses the system's resolver gives."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch_image(
    url: str,
    *,
    limits: Limits | None = None,
    resolve: Resolve = system_resolver,
    guard: Guard = images.guarded,
) -> Image:
    """The image at a URL.

    The time limit covers redirects, connecting and every byte, so that a server that drips is late
    too; a name look-up cannot be interrupted, but counts. Raises Unsupported where a guard says no,
    DownloadError where no image comes.
    """
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds
    first = place = images.place_of(url)
    for _ in range(limits.redirects + 1):
        answer = _ask(place, deadline, limits, resolve, guard)
        if isinstance(answer, Image):
            return answer
        place = images.place_of(answer, place, first)
    return images.fail(first.shown, f"it was redirected more than {limits.redirects} times")


def _ask(
    place: Place, deadline: float, limits: Limits, resolve: Resolve, guard: Guard
) -> Image | str:
    """One request: the image, or where it was redirected to."""
    addresses = _addresses(place, resolve, guard)
    try:
        with _connected(place, addresses, deadline, guard) as connection:
            connection.request(
                "GET",
                place.path,
                headers={
                    "Host": place.netloc,
                    "User-Agent": f"enginekit/{__version__}",
                    "Accept": "image/png, image/jpeg, image/webp, image/gif",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                },
                preload_content=False,
                decode_content=False,
            )
            return _read(place, connection, deadline, limits)
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        if time.monotonic() >= deadline:
            _late(place, limits, error)
        images.fail(place.shown, str(error) or type(error).__name__, error)


def _addresses(place: Place, resolve: Resolve, guard: Guard) -> Sequence[str]:
    try:
        found = resolve(place.host, place.port)
    except (OSError, UnicodeError) as error:
        images.fail(place.shown, f"the name {place.host!r} has no address", error)
    for address in found:
        _check(place, address, guard)
    return found[:_ADDRESSES]


def _check(place: Place, address: str, guard: Guard) -> None:
    why = guard(address)
    if why:
        images.refuse(place.shown, f"its address {address} is guarded ({why})", "address")


@contextlib.contextmanager
def _connected(
    place: Place, addresses: Sequence[str], deadline: float, guard: Guard
) -> Iterator[HTTPConnection]:
    """A connection to the first address that answers, hung up at the deadline."""
    last: Exception = OSError("its name has no address")
    for address in addresses:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time ran out")
        connection = _connection(place, address, min(left, _CONNECT))
        try:
            connection.connect()
        except (HTTPError, OSError) as error:
            connection.close()
            last = error
            continue
        break
    else:
        raise last
    sock: Any = connection.sock
    alarm = threading.Timer(max(deadline - time.monotonic(), 0.0), _hang_up, (sock,))
    alarm.daemon = True
    alarm.start()
    try:
        _check(place, str(sock.getpeername()[0]), guard)
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        yield connection
    finally:
        alarm.cancel()
        connection.close()


def _connection(place: Place, address: str, timeout: float) -> HTTPConnection:
    if place.scheme == "http":
        return HTTPConnection(address, place.port, timeout=timeout)
    return HTTPSConnection(
        address,
        place.port,
        timeout=timeout,
        server_hostname=place.host,
        ssl_context=_tls.context(),
    )


def _hang_up(sock: Any) -> None:
    # A timeout on the socket begins anew with each byte; this does not.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)


def _read(place: Place, connection: HTTPConnection, deadline: float, limits: Limits) -> Image | str:
    response = connection.getresponse()
    try:
        if time.monotonic() >= deadline:
            _late(place, limits)
        if response.status in _MOVED:
            location = response.headers.get("location", "")
            return location or images.fail(place.shown, "it was redirected to nowhere")
        if response.status != 200:
            images.fail(place.shown, f"the server answered {response.status}")
        name = images.declared(response.headers.get("content-type", ""), place.shown)
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            images.fail(place.shown, "it came compressed although that was not asked for")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limits.size:
            _too_large(place, limits)
        data = bytearray()
        while block := response.read(_BLOCK):
            data += block
            if len(data) > limits.size:
                _too_large(place, limits)
        # A socket that was hung up at the deadline reads like one that ended well.
        if time.monotonic() >= deadline:
            _late(place, limits)
        whole = bytes(data)
        return Image(
            data=whole, mime_type=images.checked(whole, name, place.shown), host=place.host
        )
    finally:
        response.close()


def _late(place: Place, limits: Limits, cause: BaseException | None = None) -> NoReturn:
    images.fail(place.shown, f"it was not there within {limits.seconds:g} s", cause)


def _too_large(place: Place, limits: Limits) -> NoReturn:
    images.fail(place.shown, f"it is larger than {limits.size:,} bytes")
