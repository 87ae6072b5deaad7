"""Models whose bytes are known: `pinned.toml` as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A model whose bytes are known; a row of `pinned.toml`."""

    name: str
    title: str
    license: str
    file: str
    size: int
    sha256: str
    aliases: tuple[str, ...] = ()
    package: str = ""
    package_version: str = ""
    wheel_sha256: str = ""
    wheel_size: int = 0
    module: str = ""
    member: str = ""
    hub_repo: str = ""
    hub_file: str = ""
    hub_revision: str = "main"


@cache
def pinned() -> MappingProxyType[str, Pinned]:
    """The pinned models by name."""
    import tomllib

    text = files("enginekit.catalog").joinpath("pinned.toml").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)["model"]
    return MappingProxyType(
        {row["name"]: Pinned(**{**row, "aliases": tuple(row["aliases"])}) for row in rows}
    )
