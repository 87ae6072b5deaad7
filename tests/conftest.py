"""Every test starts from a clean environment and can reach nothing but loopback."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from enginekit import registry
from tests.support import marks
from tests.support.server import Server

_PREFIXES = ("ENGINEKIT_", "OLLAMA_", "VLLM_", "HF_", "HUGGING_FACE_", "OPENAI_", "XDG_", "LLAMA_")
_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def _is_loopback(address: Any) -> bool:
    if not isinstance(address, tuple):  # a path, or an abstract Unix name
        return True
    host = str(address[0]).partition("%")[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BlockedSocketError(Exception):
    """A test tried to leave the machine. Not an OSError, so that nothing mistakes it for one."""


@cache
def _default_ports() -> frozenset[int]:
    """Where discovery looks: a server that this machine happens to run there is no part of a test."""
    urls = (registry.engine_class(name).profile.default_url for name in registry.names())
    return frozenset(port for url in urls if (port := urlsplit(url).port))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make `notyet` and `never` strict, and refuse one without a reason."""
    marks.apply(items)


@pytest.fixture(autouse=True)
def loopback_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections and look-ups beyond loopback, unless the test is marked `live`."""
    if request.node.get_closest_marker("live"):
        return
    elsewhere = frozenset() if request.node.get_closest_marker("embedded") else _default_ports()

    def guard(name: str) -> None:
        original = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any) -> Any:
            if not _is_loopback(address):
                raise BlockedSocketError(f"a test may not connect to {address!r}")
            if isinstance(address, tuple) and address[1] in elsewhere:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing runs here in a test")
            return original(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)

    guard("connect")
    guard("connect_ex")
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_loopback((name, 0)):
            if str(name).endswith(".invalid"):  # RFC 6761: never resolves
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            raise BlockedSocketError(f"a test may not look up {name!r}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(autouse=True)
def clean_environment(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path | None:
    """No setting of the person or machine that runs the tests; HOME is an empty folder.

    Tests marked `live` or `embedded` keep the caches, where models are.
    """
    for name in list(os.environ):
        if name.startswith(_PREFIXES) or name.upper() in _NAMES:
            if request.node.get_closest_marker("live") and name.startswith("XDG_"):
                continue
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("live") or request.node.get_closest_marker("embedded"):
        return None
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    return home


@pytest.fixture
def server() -> Iterator[Server]:
    """A scripted server on a free port."""
    with Server() as running:
        yield running
