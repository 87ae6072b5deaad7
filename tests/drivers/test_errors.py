"""Every public exception of the libraries underneath has a row, and none leaves the drivers."""

from __future__ import annotations

import http.client
import inspect
import socket
import ssl

import aiohttp
import aiohttp.http_exceptions
import pytest
import urllib3.exceptions

from enginekit.drivers import _errors, async_, sync
from enginekit.errors import EngineKitError, EngineTimeout, MalformedReply, Unreachable


def exceptions_of(module, base=Exception):
    return sorted(
        (
            value
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, base)
            and not issubclass(value, Warning)
            and not name.startswith("_")
        ),
        key=lambda cls: cls.__name__,
    )


SERVER_SIDE = (aiohttp.PayloadEncodingError,) if hasattr(aiohttp, "PayloadEncodingError") else ()
URLLIB3 = exceptions_of(urllib3.exceptions, urllib3.exceptions.HTTPError)
AIOHTTP = exceptions_of(aiohttp, aiohttp.ClientError) + exceptions_of(aiohttp.http_exceptions)
SYSTEM = [
    *exceptions_of(http.client),
    *exceptions_of(ssl),
    *exceptions_of(socket, OSError),
    *[cls for cls in OSError.__subclasses__() if cls.__module__ == "builtins"],
    *[cls for cls in ConnectionError.__subclasses__() if cls.__module__ == "builtins"],
]


def made(cls):
    """An instance without its constructor, whose arguments differ from class to class."""
    error = cls.__new__(cls)
    Exception.__init__(error, "words")
    return error


@pytest.mark.parametrize("cls", URLLIB3, ids=lambda cls: cls.__name__)
def test_urllib3_is_mapped(cls):
    assert _errors.meaning(made(cls), _errors.urllib3_table()) is not None
    assert issubclass(cls, sync.FOREIGN)


@pytest.mark.parametrize("cls", AIOHTTP, ids=lambda cls: cls.__name__)
def test_aiohttp_is_mapped(cls):
    if issubclass(cls, EngineKitError):
        pytest.fail("our own")
    assert _errors.meaning(made(cls), _errors.aiohttp_table()) is not None
    assert issubclass(cls, async_.FOREIGN)


@pytest.mark.parametrize("table", [_errors.urllib3_table(), _errors.aiohttp_table()])
@pytest.mark.parametrize("cls", SYSTEM, ids=lambda cls: cls.__name__)
def test_the_standard_library_is_mapped(cls, table):
    assert _errors.meaning(made(cls), table) is not None


def test_rows_mean_what_they_should():
    u, a = urllib3.exceptions, aiohttp

    def urllib3_means(cls):
        return _errors.meaning(made(cls), _errors.urllib3_table())

    def aiohttp_means(cls):
        return _errors.meaning(made(cls), _errors.aiohttp_table())

    assert urllib3_means(u.NewConnectionError) in ("unreachable", "timeout")
    assert urllib3_means(u.ReadTimeoutError) == "timeout"
    assert urllib3_means(u.ConnectTimeoutError) == "timeout"
    assert urllib3_means(u.SSLError) == "tls"
    assert urllib3_means(u.ProxyError) == "proxy"
    assert urllib3_means(u.LocationParseError) == "config"
    assert aiohttp_means(a.ClientConnectorError) == "unreachable"
    assert aiohttp_means(a.ServerDisconnectedError) == "unreachable"
    assert aiohttp_means(a.ClientPayloadError) == "unreachable"
    assert aiohttp_means(a.ClientConnectorCertificateError) == "tls"
    assert aiohttp_means(a.ConnectionTimeoutError) == "timeout"
    assert aiohttp_means(a.ClientProxyConnectionError) == "proxy"
    assert aiohttp_means(a.InvalidURL) == "config"


def translated(error, **more):
    return _errors.translate(error, _errors.urllib3_table(), url="http://h:1", **more)


def test_a_translation_keeps_the_cause_and_says_where():
    original = ConnectionResetError(104, "Connection reset by peer")
    ours = translated(original, engine="toy")
    assert isinstance(ours, Unreachable)
    assert isinstance(ours, ConnectionError)
    assert ours.__cause__ is original
    assert "toy at http://h:1" in str(ours)


def test_a_timeout_says_which_budget_and_how_to_raise_it():
    ours = translated(TimeoutError(), phase="first token", budget=3.0)
    assert isinstance(ours, EngineTimeout)
    assert "within 3 s" in str(ours)
    assert ours.hint == "raise the budget: timeout={'first_token': 6}"


def test_a_timeout_of_the_kernels_is_not_one_of_ours():
    ours = translated(TimeoutError(110, "Connection timed out"), phase="connect", budget=5.0)
    assert isinstance(ours, Unreachable)


def test_what_is_ours_already_stays_as_it_is():
    ours = MalformedReply("x")
    assert translated(ours) is ours


def test_the_root_of_a_wrapped_error_is_what_is_told():
    refused = ConnectionRefusedError(111, "Connection refused")
    wrapped = urllib3.exceptions.ProtocolError("Connection aborted.", refused)
    assert "connection refused" in str(translated(wrapped, phase="connect"))
