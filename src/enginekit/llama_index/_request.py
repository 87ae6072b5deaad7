"""Fields and keywords of an LLM to our requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

from enginekit.errors import ConfigError
from enginekit.llama_index._settings import unknown
from enginekit.llama_index._tools import to_constraint, to_tool_choice, to_tools
from enginekit.types import UNSET, Sampling

SAMPLING: Final = tuple(field.name for field in fields(Sampling))
"""Names of the sampling fields; instance fields and per-call keywords alike."""

COMMON_FIELDS: Final = (
    "context_window",
    "keep_alive",
    "lora",
    "engine_options",
    "lossy",
    "defaults",
)
"""Further instance fields of every kind of request that a single call may override."""

CHAT_FIELDS: Final = (*COMMON_FIELDS, "reasoning", "parallel_tool_calls", "template_options")
TEXT_FIELDS: Final = (*COMMON_FIELDS, "suffix", "echo")

CHAT_KEYWORDS: Final = (
    "model",
    *SAMPLING,
    *CHAT_FIELDS,
    "tools",
    "tool_choice",
    "response_format",
    "show_schema",
)
"""Every keyword that a chat call takes."""

TEXT_KEYWORDS: Final = ("model", *SAMPLING, *TEXT_FIELDS, "response_format")
"""Every keyword that a completion without a chat template takes."""

_MERGED: Final = frozenset({"engine_options", "template_options"})
_TOOL_KEYWORDS: Final = frozenset({"tools", "tool_choice", "response_format"})
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def request_fields(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of a request from instance fields; None counts as not given."""
    made = {
        name: _field_value(name, values[name]) for name in names if values.get(name) is not None
    }
    made["sampling"] = Sampling(
        **{
            name: _sampling_value(name, values[name])
            for name in SAMPLING
            if values.get(name) is not None
        }
    )
    return made


def with_call(
    base: Mapping[str, Any], kwargs: Mapping[str, Any], *, where: str, known: Sequence[str]
) -> dict[str, Any]:
    """The instance's request fields with those of one call laid over them.

    Raises UnknownSetting for a keyword that does not exist, naming the nearest one, and ConfigError
    for a value that makes no sense.
    """
    made = dict(base)
    sampling: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name not in known:
            raise unknown(name, tuple(known), where)
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
    else:
        made.pop("parallel_tool_calls", None)
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
