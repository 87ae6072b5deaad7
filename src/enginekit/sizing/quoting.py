"""Local paths and other words of a user's own as a command line takes them."""

from __future__ import annotations

import re
import shlex
from typing import Final

_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]")


def quoted(word: str) -> str:
    """One word for a shell; `~/` still means the home folder, and Windows' paths get its quotes."""
    if _WINDOWS.match(word):
        return f'"{word}"' if " " in word else word
    if word.startswith("~/") and len(word) > 2:
        return "~/" + shlex.quote(word[2:])
    return shlex.quote(word)


def in_program(word: str) -> str:
    """What stands between '...' of a Python program that is itself between "..." of a shell."""
    # With a double quote in it, repr takes single ones and escapes those inside.
    literal = repr(word + '"')[1:-2]
    return re.sub(r'([\\"$`])', r"\\\1", literal)
