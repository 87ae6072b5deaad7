"""What both drivers send, and what they make of an answer's head. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from enginekit._version import __version__
from enginekit.drivers._target import Site, parse
from enginekit.engine import Budgets, Call, Engine, Target
from enginekit.errors import BadRequest, ConfigError, EngineKitError, Overloaded, Phase, Redirected

MAX_REFUSAL = 1024 * 1024
"""Bytes read of the body of a refusal."""
REFUSAL_WAIT = 5.0
"""Seconds that the body of a refusal may take."""
MAX_ANSWER = 512 * 1024 * 1024
"""Bytes of one whole answer."""
RETURN_WAIT = 0.25
"""Seconds a finished reply's connection may take to reach the end of its body and be kept."""

STALE_WITHIN = 1.0
"""Seconds after sending in which a connection that had been idle may turn out to be stale. A peer that
closed it meanwhile says so within a round trip; one that hangs up later was at work on the request."""

_write_json = json.JSONEncoder(allow_nan=False).encode
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request ready for the wire. `path` is percent-encoded and holds the target's prefix."""

    site: Site
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None

    @property
    def safe(self) -> bool:
        """Whether the server may get it twice: it only asks, so nothing is worked on (RFC 9110 9.2.1)."""
        return self.method in ("GET", "HEAD")


def prepare(call: Call) -> Outgoing:
    """The request of a call; the same for both drivers.

    Raises BadRequest for a body that cannot be written as JSON and ConfigError for a header that
    cannot be sent.
    """
    site, base = _base(call.target)
    headers = base.copy()
    for name, value in call.headers:
        headers[name.lower()] = _checked(name, value)
    body = None
    if call.json is not None:
        try:
            body = _write_json(call.json).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequest(
                f"the request cannot be written as JSON: {error}", url=call.target.base_url
            ) from error
        headers.setdefault("content-type", "application/json")
    path = _encoded(site.prefix + call.path)
    return Outgoing(site=site, method=call.method, path=path, headers=headers, body=body)


@lru_cache(maxsize=1024)
def _encoded(path: str) -> str:
    return quote(path, safe="/?&=%:@!$'()*+,;~-._[]")


@lru_cache(maxsize=256)
def _base(target: Target) -> tuple[Site, dict[str, str]]:
    headers = {
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": f"enginekit/{__version__}",
    }
    for name, value in target.headers:
        headers[name.lower()] = _checked(name, value)
    return parse(target.base_url), headers


def _checked(name: str, value: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ConfigError(f"{name!r} is not a header name")
    value = value.strip()
    if _BAD_VALUE.search(value):
        raise ConfigError(f"the value of header {name!r} holds a control character")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise ConfigError(
            f"the value of header {name!r} holds a character beyond Latin-1"
        ) from None
    return value


def redirected(call: Call, status: int, headers: Mapping[str, str], engine: str = "") -> Redirected:
    """The error for a 3xx: it is never followed, for the prompt and the key would go along."""
    location = headers.get("location", "")
    who = f"{engine} at {call.target.base_url}" if engine else call.target.base_url
    return Redirected(
        f"{who} answered {status} and points to {location or 'nowhere'}; "
        "the request was not repeated there",
        hint="set base_url to the address that answers itself",
        engine=engine,
        url=call.target.base_url,
        status=status,
        location=location,
    )


def refused(
    engine: Engine, call: Call, status: int, headers: Mapping[str, str], body: bytes
) -> EngineKitError:
    """The engine's error for a refusal, with Retry-After filled in."""
    error = engine.failure(status, headers, body, path=call.path)
    if isinstance(error, Overloaded) and error.retry_after is None:
        error.retry_after = retry_after(headers.get("retry-after"))
    return error


def retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header: a number or a date; None when it is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value)
    return seconds if 0 <= seconds < 1e9 else None


def _seconds_until(value: str) -> float | None:
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def first_wait(call: Call, budgets: Budgets) -> tuple[Phase, float]:
    """Which budget the wait for the first chunk has: the whole reply's where nothing streams."""
    phase: Phase = "whole reply" if call.framing in ("json", "text") else "first token"
    return phase, budgets.before_first(call.framing)
