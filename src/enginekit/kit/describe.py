"""One line about the engine in use: name, version, address, process, wire, model."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from enginekit.kit.route import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is in use. `pid` is known for our own servers and those listening on this machine."""

    engine: str
    version: str | None
    url: str
    pid: int | None
    wire: str
    model: str
    context_window: int | None

    def __str__(self) -> str:
        parts = [
            self.engine + (f" {self.version}" if self.version else ""),
            self.url,
            f"pid {self.pid}" if self.pid else "",
            self.wire,
            self.model,
            f"{self.context_window} tokens" if self.context_window else "",
        ]
        return " · ".join(part for part in parts if part)


def describe(route: Route) -> Description:
    """Describe a route that was resolved. Looks at this machine's process table, not the network."""
    engine = route.engine
    facts = engine.facts
    pid = getattr(route.lease, "pid", None) if route.lease else None
    return Description(
        engine=engine.name,
        version=engine.version,
        url=engine.target.base_url,
        pid=pid or listening_pid(engine.target.base_url),
        wire=engine.profile.wire,
        model=route.model or (facts.models[0].id if facts and facts.models else ""),
        context_window=facts.context_window if facts else None,
    )


def listening_pid(url: str) -> int | None:
    """The process that listens at a loopback address, or None if that cannot be seen."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") or not parts.port:
        return None
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            place = connection.laddr
            if connection.status == psutil.CONN_LISTEN and place and place.port == parts.port:
                return int(connection.pid) if connection.pid else None
    except (psutil.Error, OSError):
        return None
    return None
