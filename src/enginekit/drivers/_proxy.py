"""The one place that decides whether a call goes through a proxy, for both drivers.

urllib3 ignores the environment, aiohttp too unless told to; and what each would do differs. Rules:
an explicit proxy wins; loopback and Unix sockets never use one from the environment; `NO_PROXY`
takes names (with their subdomains), addresses, networks (`10.0.0.0/8`), `host:port` and `*`.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from enginekit.drivers._target import Site
from enginekit.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy: its URL without credentials, and the header that carries them."""

    url: str
    host: str
    port: int
    tls: bool
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def proxy_for(site: Site, explicit: str | None) -> Proxy | None:
    """The proxy to use for a site, or None.

    `explicit` is the target's own setting: None asks the environment, "" forbids a proxy.
    Raises ConfigError for a proxy that is not an http:// or https:// URL.
    """
    if explicit is not None:
        return parse(explicit, "proxy") if explicit and site.socket_path is None else None
    if site.loopback:
        return None
    name = "HTTPS_PROXY" if site.tls else "HTTP_PROXY"
    url = _environment(name)
    if not url or bypassed(site.host, site.port, _environment("NO_PROXY")):
        return None
    return parse(url, name)


def _environment(name: str) -> str:
    value = os.environ.get(name.lower())
    # A CGI server turns a client's "Proxy:" header into HTTP_PROXY.
    if value is None and not (name == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ):
        value = os.environ.get(name)
    return (value or "").strip()


@lru_cache(maxsize=64)
def bypassed(host: str, port: int, no_proxy: str) -> bool:
    """Whether `NO_PROXY` exempts a host."""
    host = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for rule in no_proxy.lower().replace(",", " ").split():
        if rule == "*":
            return True
        name, colon, number = rule.rpartition(":")
        if colon and number.isdigit() and (":" not in name or name.endswith("]")):
            if int(number) != port:
                continue
            rule = name
        rule = rule.strip("[]").removeprefix("*").lstrip(".").rstrip(".")
        if address is not None:
            try:
                if address in ipaddress.ip_network(rule, strict=False):
                    return True
            except ValueError:
                continue
        elif rule and (host == rule or host.endswith(f".{rule}")):
            return True
    return False


@lru_cache(maxsize=16)
def parse(url: str, origin: str) -> Proxy:
    """A proxy from its URL; a bare `host:port` counts as http. `origin` names the setting."""
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{origin} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{origin} names a {parts.scheme}:// proxy; only http:// and https:// work",
            hint="list the host in NO_PROXY, or set proxy='' to go without",
        )
    headers: tuple[tuple[str, str], ...] = ()
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(pair.encode()).decode()
        headers = (("Proxy-Authorization", f"Basic {token}"),)
    host = parts.hostname
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    shown = f"[{host}]" if ":" in host else host
    return Proxy(
        url=f"{parts.scheme}://{shown}:{port}", host=host, port=port, tls=tls, headers=headers
    )
