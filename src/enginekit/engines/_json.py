"""JSON off the wire: exact for whatever is kept, and quick where one piece of text is read.

Most events of a stream carry a piece of text and nothing else. If orjson is installed (the extra
`fast`; LangChain brings it along) those are read by it. Its numbers are not Python's (an integer of
more than 64 bits becomes a float), so whatever else an event holds is read by the standard library,
and what orjson refuses gets a second opinion: a reply is the same with and without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Final

_scan: Final = json.JSONDecoder().raw_decode


def parse_json(payload: bytes) -> Any:
    """One JSON document. Raises ValueError for anything else.

    `json.loads` on bytes first guesses their encoding; servers send UTF-8, so this does not.
    """
    text = payload.decode().strip()
    try:
        value, end = _scan(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if end != len(text):
        raise ValueError(f"more than one JSON document: {text[end : end + 40]!r}")
    return value


def plain(payload: bytes) -> Any:
    """As `parse_json`, without its forgiveness for blanks and without its words."""
    text = payload.decode()
    try:
        value, end = _scan(text)
    except RecursionError:
        raise ValueError from None
    if end != len(text):
        raise ValueError
    return value


@cache
def quickest() -> Callable[[bytes], Any]:
    """What reads one JSON document fastest, good for the strings in it.

    Raises ValueError also for some documents that `parse_json` takes. Looked for on the first reply
    and not at import, which loads no third-party module.
    """
    try:
        loads: Callable[[bytes], Any] = import_module("orjson").loads
    except ImportError:
        return plain
    return loads
