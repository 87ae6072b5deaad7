"""What each layer says: arguments, environment, project file, user file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enginekit.config._settings import (
    ENGINE_KEYS,
    KEYS,
    PREFIX,
    Layer,
    Setting,
    checked,
    parsed,
    unknown_setting,
)
from enginekit.config._trust import user_config_dir
from enginekit.errors import ConfigError, describe_choices

_NOT_IN_PROJECT = frozenset({"api_key", "client_cert", "allow_large_download", "fetch_images"})
_PATHS = frozenset({"ca_file", "client_cert", "chat_template"})
_OTHER_VARIABLES = frozenset({"TRUST_PROJECT", "CACHE_DIR", "CONFIG_DIR", "RUNTIME_DIR", "LOG"})


def from_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Setting]:
    """Settings given in code; None counts as not given. Raises UnknownSetting, ConfigError."""
    found = {}
    for name, value in arguments.items():
        if name not in KEYS:
            raise unknown_setting(name, KEYS, where)
        if value is not None:
            found[name] = Setting(
                name=name,
                value=checked(name, value, KEYS[name], where),
                layer="argument",
                where=f"{where} {name}=",
            )
    return found


def from_environment(environ: Mapping[str, str], notes: list[str]) -> dict[str, Setting]:
    """Settings of `ENGINEKIT_*` variables; `notes` gets a line for each that is not known."""
    found: dict[str, Setting] = {}
    for variable in sorted([name for name in environ if name.startswith(PREFIX)]):
        text = environ[variable]
        name = variable.removeprefix(PREFIX).lower()
        if text == "" or name.upper() in _OTHER_VARIABLES or name.startswith("live"):
            continue
        if name in KEYS:
            key, kind = name, KEYS[name]
        elif name.endswith(("_url", "_api_key")):
            engine, _, rest = name.partition("_")
            key = f"engines.{engine}.{rest}"
            if rest not in ("url", "api_key"):
                notes.append(_unknown_variable(variable))
                continue
            kind = str
        else:
            notes.append(_unknown_variable(variable))
            continue
        value = parsed(text, kind, variable)
        found[key] = Setting(
            name=key,
            value=checked(key, value, kind, variable),
            layer="environment",
            where=variable,
        )
    return found


def _unknown_variable(variable: str) -> str:
    near = describe_choices([PREFIX + key.upper() for key in KEYS], variable, 1)
    return f"{variable} is set but enginekit does not know it" + (
        f"; did you mean {near[0]}?" if near else ""
    )


def project_file(start: Path, notes: list[str]) -> tuple[Path, dict[str, Any], str] | None:
    """The nearest project file upward, not above the root of the repository.

    Path, table and the prefix of its keys. A file that another user owns is left alone, with a
    note: whoever can write into a folder above (`/tmp`) could send prompts where they like.
    """
    for folder in (start, *start.parents):
        for name, prefix in (("enginekit.toml", ""), ("pyproject.toml", "tool.enginekit.")):
            path = folder / name
            table = read(path)
            for key in prefix.split(".")[:-1]:
                table = None if table is None else table.get(key)
                table = table if isinstance(table, dict) else None
            if table is None:
                continue
            if not _of_this_user(path, start):
                notes.append(f"{path} belongs to another user and is not read")
                continue
            return path, table, prefix
        if (folder / ".git").exists():
            return None
    return None


def _of_this_user(path: Path, start: Path) -> bool:
    """Whether a file is ours, the system's, or of who owns the folder we work in (a container)."""
    if not hasattr(os, "getuid"):
        return True
    try:
        return path.stat().st_uid in (os.getuid(), 0, start.stat().st_uid)
    except OSError:
        return False


def read(path: Path) -> dict[str, Any] | None:
    """A TOML file, or None if there is none. Raises ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except IsADirectoryError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def from_file(path: Path, table: dict[str, Any], prefix: str, layer: Layer) -> dict[str, Setting]:
    """Settings of a file. Raises UnknownSetting, or ConfigError for what it may not say."""
    found: dict[str, Setting] = {}

    def add(key: str, value: Any, known: Mapping[str, Any], name: str) -> None:
        where = f"{path} [{prefix}{key}]"
        if name not in known:
            raise unknown_setting(name, known, where.rsplit(" ", 1)[0])
        value = checked(name, value, known[name], where)
        if layer == "project":
            _refuse_in_project(name, value, path, where)
        if name in _PATHS:
            value = str((path.parent / value).resolve())
        found[key] = Setting(name=key, value=value, layer=layer, where=where)

    for name, value in table.items():
        if name != "engines":
            add(name, value, KEYS, name)
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{path} [{prefix}engines] must hold tables, one per engine")
        for engine, keys in value.items():
            if not isinstance(keys, dict):
                raise ConfigError(f"{path} [{prefix}engines.{engine}] must be a table")
            for key, inner in keys.items():
                add(f"engines.{engine}.{key}", inner, ENGINE_KEYS, key)
    return found


def _refuse_in_project(name: str, value: Any, path: Path, where: str) -> None:
    if name in _NOT_IN_PROJECT:
        raise ConfigError(
            f"{where}: a project file may not set {name!r}; anyone who can edit the project could "
            "redirect it",
            hint=f"set {PREFIX}{name.upper()} or put it into the user file "
            f"{user_config_dir() / 'config.toml'}",
        )
    if name in _PATHS:
        inside = (path.parent / value).resolve()
        if not inside.is_relative_to(path.parent.resolve()):
            raise ConfigError(f"{where}: a project file may not name a path outside the project")
    leaves = os.path.isabs(value) or value.startswith("~") if name == "model" else False
    if leaves or (name == "model" and ".." in value.replace("\\", "/").split("/")):
        raise ConfigError(f"{where}: a project file may not name a path outside the project")
