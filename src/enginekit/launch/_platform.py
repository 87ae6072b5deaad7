"""Whether the embedded engine can run here: the platforms that xllamacpp has a current wheel for.

Read from the package index on 2026-11-24 for 2026.10.11549: manylinux2014 (glibc 2.17) on x86_64
and aarch64, macOS 13 on arm64 and x86_64, Windows on x86_64. On musl the newest wheel is 0.2.13, on
macOS 11 and 12 it is 2026.5: installers fall back to those without a word, so a version older than
`LEAST` counts as none.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from enginekit.errors import EngineKitError, MissingExtra, UnsupportedPlatform

LEAST = (2026, 10)
"""The oldest xllamacpp that `enginekit[embedded]` accepts."""
_MACOS = 13
_GLIBC = (2, 17)
_ELSEWHERE = (
    "run another engine and name it, such as ENGINEKIT_ENGINE=ollama or "
    "ENGINEKIT_ENGINE=llamacpp with ENGINEKIT_BASE_URL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The facts that decide.

    Attributes:
        system: `sys.platform`.
        machine: `platform.machine()`, lower case.
        bits: of a pointer.
        libc: name and version; musl gives an empty name or "musl".
        macos: major version, 0 elsewhere.
        installed: xllamacpp's version, "" if it is not installed.
    """

    system: str
    machine: str
    bits: int
    libc: tuple[str, str] = ("", "")
    macos: int = 0
    installed: str = ""


def here() -> Here:
    """This interpreter's facts."""
    macos = platform.mac_ver()[0].partition(".")[0] if sys.platform == "darwin" else ""
    return Here(
        system=sys.platform,
        machine=platform.machine().lower(),
        bits=64 if sys.maxsize > 2**32 else 32,
        libc=platform.libc_ver() if sys.platform.startswith("linux") else ("", ""),
        macos=int(macos) if macos.isdigit() else 0,
        installed=installed_version() or "",
    )


def installed_version() -> str | None:
    """xllamacpp's version without importing it; None if it is not installed."""
    import importlib.util
    from importlib.metadata import PackageNotFoundError, version

    if importlib.util.find_spec("xllamacpp") is None:
        return None
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return "0"


def obstacle(facts: Here) -> EngineKitError | None:
    """Why the embedded engine cannot run here, or None."""
    if facts.installed and _numbers(facts.installed) >= LEAST:
        return None
    why = _unsupported(facts)
    found = f"; the installed xllamacpp {facts.installed} is too old" if facts.installed else ""
    if why is not None:
        return UnsupportedPlatform(
            f"the embedded engine has no current wheel for this system: {why}{found}",
            hint=_ELSEWHERE,
        )
    if facts.installed:
        return MissingExtra(
            f"the embedded engine needs xllamacpp {LEAST[0]}.{LEAST[1]} or newer, "
            f"{facts.installed} is installed",
            hint="pip install --upgrade xllamacpp",
            extra="embedded",
        )
    return MissingExtra(
        "the embedded engine needs the xllamacpp package, which is not installed",
        hint="pip install 'enginekit[embedded]'",
        extra="embedded",
    )


def _unsupported(facts: Here) -> str | None:
    if facts.bits != 64:
        return "a 32-bit Python; it needs a 64-bit one"
    if facts.system == "darwin":
        if facts.macos and facts.macos < _MACOS:
            return f"macOS {facts.macos}; it needs macOS {_MACOS} or newer"
        return None
    if facts.system == "win32":
        if facts.machine not in ("amd64", "x86_64"):
            return f"Windows on {facts.machine}; it needs Windows on x86_64"
        return None
    if not facts.system.startswith("linux"):
        return f"{facts.system}; it needs Linux, macOS {_MACOS} or Windows"
    name, version = facts.libc
    if name != "glibc":
        return (
            "Linux with musl (Alpine); it needs Linux with glibc "
            f"{_GLIBC[0]}.{_GLIBC[1]} or newer, such as Debian or Ubuntu"
        )
    if _numbers(version) < _GLIBC:
        return f"glibc {version}; it needs glibc {_GLIBC[0]}.{_GLIBC[1]} or newer"
    if facts.machine not in ("x86_64", "amd64", "aarch64", "arm64"):
        return f"Linux on {facts.machine}; it needs x86_64 or aarch64"
    return None


def _numbers(text: str) -> tuple[int, ...]:
    parts: list[int] = []
    for word in text.split("."):
        if not word.isdigit():
            break
        parts.append(int(word))
    return tuple(parts)
