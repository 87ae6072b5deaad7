"""Reading numbers and names out of tool output without ever raising."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_UNITS = {
    "": 1,
    "b": 1,
    "bytes": 1,
    "k": KIB,
    "kb": KIB,
    "kib": KIB,
    "m": MIB,
    "mb": MIB,
    "mib": MIB,
    "g": GIB,
    "gb": GIB,
    "gib": GIB,
    "t": 1024**4,
    "tb": 1024**4,
    "tib": 1024**4,
}
_SIZE = re.compile(r"\s*([0-9]{1,24})(\.[0-9]{1,12})?\s*([A-Za-z]*)\s*$")
_INTEGER = re.compile(r"\s*([+-]?[0-9]{1,30})\b")
_FLOAT = re.compile(r"\s*([+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?)")
_LARGEST = 2**62


def integer(value: object) -> int | None:
    """First whole number of a text or a number, else None; hexadecimal with `0x` is understood."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) < _LARGEST else None
    if isinstance(value, float):
        return int(value) if abs(value) < _LARGEST else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text[:2].lower() == "0x":
        try:
            return int(text[:18], 16)
        except ValueError:
            return None
    match = _INTEGER.match(text)
    if match is None:
        return None
    number = int(match.group(1))
    return number if abs(number) < _LARGEST else None


def number(value: object) -> float | None:
    """First decimal number of a text or a number, else None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < _LARGEST else None
    if not isinstance(value, str):
        return None
    match = _FLOAT.match(value)
    return float(match.group(1)) if match else None


def size(value: object, unit: str = "") -> int | None:
    """Bytes of `24564 MiB`, `16 GB`, `8589934592`; None for `N/A`.

    Vendor tools and operating systems print binary units whatever they call them (`rocm-smi` and
    `amd-smi` say MB, macOS says GB): all are read as powers of 1024.

    Args:
        value: text or number.
        unit: unit of a bare number.
    """
    if isinstance(value, Mapping):
        return size(value.get("value"), str(value.get("unit", unit)))
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        value = str(int(value)) if abs(value) < _LARGEST and value == value else ""
    if not isinstance(value, str):
        return None
    match = _SIZE.match(value)
    if match is None:
        return None
    scale = _UNITS.get((match.group(3) or unit).lower())
    if scale is None:
        return None
    whole = int(match.group(1)) * scale
    fraction = round(float(match.group(2)) * scale) if match.group(2) else 0
    total = whole + fraction
    return total if total < _LARGEST else None


def text(value: object) -> str:
    """A trimmed text; empty for `N/A`, `Not Supported`, `None` and for anything not a text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return ""
    trimmed = value.strip()
    bare = trimmed.strip("[]").lower()
    if bare in {
        "n/a",
        "not supported",
        "none",
        "unknown",
        "unknown error",
        "",
        "to be filled by o.e.m.",
    }:
        return ""
    return trimmed


def pairs(source: str, separator: str = ":") -> Iterator[tuple[str, str]]:
    """`key<separator>value` lines, trimmed."""
    for line in source.splitlines():
        key, found, value = line.partition(separator)
        if found:
            yield key.strip(), value.strip()


def loads(source: object) -> Any:
    """JSON that may have warnings before or after it; None if there is none.

    Already decoded documents pass through, so that a parser takes text and dict alike.
    """
    if isinstance(source, (dict, list)):
        return source
    if not isinstance(source, str):
        return None
    decoder = json.JSONDecoder()
    starts = [position for position in (source.find("{"), source.find("[")) if position >= 0]
    attempts = 0
    position = min(starts, default=-1)
    while position >= 0 and attempts < 20:
        try:
            return decoder.raw_decode(source, position)[0]
        except (ValueError, RecursionError):
            attempts += 1
            following = [
                found
                for found in (source.find("{", position + 1), source.find("[", position + 1))
                if found >= 0
            ]
            position = min(following, default=-1)
    return None


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """The value if it is a list, `[value]` if it is a mapping (PowerShell unwraps one-element lists)."""
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, Mapping) else []
