"""Settings and where each came from.

Precedence: argument > environment > project file > user file > discovery or default. The project
file is the nearest `enginekit.toml`, or `[tool.enginekit]` of a `pyproject.toml`, upward to the root
of the repository; the user's is `config.toml` in the platform's configuration folder.

An address belongs to the engine that the same layer names. If a stronger layer picks another
engine, the weaker layer's `base_url`, `api_key` and `model` do not come along.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginekit.config import _layers
from enginekit.config._settings import (
    ENGINE_KEYS,
    KEYS,
    LAYERS,
    PREFIX,
    Layer,
    Setting,
    unknown_setting,
)
from enginekit.config._trust import trust, trusted_origins, user_config_dir
from enginekit.errors import UntrustedOrigin

__all__ = [
    "ENGINE_KEYS",
    "KEYS",
    "LAYERS",
    "PREFIX",
    "Config",
    "Layer",
    "Setting",
    "load",
    "split_engines",
    "trust",
    "trusted_origins",
    "unknown_setting",
    "user_config_dir",
]

_BOUND_TO_ENGINE = frozenset({"base_url", "api_key", "model"})


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
        """Refuse to send a key through a proxy or under a certificate that a project file chose.

        A proxy, an authority of its own or no check at all would hand the key to whoever can edit
        the project, wherever the address came from. Raises UntrustedOrigin
        unless the user trusts the origin.
        """
        kind = way.name.rpartition(".")[2]
        opens = way.value is False if kind == "verify" else bool(way.value)
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
        layers["argument"] = _layers.from_arguments(arguments, where)
    layers["environment"] = _layers.from_environment(environ, notes)
    if not files:
        return Config(layers={name: layer for name, layer in layers.items() if layer})
    project = _layers.project_file(directory or Path.cwd(), notes)
    if project is not None:
        path, table, prefix = project
        layers["project"] = _layers.from_file(path, table, prefix, "project")
    user = user_config_dir(environ) / "config.toml"
    user_table = _layers.read(user)
    if user_table is not None:
        layers["user"] = _layers.from_file(user, user_table, "", "user")
    return Config(
        layers={name: layer for name, layer in layers.items() if layer},
        project_file=project[0] if project else None,
        user_file=user if user_table is not None else None,
        notes=tuple(notes),
        _trusted=trusted_origins(environ),
    )
