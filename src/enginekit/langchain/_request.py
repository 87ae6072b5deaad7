"""Fields and keywords of a generating model to our requests. Pure apart from reading the instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from enginekit.errors import ConfigError
from enginekit.langchain._keywords import unknown
from enginekit.langchain._tools import to_constraint, to_tool_choice, to_tools
from enginekit.types import UNSET, Sampling

SAMPLING: Final = tuple(field.name for field in fields(Sampling))
"""Names of the sampling fields; instance fields and per-call keywords alike."""

REQUEST_FIELDS: Final = (
    "reasoning",
    "context_window",
    "keep_alive",
    "lora",
    "parallel_tool_calls",
    "template_options",
    "engine_options",
    "lossy",
    "defaults",
)
"""Further instance fields that a single call may override."""

CHAT_KEYWORDS: Final = (
    "model",
    *SAMPLING,
    *REQUEST_FIELDS,
    "tools",
    "tool_choice",
    "response_format",
    "show_schema",
)
"""Every keyword that a chat call takes besides `stop`."""

COMPLETION_FIELDS: Final = (
    "suffix",
    "context_window",
    "keep_alive",
    "lora",
    "engine_options",
    "lossy",
    "defaults",
)
COMPLETION_KEYWORDS: Final = ("model", *SAMPLING, *COMPLETION_FIELDS, "response_format")
"""Every keyword that a text completion takes besides `stop`."""

_IGNORED: Final = frozenset({"stream", "strict", "ls_structured_output_format"})
"""Keywords of the framework itself: they choose a route through it and are not for the engine."""

_MERGED: Final = frozenset({"engine_options", "template_options"})
_TOOL_KEYWORDS: Final = frozenset({"tools", "tool_choice", "response_format"})
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def sampling_of(values: Mapping[str, Any]) -> Sampling:
    """The sampling settings among `values`; None counts as not given."""
    return Sampling(
        **{
            name: _sampling_value(name, values[name])
            for name in SAMPLING
            if values.get(name) is not None
        }
    )


def request_fields(
    values: Mapping[str, Any], names: Sequence[str] = REQUEST_FIELDS
) -> dict[str, Any]:
    """Keyword arguments of a request from instance fields; None counts as not given."""
    made = {
        name: _field_value(name, values[name]) for name in names if values.get(name) is not None
    }
    made["sampling"] = sampling_of(values)
    return made


def with_call(
    base: Mapping[str, Any],
    stop: Sequence[str] | str | None,
    kwargs: Mapping[str, Any],
    *,
    where: str,
    known: Sequence[str] = CHAT_KEYWORDS,
) -> dict[str, Any]:
    """The instance's request fields with those of one call laid over them.

    Raises UnknownSetting for a keyword that does not exist, naming the nearest one, and ConfigError
    for a value that makes no sense.
    """
    made = dict(base)
    sampling: dict[str, Any] = {}
    if stop is not None:
        sampling["stop"] = _sampling_value("stop", stop)
    for name, value in kwargs.items():
        if name not in known:
            if name in _IGNORED:
                continue
            raise unknown(name, ("stop", *known), where)
        if value is None or name in _TOOL_KEYWORDS or name == "show_schema":
            continue
        if name in SAMPLING:
            sampling[name] = _sampling_value(name, value)
        elif name in _MERGED:
            made[name] = {**made.get(name, {}), **value}
        else:
            made[name] = _field_value(name, value)
    if sampling:
        made["sampling"] = replace(made["sampling"], **sampling)
    if not _TOOL_KEYWORDS.isdisjoint(kwargs):
        _add_tools(made, kwargs)
    return made


def with_schema_shown(made: dict[str, Any], show: bool | None) -> dict[str, Any]:
    """The request fields with the wish, if it is one, that the model sees its schema."""
    constraint = made.get("constraint")
    if not show or constraint is None:
        return made
    return {**made, "constraint": replace(constraint, shown=True)}


def _add_tools(made: dict[str, Any], kwargs: Mapping[str, Any]) -> None:
    tools = to_tools(kwargs.get("tools") or ())
    if tools:
        made["tools"] = tools
    choice = to_tool_choice(kwargs.get("tool_choice"), [tool.name for tool in tools])
    if choice is not None and tools:
        made["tool_choice"] = choice
    elif choice is not None and choice.mode in ("required", "named"):
        raise ConfigError("tool_choice asks for a call but no tools were given")
    constraint = to_constraint(kwargs.get("response_format"))
    if constraint is not None:
        made["constraint"] = constraint


def _sampling_value(name: str, value: Any) -> Any:
    if name == "stop":
        texts = (value,) if isinstance(value, str) else tuple(value)
        return texts or UNSET
    return value


def _field_value(name: str, value: Any) -> Any:
    if name == "keep_alive":
        return seconds(value)
    if name == "lora" and not isinstance(value, str):
        return tuple((int(adapter), float(scale)) for adapter, scale in value)
    return value


def seconds(value: float | str) -> float:
    """A duration: a number of seconds, or a text such as `"5m"`, `"-1"`, `"1h"`.

    Raises ConfigError for anything else.
    """
    if not isinstance(value, str):
        return float(value)
    text = value.strip()
    unit = next((u for u in ("ms", "s", "m", "h") if text.endswith(u)), "s")
    try:
        return float(text.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        raise ConfigError(
            f"keep_alive {value!r} is not a duration; use seconds or a text such as '5m'"
        ) from None
