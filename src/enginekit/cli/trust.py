"""`enginekit trust`: let keys go to an address that a project file or discovery named."""

from __future__ import annotations

import sys

from enginekit.config import trust as remember
from enginekit.config import trusted_origins
from enginekit.errors import ConfigError
from enginekit.kit.address import origin_of


def trust(origin: str | None = None, /) -> int:
    """Trust an origin (http://host:port) with your API keys. Without one: list those trusted.

    Parameters
    ----------
    origin
        The address as the error message named it.
    """
    if origin is None:
        origins = sorted(trusted_origins())
        for line in origins:
            sys.stdout.write(line + "\n")
        if not origins:
            sys.stderr.write("no address is trusted yet\n")
        return 0
    if "://" not in origin:
        raise ConfigError(f"{origin!r} is not an origin; use http://host:port")
    path = remember(origin_of(origin.rstrip("/")))
    sys.stderr.write(f"trusted {origin_of(origin)} (kept in {path})\n")
    return 0
