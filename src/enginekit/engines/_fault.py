"""From a refusal's status and body to one of our errors.

`read_fault` understands every shape of error body that was recorded from the six engines; a table
of `Case` rows, first match wins, decides what it means. Engines put their own rows before
`COMMON`, which covers what all HTTP servers share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from enginekit.engine import Engine
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineError,
    EngineFault,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Redirected,
    Unauthorized,
    Unsupported,
)

SHOWN: Final = 2000
"""Characters of a body that an error keeps: some servers answer with whole tracebacks."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Response:
    """The part of an HTTP response that tracing code looks for on an exception."""

    __slots__ = ("content", "headers", "status_code")

    def __init__(self, status_code: int, headers: Mapping[str, str], content: bytes) -> None:
        self.status_code = status_code
        self.headers = dict(headers)
        self.content = content

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is not."""
        return json.loads(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A refusal, taken apart. Missing parts are empty."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    path: str = ""
    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""
    detail: Any = None
    is_json: bool = False
    error: Mapping[str, Any] = field(default_factory=dict)

    @property
    def meant(self) -> int:
        """The status that is meant: an error event inside a 200 stream carries its own as `code`."""
        if self.status == 200 and self.code.isdigit() and 400 <= int(self.code) < 600:
            return int(self.code)
        return self.status


def read_fault(status: int, headers: Mapping[str, str], body: bytes, *, path: str = "") -> Fault:
    """Take an error body apart, whatever its shape and whatever its Content-Type says.

    Shapes: `{"error": {…}}`, `{"error": "text"}`, an error text that is JSON again, a JSON string
    that holds JSON, `{"detail": "text" | [{loc, msg}]}`, `{"message": …}`, plain text, nothing.
    """
    text = body.decode("utf-8", "replace").strip()
    value = _json(text)
    is_json = value is not None
    if isinstance(value, str):
        inner = _json(value)
        value = inner if isinstance(inner, dict) else {"error": value}
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict):
        return Fault(status=status, headers=headers, body=body, path=path, message=_clean(text))
    error = _error_of(value)
    message = str(error.get("message") or error.get("msg") or "")
    # A runner's own error comes as JSON text inside the message of the server in front of it.
    for _ in range(3):
        start = message.find('{"error"')
        nested = _json(message[start:]) if start >= 0 else None
        if not isinstance(nested, dict):
            break
        error = {**error, **_error_of(nested)}
        message = str(error.get("message") or "")
    return Fault(
        status=status,
        headers=headers,
        body=body,
        path=path,
        message=_clean(message),
        type=_word(error.get("type") or value.get("error_type")),
        code=_word(code_of(error)),
        param=_word(error.get("param")),
        detail=value.get("detail"),
        is_json=is_json,
        error=error,
    )


def code_of(error: Mapping[str, Any]) -> Any:
    """The code of an error's fields; where there is none, the HTTP status they give as `status`."""
    code, status = error.get("code"), error.get("status")
    return status if not code and isinstance(status, int) and status >= 400 else code


def _error_of(value: Mapping[str, Any]) -> dict[str, Any]:
    error = value.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    detail = value.get("detail")
    if isinstance(detail, list):
        return {"message": "; ".join(_detail_line(item) for item in detail)}
    if detail is not None:
        return {"message": str(detail)}
    return dict(value)


def _detail_line(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(step) for step in item.get("loc") or ())
    return f"{place}: {item.get('msg', '')}" if place else str(item.get("msg", ""))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _word(value: Any) -> str:
    return "" if value is None else str(value)


def _clean(message: str) -> str:
    """The sentence without what a proxy wrapped around it (Ray Serve) and without colours."""
    message = _ANSI.sub("", message).strip()
    message = message.removeprefix("Message: ")
    cut = message.find(" (Request ID: ")
    return message[:cut] if cut > 0 else message


# ---------------------------------------------------------------------------------- the table

Facts = Callable[[Fault, "re.Match[str] | None"], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: which refusals it takes and what they mean. Empty conditions take everything.

    Attributes:
        name: what a test and a log call this row.
        text: a regular expression searched in the message, case ignored.
        facts: makes attributes of the error from the fault and the match.
        says: a sentence put before the server's own; may name groups of the match.
        hint: what helps.
    """

    error: type[EngineError]
    name: str
    status: tuple[int, ...] = ()
    type: str = ""
    param: str = ""
    text: str = ""
    path: str = ""
    facts: Facts | None = None
    says: str = ""
    hint: str = ""

    def match(self, fault: Fault) -> re.Match[str] | bool | None:
        """A truthy value when this row takes the fault; the match if it has a text."""
        if self.status and fault.meant not in self.status:
            return False
        if self.type and fault.type != self.type:
            return False
        if self.param and fault.param != self.param:
            return False
        if self.path and self.path not in fault.path:
            return False
        if self.text:
            return re.search(self.text, fault.message, re.IGNORECASE)
        return True


def overflow_facts(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """`limit` and `requested` of a ContextOverflow, from fields or from named groups."""
    groups = match.groupdict() if match is not None else {}
    limit = fault.error.get("n_ctx", groups.get("limit"))
    requested = fault.error.get("n_prompt_tokens", groups.get("requested"))
    return {
        "limit": int(limit) if limit is not None else None,
        "requested": int(requested) if requested is not None else None,
    }


def model_facts(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """`model` of a ModelNotFound, from the group `model`."""
    return {"model": (match.groupdict().get("model") or "") if match is not None else ""}


def retry_facts(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    """`retry_after` in seconds, from the header when it is a number."""
    value = fault.headers.get("retry-after", "")
    try:
        return {"retry_after": max(0.0, float(value))}
    except ValueError:
        return {"retry_after": None}


def _moved(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    return {"location": fault.headers.get("location", "")}


def _route(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    return {"feature": fault.path, "rule": "route.absent"}


def _timed_out(fault: Fault, match: re.Match[str] | None) -> Mapping[str, Any]:
    return {"phase": "whole reply"}


COMMON: Final[tuple[Case, ...]] = (
    Case(
        error=Redirected,
        name="redirected",
        status=(300, 301, 302, 303, 307, 308),
        facts=_moved,
        says="it redirects elsewhere, which is not followed with a prompt and a key",
        hint="set the base URL to the address it names, if you trust it",
    ),
    Case(
        error=Unauthorized,
        name="unauthorized",
        status=(401, 403),
        says="it wants an API key, or refuses the one sent",
        hint="set ENGINEKIT_API_KEY or api_key",
    ),
    Case(
        error=EngineTimeout,
        name="server-timeout",
        status=(408,),
        facts=_timed_out,
        says="it gave up waiting for its own backend",
    ),
    Case(error=Overloaded, name="overloaded", status=(429,), facts=retry_facts),
    Case(
        error=Unsupported,
        name="route-absent",
        status=(404, 405),
        facts=_route,
        says="it has no such route",
    ),
    Case(error=Unsupported, name="not-implemented", status=(501,)),
    Case(error=Overloaded, name="unavailable-with-date", status=(503,), facts=retry_facts),
    Case(error=BadRequest, name="bad-request", status=tuple(range(400, 500))),
    Case(error=EngineFault, name="fault"),
)
"""What every HTTP server shares; comes after an engine's own rows."""


def classify(engine: Engine, cases: Sequence[Case], fault: Fault) -> EngineError:
    """The error that the first matching row of `cases` and then `COMMON` makes of a fault."""
    for case in (*cases, *COMMON):
        found = case.match(fault)
        if found:
            match = found if isinstance(found, re.Match) else None
            return _error(engine, case, fault, match)
    raise AssertionError("COMMON ends with a row that takes everything")


def _error(engine: Engine, case: Case, fault: Fault, match: re.Match[str] | None) -> EngineError:
    says = case.says.format(**match.groupdict()) if match is not None and case.says else case.says
    told = fault.message or ("an empty body" if not fault.body else "")
    where = "inside the stream" if fault.status == 200 else f"HTTP {fault.status}"
    sentence = f"{engine.name} at {engine.target.base_url} answered {where}"
    tail = ": ".join(part for part in (says, told[:SHOWN]) if part)
    facts: dict[str, Any] = dict(case.facts(fault, match)) if case.facts is not None else {}
    if issubclass(case.error, ContextOverflow) and not facts:
        facts = dict(overflow_facts(fault, match))
    if issubclass(case.error, ModelNotFound) and not facts:
        facts = dict(model_facts(fault, match))
    return case.error(
        f"{sentence}: {tail}" if tail else sentence,
        hint=case.hint or None,
        engine=engine.name,
        url=engine.target.base_url,
        status=fault.status,
        code=fault.code or fault.type or None,
        body=fault.body.decode("utf-8", "replace")[:SHOWN],
        response=Response(fault.status, fault.headers, fault.body[: 16 * SHOWN]),
        **facts,
    )
