"""Settings and where each came from.

Precedence: argument > environment > project file > user file > discovery or default. The project
file is the nearest `enginekit.toml`, or `[tool.enginekit]` of a `pyproject.toml`, upward to the root
of the repository; the user's is `config.toml` in the platform's configuration folder.

An address belongs to the engine that the same layer names. If a stronger layer picks another
engine, the weaker layer's `base_url`, `api_key` and `model` do not come along.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from enginekit.errors import ConfigError, UnknownSetting, UntrustedOrigin, describe_choices

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
    "lossy": str,
    "defaults": str,
    "context": int,
    "slots": int,
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

_BOUND_TO_ENGINE = frozenset({"base_url", "api_key", "model"})
_NOT_IN_PROJECT = frozenset({"api_key", "client_cert", "allow_large_download", "fetch_images"})
_PATHS = frozenset({"ca_file", "client_cert", "chat_template"})
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "lossy": ("warn", "error"),
    "defaults": ("server", "pinned"),
}
_OTHER_VARIABLES = frozenset({"TRUST_PROJECT", "CACHE_DIR", "CONFIG_DIR", "RUNTIME_DIR", "LOG"})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of all layers, strongest first per name.

    Attributes:
        layers: for each layer that said something, its settings by name. Tables `[engines.NAME]`
            appear under `engines.NAME.key`.
        notes: what a person should know (an unknown environment variable, a refused key).
    """

    layers: Mapping[Layer, Mapping[str, Setting]]
    project_file: Path | None = None
    user_file: Path | None = None
    notes: tuple[str, ...] = ()
    _trusted: frozenset[str] = field(default=frozenset(), repr=False)

    def find(self, name: str) -> Setting | None:
        """The strongest setting of a name, whatever engine it was written for."""
        for layer in LAYERS:
            setting = self.layers.get(layer, {}).get(name)
            if setting is not None:
                return setting
        return None

    def value(self, name: str, default: Any = None) -> Any:
        """The strongest value of a name, or `default`."""
        setting = self.find(name)
        return default if setting is None else setting.value

    def for_engine(self, name: str, engine: str) -> Setting | None:
        """The strongest setting of a name that may be used for `engine`.

        Looks in each layer at `[engines.ENGINE]` first, then at the layer's own top level, which
        counts only if that layer names this engine or names none.
        """
        table_key = "url" if name == "base_url" else name
        for layer in LAYERS:
            settings = self.layers.get(layer, {})
            own = settings.get(f"engines.{engine}.{table_key}")
            if own is not None:
                return own
            top = settings.get(name)
            if top is None:
                continue
            named = settings.get("engine")
            if name in _BOUND_TO_ENGINE and named is not None:
                listed = split_engines(named.value)
                if engine not in listed or (name != "model" and len(listed) > 1):
                    continue
            return top
        return None

    def engine_table(self, engine: str) -> dict[str, Setting]:
        """All keys of `[engines.ENGINE]`, the strongest layer winning per key."""
        found: dict[str, Setting] = {}
        prefix = f"engines.{engine}."
        for layer in LAYERS:
            for key, setting in self.layers.get(layer, {}).items():
                if key.startswith(prefix):
                    found.setdefault(key.removeprefix(prefix), setting)
        return found

    def custom_engines(self) -> tuple[str, ...]:
        """Names of `[engines.NAME]` tables that say `like`."""
        names: dict[str, None] = {}
        for settings in self.layers.values():
            for key in settings:
                if key.startswith("engines.") and key.endswith(".like"):
                    names[key[8:-5]] = None
        return tuple(names)

    def rows(self) -> Iterator[Setting]:
        """Every setting in effect, strongest only, in the order of `KEYS`, tables last.

        An address, a key or a model that belongs to an engine which is not chosen is not in effect.
        """
        chosen = split_engines(self.value("engine", ""))
        for name in KEYS:
            setting = self.find(name)
            if name in _BOUND_TO_ENGINE and chosen:
                usable = (self.for_engine(name, engine) for engine in chosen)
                setting = next((one for one in usable if one and one.name == name), None)
            if setting is not None:
                yield setting
        tables = {
            key: None
            for layer in LAYERS
            for key in self.layers.get(layer, {})
            if key.startswith("engines.")
        }
        for key in tables:
            setting = self.find(key)
            if setting is not None:
                yield setting

    def check_key(self, key: Setting, url: Setting, origin: str) -> None:
        """Refuse to send a key to an address that the user did not name.

        A key given by argument, environment or the user's own file goes to an address from one of
        those. An address from a project file or from discovery gets it only once the user trusts
        that origin. Raises UntrustedOrigin.
        """
        if url.layer in ("argument", "environment", "user", "default"):
            return
        if origin in self._trusted or self._trust_everything:
            return
        raise UntrustedOrigin(
            f"the API key from {key.where} would be sent to {origin}, an address that comes from "
            f"{url.where} ({url.layer}) and that you have not named yourself",
            hint=f"enginekit trust {origin}    (or ENGINEKIT_TRUST_PROJECT=1 in a container)",
        )

    def check_way(self, key: Setting, way: Setting, origin: str) -> None:
        """Refuse to send a key through a proxy, or past a certificate, that a project file chose.

        Either would hand the key to whoever can edit the project, wherever the address came from.
        Raises UntrustedOrigin unless the user trusts the origin.
        """
        kind = way.name.rpartition(".")[2]
        opens = (kind == "proxy" and way.value) or (kind == "verify" and way.value is False)
        if way.layer != "project" or not opens:
            return
        if origin in self._trusted or self._trust_everything:
            return
        raise UntrustedOrigin(
            f"the API key from {key.where} would be sent to {origin} with {kind}={way.value!r}, "
            f"which comes from {way.where} and which you have not chosen yourself",
            hint=f"enginekit trust {origin}    (or ENGINEKIT_TRUST_PROJECT=1 in a container)",
        )

    @property
    def _trust_everything(self) -> bool:
        return "*" in self._trusted


def split_engines(value: str) -> tuple[str, ...]:
    """The names in `"vllm,ollama"`."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def load(
    arguments: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    where: str = "argument",
    files: bool = True,
) -> Config:
    """Read all layers.

    Args:
        arguments: settings given in code; None values count as not given.
        environ: defaults to `os.environ`.
        directory: where the search for a project file begins; defaults to the working directory.
        where: how the receipt of origins calls the argument layer (`"EngineKitChat(...)"`).
        files: False reads no file: arguments and environment only, and no trusted origins.

    Raises ConfigError (with file and key) for an unreadable file, a wrong type or a forbidden key,
    UnknownSetting (with the nearest known one) for an unknown key in a file or argument.
    """
    environ = os.environ if environ is None else environ
    notes: list[str] = []
    layers: dict[Layer, dict[str, Setting]] = {}
    if arguments:
        layers["argument"] = _arguments(arguments, where)
    layers["environment"] = _environment(environ, notes)
    if not files:
        return Config(layers={name: layer for name, layer in layers.items() if layer})
    project = _project_file(directory or Path.cwd())
    if project is not None:
        path, table, prefix = project
        layers["project"] = _file(path, table, prefix, "project")
    user = user_config_dir(environ) / "config.toml"
    user_table = _read(user)
    if user_table is not None:
        layers["user"] = _file(user, user_table, "", "user")
    return Config(
        layers={name: layer for name, layer in layers.items() if layer},
        project_file=project[0] if project else None,
        user_file=user if user_table is not None else None,
        notes=tuple(notes),
        _trusted=trusted_origins(environ),
    )


def user_config_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The user's configuration folder; `ENGINEKIT_CONFIG_DIR` moves it."""
    environ = os.environ if environ is None else environ
    moved = environ.get(PREFIX + "CONFIG_DIR")
    if moved:
        return Path(moved)
    import platformdirs

    return Path(platformdirs.user_config_dir("enginekit", appauthor=False))


def trusted_origins(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Origins the user has trusted (`enginekit trust`); `"*"` when the environment trusts all."""
    environ = os.environ if environ is None else environ
    if environ.get(PREFIX + "TRUST_PROJECT", "").lower() in ("1", "true", "yes"):
        return frozenset({"*"})
    try:
        lines = (user_config_dir(environ) / "trusted").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.strip() for line in lines if line.strip())


def trust(origin: str, environ: Mapping[str, str] | None = None) -> Path:
    """Remember that keys may go to `origin` (`http://host:port`). Returns the file written."""
    path = user_config_dir(environ) / "trusted"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = trusted_origins({**(environ or os.environ), PREFIX + "TRUST_PROJECT": ""})
    part = path.with_name(f"trusted.{os.getpid()}.part")
    part.write_text("".join(f"{line}\n" for line in sorted({*known, origin})), "utf-8")
    part.replace(path)
    return path


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


# ---------------------------------------------------------------------------------- the layers


def _arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Setting]:
    found = {}
    for name, value in arguments.items():
        if name not in KEYS:
            raise unknown_setting(name, KEYS, where)
        if value is not None:
            found[name] = Setting(
                name=name,
                value=_checked(name, value, KEYS[name], where),
                layer="argument",
                where=f"{where} {name}=",
            )
    return found


def _environment(environ: Mapping[str, str], notes: list[str]) -> dict[str, Setting]:
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
        value = _parse(text, kind, variable)
        found[key] = Setting(
            name=key,
            value=_checked(key, value, kind, variable),
            layer="environment",
            where=variable,
        )
    return found


def _unknown_variable(variable: str) -> str:
    near = describe_choices([PREFIX + key.upper() for key in KEYS], variable, 1)
    return f"{variable} is set but enginekit does not know it" + (
        f"; did you mean {near[0]}?" if near else ""
    )


def _project_file(start: Path) -> tuple[Path, dict[str, Any], str] | None:
    """The nearest project file upward, not above the root of the repository."""
    for folder in (start, *start.parents):
        own = _read(folder / "enginekit.toml")
        if own is not None:
            return folder / "enginekit.toml", own, ""
        pyproject = _read(folder / "pyproject.toml")
        if pyproject is not None:
            table = pyproject.get("tool", {}).get("enginekit")
            if isinstance(table, dict):
                return folder / "pyproject.toml", table, "tool.enginekit."
        if (folder / ".git").exists():
            return None
    return None


def _read(path: Path) -> dict[str, Any] | None:
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


def _file(path: Path, table: dict[str, Any], prefix: str, layer: Layer) -> dict[str, Setting]:
    found: dict[str, Setting] = {}

    def add(key: str, value: Any, known: Mapping[str, Any], name: str) -> None:
        where = f"{path} [{prefix}{key}]"
        if name not in known:
            raise unknown_setting(name, known, where.rsplit(" ", 1)[0])
        checked = _checked(name, value, known[name], where)
        if layer == "project":
            _refuse_in_project(name, checked, path, where)
        if name in _PATHS:
            checked = str((path.parent / checked).resolve())
        found[key] = Setting(name=key, value=checked, layer=layer, where=where)

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


def _parse(text: str, kind: Any, variable: str) -> Any:
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


def _checked(name: str, value: Any, kind: Any, where: str) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_A.get(k.__name__, "a table") for k in kinds)
        raise ConfigError(f"{where}: {name} must be {wanted}, got {value!r}")
    numbers = value.values() if isinstance(value, dict) else (value,)
    if any(isinstance(number, float) and not isfinite(number) for number in numbers):
        raise ConfigError(f"{where}: {name} must be finite, got {value!r}")
    choices = _CHOICES.get(name)
    if choices and value not in choices:
        raise ConfigError(f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}")
    return value
