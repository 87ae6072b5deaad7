"""How an error looks on the command line: one `error:` line, the details, one `hint:`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from enginekit.errors import (
    BadRequest,
    ConfigError,
    EngineKitError,
    EngineTimeout,
    LaunchError,
    MissingExtra,
    StreamTruncated,
)

FAILED = 1
USAGE = 2
NOTHING_FITS = 3
INTERRUPTED = 130


def show(error: BaseException) -> int:
    """Print an error on stderr and return the exit code it means.

    An error that is not ours is a bug: it is raised again, so that its traceback can be reported.
    """
    if not isinstance(error, EngineKitError):
        raise error
    _write(f"error: {error.message}")
    if isinstance(error, LaunchError) and error.log and error.log[-1] not in error.message:
        _write("\nlast lines of its log:")
        for line in error.log:
            _write(f"  {line}")
    if isinstance(error, EngineTimeout | StreamTruncated) and error.partial:
        _write("(what came before it is on stdout)")
    if error.hint:
        _write(f"\nhint: {error.hint}")
    _debug(error)
    return USAGE if isinstance(error, ConfigError | MissingExtra | BadRequest) else FAILED


def show_usage(message: str, command: Iterable[str] = ()) -> None:
    """Print a wrong usage of a command."""
    words = " ".join(("enginekit", *command))
    _write(f"error: {message.strip()}\n\nhint: {words} --help")


def show_system(error: OSError) -> int:
    """Print what the operating system refused: a full disk under stdout, a folder not to be made."""
    where = f"{error.filename}: " if error.filename else ""
    _write(f"error: {where}{error.strerror or error}")
    _debug(error)
    return FAILED


def _debug(error: BaseException) -> None:
    """The traceback, for who asks."""
    if os.environ.get("ENGINEKIT_LOG", "").lower() == "debug":
        import traceback

        traceback.print_exception(error, file=sys.stderr)


_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in b"\n\t"
}
"""What a message may quote from a hostile file or server, and a terminal would obey."""


def _write(text: str) -> None:
    sys.stderr.write(text.translate(_CONTROLS) + "\n")
