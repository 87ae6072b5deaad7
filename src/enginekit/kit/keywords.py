"""Fields and keywords of a framework's model to the fields of our requests. Pure.

What a framework adds (how it spells a tool, which names of its other integrations it knows) comes
in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from typing import Any, Final

from enginekit.errors import ConfigError, UnknownSetting, describe_choices
from enginekit.kit.formats import to_tool_choice
from enginekit.types import UNSET, Constraint, Sampling, Tool

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
"""Those of a chat."""

CHAT_KEYWORDS: Final = (
    "model",
    *SAMPLING,
    *CHAT_FIELDS,
    "tools",
    "tool_choice",
    "response_format",
    "show_schema",
)
"""Every keyword that a chat call takes; `stop` is among the sampling fields."""

_MERGED: Final = frozenset({"engine_options", "template_options"})
_TOOL_KEYWORDS: Final = frozenset({"tools", "tool_choice", "response_format"})
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

LIKE = 0.6
"""How alike two names must be, from 0 to 1, for one to be a slip of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a framework has its own way of saying.

    Attributes:
        foreign: names that its other integrations give to our settings.
        needless: names that need no setting here, and why.
        ignored: keywords of the framework itself, which are not for the engine.
        tools: its tools to ours.
        constraint: its `response_format` to what the text must match.
    """

    foreign: Mapping[str, str]
    tools: Callable[[Sequence[Any]], tuple[Tool, ...]]
    constraint: Callable[[Any], Constraint | None]
    needless: Mapping[str, str]
    ignored: frozenset[str] = frozenset()


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
    base: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    dialect: Dialect,
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
    for name, value in kwargs.items():
        if name not in known:
            if name in dialect.ignored:
                continue
            raise unknown(name, known, where, dialect.foreign, dialect.needless)
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
        _add_tools(made, kwargs, dialect)
    return made


def with_schema_shown(made: dict[str, Any], show: bool | None) -> dict[str, Any]:
    """The request fields with the wish, if it is one, that the model sees its schema."""
    constraint = made.get("constraint")
    if not show or constraint is None:
        return made
    return {**made, "constraint": replace(constraint, shown=True)}


def _add_tools(made: dict[str, Any], kwargs: Mapping[str, Any], dialect: Dialect) -> None:
    tools = dialect.tools(kwargs.get("tools") or ())
    if tools:
        made["tools"] = tools
    choice = to_tool_choice(kwargs.get("tool_choice"), [tool.name for tool in tools])
    if choice is not None and tools:
        made["tool_choice"] = choice
    elif choice is not None and choice.mode in ("required", "named"):
        raise ConfigError("tool_choice asks for a call but no tools were given")
    constraint = dialect.constraint(kwargs.get("response_format"))
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


def unknown(
    name: str,
    known: Collection[str],
    where: str,
    foreign: Mapping[str, str],
    needless: Mapping[str, str],
) -> UnknownSetting:
    """The error for a keyword that does not exist; knows what other libraries call ours."""
    near = _nearest(name, known, foreign, needless)
    hint = None if near else "a field of the engine's own wire format goes into engine_options={…}"
    return UnknownSetting(
        f"{where} does not know {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=needless.get(name, hint),
        name=name,
        near=near,
    )


def _nearest(
    name: str, known: Collection[str], foreign: Mapping[str, str], needless: Mapping[str, str]
) -> tuple[str, ...]:
    meant = foreign.get(name)
    if meant is not None and meant in known:
        return (meant,)
    if name in needless:
        return ()
    near = describe_choices(tuple(known), name, 1)
    return near if near and SequenceMatcher(None, name, near[0]).ratio() >= LIKE else ()


def listed_engines(values: dict[str, Any]) -> None:
    """Put `engines=[…]`, or a list given as `engine`, into `engine` as one text.

    Raises ConfigError when both are given and disagree.
    """
    listed = values.pop("engines", None)
    if listed is None and isinstance(values.get("engine"), (list, tuple)):
        listed = values.pop("engine")
    if listed is not None:
        settle(values, "engine", listed if isinstance(listed, str) else ",".join(listed), "engines")


def settle(values: dict[str, Any], name: str, value: Any, alias: str) -> None:
    """Put the value of an alias under its own name. Raises ConfigError when the two disagree."""
    if value is None:
        return
    if values.get(name) is None:
        values[name] = value
    elif values[name] != value:
        raise ConfigError(f"{name}={values[name]!r} and {alias}={value!r} disagree")
