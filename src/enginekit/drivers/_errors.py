"""Foreign exceptions to ours, one table per library.

No exception of urllib3, aiohttp, ssl or the socket layer leaves the drivers: each is the
`__cause__` of one of our errors. A row names a class and what it means; the most specific class
wins. The tables are built on first use, so that neither library is imported for the other.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Literal

from enginekit.errors import (
    ConfigError,
    EngineFault,
    EngineKitError,
    EngineTimeout,
    MalformedReply,
    Phase,
    Unreachable,
)

Meaning = Literal["unreachable", "timeout", "tls", "malformed", "config", "proxy"]


class EndedEarlyError(ConnectionError):
    """Internal: the connection ended inside an answer, or before its first byte."""


class NotHTTPError(Exception):
    """Internal: what came is not HTTP."""


SYSTEM: Mapping[type[BaseException], Meaning] = {
    OSError: "unreachable",
    TimeoutError: "timeout",
    ssl.SSLError: "unreachable",
    ssl.SSLCertVerificationError: "tls",
    EndedEarlyError: "unreachable",
    NotHTTPError: "malformed",
    UnicodeError: "config",
    http.client.HTTPException: "malformed",
    http.client.RemoteDisconnected: "unreachable",
    http.client.IncompleteRead: "unreachable",
    http.client.InvalidURL: "config",
}
"""Exceptions of the standard library."""


@cache
def urllib3_table() -> Mapping[type[BaseException], Meaning]:
    """Every public exception of urllib3."""
    from urllib3 import exceptions as u

    return {
        **SYSTEM,
        u.HTTPError: "unreachable",
        u.PoolError: "unreachable",
        u.RequestError: "unreachable",
        u.SSLError: "tls",
        u.ProxyError: "proxy",
        u.ProxySchemeUnknown: "config",
        u.ProxySchemeUnsupported: "config",
        u.DecodeError: "malformed",
        u.ProtocolError: "unreachable",
        u.IncompleteRead: "unreachable",
        u.InvalidChunkLength: "malformed",
        u.InvalidHeader: "malformed",
        u.HeaderParsingError: "malformed",
        u.UnrewindableBodyError: "malformed",
        u.ResponseNotChunked: "malformed",
        u.BodyNotHttplibCompatible: "malformed",
        u.ResponseError: "malformed",
        u.TimeoutError: "timeout",
        u.LocationValueError: "config",
        u.URLSchemeUnknown: "config",
    }


@cache
def aiohttp_table() -> Mapping[type[BaseException], Meaning]:
    """Every public exception of aiohttp's client."""
    import aiohttp as a
    from aiohttp.http_exceptions import HttpProcessingError

    return {
        **SYSTEM,
        a.ClientError: "unreachable",
        a.ClientConnectionError: "unreachable",
        a.ClientOSError: "unreachable",
        a.ServerDisconnectedError: "unreachable",
        a.ClientSSLError: "unreachable",
        a.ClientConnectorCertificateError: "tls",
        a.ServerFingerprintMismatch: "tls",
        a.ClientProxyConnectionError: "proxy",
        a.ClientHttpProxyError: "proxy",
        a.ServerTimeoutError: "timeout",
        a.ClientResponseError: "malformed",
        a.ContentTypeError: "malformed",
        a.WSServerHandshakeError: "malformed",
        a.TooManyRedirects: "malformed",
        a.ClientPayloadError: "unreachable",
        a.InvalidURL: "config",
        HttpProcessingError: "malformed",
    }


def meaning(error: BaseException, table: Mapping[type[BaseException], Meaning]) -> Meaning | None:
    """What an exception means, by its most specific class in the table; None if it is not there."""
    for cls in type(error).__mro__:
        if cls in table:
            return table[cls]
    return None


def translate(
    error: BaseException,
    table: Mapping[type[BaseException], Meaning],
    *,
    url: str,
    engine: str = "",
    phase: Phase = "whole reply",
    budget: float = 0.0,
    proxy: str | None = None,
    worked: bool = False,
) -> EngineKitError:
    """Our error for a foreign one, with the foreign one as its cause.

    `phase` and `budget` are what a timeout means at this point. `worked` says that the server may
    have begun to work on the request: what it received must not be sent to it again.
    """
    if isinstance(error, EngineKitError):
        return error
    kind = meaning(error, table)
    who = _who(engine, url)
    ours: EngineKitError
    if kind == "timeout" and not _is_system_timeout(error):
        ours = timed_out(phase, budget, url=url, engine=engine)
    elif kind == "tls" or isinstance(_root(error), ssl.SSLCertVerificationError):
        ours = Unreachable(
            f"{who} has a certificate that is not trusted: {_words(error)}",
            hint="name the authority's PEM file: ca_file='/path/to/ca.pem'",
            engine=engine,
            url=url,
            retryable=False,
        )
    elif kind == "malformed":
        ours = MalformedReply(f"{who} does not speak HTTP: {_words(error)}", engine=engine, url=url)
    elif kind == "config":
        ours = ConfigError(f"{url!r} cannot be connected to: {_words(error)}")
    elif kind == "proxy" or (proxy and phase == "connect"):
        ours = Unreachable(
            f"{who} could not be reached through the proxy {proxy or ''}: {_words(error)}",
            hint="NO_PROXY lists the hosts that need no proxy",
            engine=engine,
            url=url,
        )
    elif phase == "connect":
        ours = Unreachable(
            f"nothing answers at {url}: {_words(error)}",
            engine=engine,
            url=url,
        )
    elif worked and not isinstance(_root(error), ssl.SSLError):
        ours = EngineFault(
            f"{who} ended the connection after the request was sent: {_words(error)}. It may have "
            "died of it, so the request is not sent again",
            hint="the server's own log says why it hung up",
            engine=engine,
            url=url,
            retryable=False,
        )
    else:
        ours = Unreachable(f"{who} ended the connection: {_words(error)}", engine=engine, url=url)
    ours.__cause__ = error
    return ours


def timed_out(phase: Phase, budget: float, *, url: str, engine: str = "") -> EngineTimeout:
    """The error for a budget that ran out."""
    what = {
        "connect": "no connection",
        "first token": "no token",
        "between tokens": "no further token",
        "whole reply": "no whole reply",
        "load": "not loaded",
    }[phase]
    return EngineTimeout(
        f"{_who(engine, url)}: {what} within {budget:g} s",
        hint=f"raise the budget: timeout={{{phase.replace(' ', '_')!r}: {max(budget * 2, 1):g}}}",
        engine=engine,
        url=url,
        phase=phase,
        budget=budget,
    )


def _who(engine: str, url: str) -> str:
    return f"{engine} at {url}" if engine else url


def _is_system_timeout(error: BaseException) -> bool:
    """A timeout of the kernel's (ETIMEDOUT), which no budget of ours set."""
    return isinstance(error, OSError) and error.errno == errno.ETIMEDOUT


def _root(error: BaseException) -> BaseException:
    """The exception underneath the library's wrappers."""
    for _ in range(8):
        inner = error.__cause__ or next(
            (arg for arg in error.args if isinstance(arg, BaseException)), None
        )
        if inner is None:
            break
        error = inner
    return error


def _words(error: BaseException) -> str:
    root = _root(error)
    if isinstance(root, ssl.SSLCertVerificationError):
        return root.verify_message or str(root)
    if isinstance(root, socket.gaierror):
        return f"the host name is not known ({root.strerror})"
    if isinstance(root, ssl.SSLError):
        return f"TLS failed ({root.reason or root})"
    if isinstance(root, OSError) and root.errno is not None:
        return os.strerror(root.errno).lower()  # asyncio puts words of its own into strerror
    return str(error) or type(error).__name__
