"""Where the user's own settings lie, and the origins that keys may go to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from enginekit.config._settings import PREFIX


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
