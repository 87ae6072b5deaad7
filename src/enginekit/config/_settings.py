"""The names that can be set, what they may hold, and a value with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from enginekit.errors import ConfigError, UnknownSetting, describe_choices

Layer = Literal["argument", "environment", "project", "user", "discovery", "default"]
LAYERS: tuple[Layer, ...] = (
    "argument",
    "environment",
    "project",
    "user",
    "discovery",
    "default",
)

PREFIX = "ENGINEKIT_"

KEYS: Mapping[str, type | tuple[type, ...]] = {
    "engine": str,
    "model": str,
    "base_url": str,
    "api_key": str,
    "timeout": (float, dict),
    "max_retries": int,
    "cooldown": float,
    "lossy": str,
    "defaults": str,
    "context": int,
    "slots": int,
    "threads": int,
    "embed_model": str,
    "ca_file": str,
    "client_cert": str,
    "verify": bool,
    "proxy": str,
    "allow_large_download": bool,
    "chat_template": str,
    "fetch_images": bool,
}
"""Every setting by name, and the type of its value."""

ENGINE_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "url": str,
    "api_key": str,
    "like": str,
    "model": str,
    "options": dict,
    "ca_file": str,
    "client_cert": str,
    "verify": bool,
    "proxy": str,
}
"""Keys of a table `[engines.NAME]`."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "lossy": ("warn", "error"),
    "defaults": ("server", "pinned"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value, the layer it came from and the exact place (`ENGINEKIT_MODEL`, a file and key)."""

    name: str
    value: Any
    layer: Layer
    where: str

    @property
    def shown(self) -> str:
        """The value for people; a key is never shown."""
        if self.name.endswith("api_key"):
            return "(set, hidden)"
        return str(self.value)


def unknown_setting(
    name: str, known: Mapping[str, Any] | tuple[str, ...], where: str
) -> UnknownSetting:
    """The error for a key that enginekit does not know, naming the nearest known one."""
    near = describe_choices(tuple(known), name, 1)
    return UnknownSetting(
        f"{where} does not know {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint=None if near else "known: " + ", ".join(known),
        name=name,
        near=near,
    )


_LEAST: Mapping[str, int] = {
    "context": 1,
    "slots": 1,
    "threads": 1,
    "max_retries": 0,
    "cooldown": 0,
}


def parsed(text: str, kind: Any, variable: str) -> Any:
    """The text of an environment variable as a value of its kind. Raises ConfigError."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    try:
        if bool in kinds:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.strip().lower()
            ]
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except (ValueError, KeyError):
        name = kinds[0].__name__
        raise ConfigError(f"{variable}={text!r} is not {_A.get(name, name)}") from None
    return text


_A = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}


def checked(name: str, value: Any, kind: Any, where: str) -> Any:
    """The value, if it is of its kind. Raises ConfigError with the place."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_A.get(k.__name__, "a table") for k in kinds)
        raise ConfigError(f"{where}: {name} must be {wanted}, got {value!r}")
    numbers = value.values() if isinstance(value, dict) else (value,)
    if any(isinstance(number, float) and not isfinite(number) for number in numbers):
        raise ConfigError(f"{where}: {name} must be finite, got {value!r}")
    if name in _LEAST and value < _LEAST[name]:
        raise ConfigError(f"{where}: {name} must be at least {_LEAST[name]}, got {value}")
    choices = _CHOICES.get(name)
    if choices and value not in choices:
        raise ConfigError(f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}")
    return value
