"""What the last lines of a llama.cpp log mean. Patterns are data; wording of xllamacpp 2026.10."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Cause(NamedTuple):
    """A likely cause, the command that helps, and whether the model file itself is at fault."""

    text: str
    hint: str | None = None
    model_file: bool = False


_SMALLER = "use a smaller model, context or number of slots"
_AGAIN = "fetch the model file again"

_PATTERNS: tuple[tuple[str, Cause], ...] = (
    (
        r"unknown model architecture: '?([\w.-]+)",
        Cause(
            "llama.cpp does not know the architecture {0}",
            "pip install --upgrade xllamacpp    (may bring a llama.cpp that does)",
            True,
        ),
    ),
    (r"data is not within the file bounds", Cause("the model file is truncated", _AGAIN, True)),
    (r"invalid magic characters", Cause("the model file is not a GGUF file", _AGAIN, True)),
    (
        r"missing tensor|wrong number of tensors|check_tensor_dims",
        Cause("the model file lacks tensors that its architecture needs", _AGAIN, True),
    ),
    (
        r"bad_alloc|failed to allocate|unable to allocate|out of memory|cannot allocate memory"
        r"|failed to create context|failed to create_context",
        Cause("out of memory", _SMALLER),
    ),
    (
        r"std::system_error[\s\S]*Resource temporarily unavailable|can't start new thread",
        Cause(
            "no thread could be started: a limit on memory or processes was reached",
            "raise the limit (ulimit -v, ulimit -u), or " + _SMALLER,
        ),
    ),
    (
        r"couldn't bind|failed to bind|address already in use|error binding",
        Cause("the port was taken by another program", "try again: a new port is chosen each time"),
    ),
    (
        r"No module named '?xllamacpp|cannot import name",
        Cause("xllamacpp is not installed", "pip install 'enginekit[embedded]'"),
    ),
    (
        r"GLIBC_|GLIBCXX_|cannot open shared object|DLL load failed|Library not loaded",
        Cause(
            "the installed xllamacpp does not fit this system",
            "pip install --force-reinstall xllamacpp",
        ),
    ),
    (
        r"failed to (?:initialize|parse|apply) .*template|chat template",
        Cause(
            "the chat template is not valid Jinja", "leave chat_template unset to use the model's"
        ),
    ),
    (
        r"AttributeError|TypeError|OverflowError",
        Cause("a setting that this xllamacpp does not take", "check the extra flags"),
    ),
    (r"Illegal instruction", Cause("the processor lacks instructions that this wheel uses")),
)

_SIGNALS = {
    -9: Cause("killed, most likely by the system because memory ran out", _SMALLER),
    -4: Cause("the processor lacks instructions that this wheel uses"),
    -6: Cause("llama.cpp aborted itself"),
    -11: Cause("llama.cpp crashed (segmentation fault)"),
    -15: Cause("it was told to end (SIGTERM)"),
}

_ENDED = re.compile(r"enginekit: the server process ended with code (-?\d+)")


def likely(lines: Sequence[str]) -> Cause:
    """The likely cause of a death, from the last lines of its log."""
    text = "\n".join(lines)
    for pattern, cause in _PATTERNS:
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            return cause._replace(text=cause.text.format(*found.groups()))
    ended = _ENDED.search(text)
    if ended:
        code = int(ended.group(1))
        return _SIGNALS.get(code, Cause(f"the process ended with code {code}"))
    return Cause("unknown")


def tail(path: Path, count: int = 15) -> tuple[str, ...]:
    """The last lines of a log file; none if there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - (1 << 16)))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-count:])
