"""The command line. One file per command; `--help` imports none of them."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 fine, 1 an engine or the network failed, 2 wrong usage, 3 nothing fits, 130 interrupted.
    """
    try:
        from enginekit.cli.app import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("cyclopts", "rich"):
            raise
        sys.stderr.write(
            f"error: the command line needs the {error.name} package\n\n"
            "hint: pip install 'enginekit[cli]'\n"
        )
        return 2
    return run(arguments)
