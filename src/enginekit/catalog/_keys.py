"""Checked access to a config.json: a number is a number, within reason, or the error names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from enginekit.errors import ModelFileError

MAX_JSON: Final = 16 << 20
"""Bytes of a JSON file that are read: the objects of a hostile one take 25 times as much memory."""


class Config:
    """The keys of one config.json, with errors that name the field and the file."""

    def __init__(self, data: Mapping[str, Any], source: str) -> None:
        self.data = data
        self.source = source

    def fail(self, field: str, value: object, why: str) -> NoReturn:
        """Raise the error for a field."""
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        raise ModelFileError(f"{self.source}: {field} is {shown}: {why}", field=field)

    def checked(self, field: str, value: object, limit: int) -> int:
        """The value as an integer between 0 and `limit`."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(field, value, "a number was expected")
        if not 0 <= value <= limit:
            self.fail(field, value, f"0 to {limit} is possible")
        if value != int(value):
            self.fail(field, value, "a whole number was expected")
        return int(value)

    def number(self, *names: str, limit: int, default: int = 0, needed: bool = False) -> int:
        """The first of several names that is there; null counts as absent."""
        for name in names:
            value = self.data.get(name)
            if isinstance(value, list) and value:
                value = max(self.checked(name, item, limit) for item in value)
            if value is not None and value != []:
                return self.checked(name, value, limit)
        if needed:
            self.fail(names[0], None, "the field is missing")
        return default

    def text(self, name: str) -> str:
        """A string, empty if it is absent or something else."""
        value = self.data.get(name)
        return value if isinstance(value, str) else ""

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean; anything else is the default."""
        value = self.data.get(name)
        return value if isinstance(value, bool) else default
