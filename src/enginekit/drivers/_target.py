"""A base URL, taken apart once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from enginekit.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where to connect to and what to say there.

    Attributes:
        host: name or address, IPv6 without brackets; `"localhost"` for a Unix socket.
        authority: what the Host header says.
        prefix: path that comes before every call's path; "" or `/…` without a slash at the end.
        socket_path: path of the Unix socket, or None.
        loopback: whether nothing can be between us and the server, a proxy least of all.
    """

    tls: bool
    host: str
    port: int
    authority: str
    prefix: str = ""
    socket_path: str | None = None
    loopback: bool = False

    @property
    def origin(self) -> str:
        """Scheme, host and port as a URL."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"


@lru_cache(maxsize=256)
def parse(base_url: str) -> Site:
    """The parts of a base URL.

    Raises ConfigError for a scheme other than http, https and unix, a missing host, a port out of
    range, or a user name in the URL (it would end up in logs).
    """
    if base_url.startswith("unix:"):
        path = base_url.removeprefix("unix:")
        path = path[2:] if path.startswith("//") else path
        if not path.startswith("/"):
            raise ConfigError(
                f"{base_url!r} is not unix:///path/to/socket: the path is not absolute"
            )
        return Site(
            tls=False,
            host="localhost",
            port=0,
            authority="localhost",
            socket_path=path,
            loopback=True,
        )
    try:
        parts = urlsplit(base_url)
        port = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ConfigError(f"{base_url!r} is not a URL: {error}") from error
    if parts.scheme not in _PORTS:
        raise ConfigError(
            f"{base_url!r} must begin with http://, https:// or unix://",
            hint=f"base_url='http://{base_url}'" if "://" not in base_url else None,
        )
    if not host:
        raise ConfigError(f"{base_url!r} names no host")
    if "@" in parts.netloc:
        raise ConfigError(
            f"the URL of host {host!r} holds a user name or a password, which would end up in logs",
            hint="pass a key as api_key",
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"{base_url!r} must end with its path, without ? or #")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError as error:
            raise ConfigError(f"{host!r} is not a host name: {error}") from error
    shown = f"[{host}]" if ":" in host else host
    default = _PORTS[parts.scheme]
    port = default if port is None else port
    return Site(
        tls=parts.scheme == "https",
        host=host,
        port=port,
        authority=shown if port == default else f"{shown}:{port}",
        prefix=parts.path.rstrip("/"),
        loopback=is_loopback(host),
    )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
