"""Checked access to a GGUF header's `{architecture}.key` values; errors name the key."""

from __future__ import annotations

from enginekit.catalog.gguf import GgufHeader
from enginekit.errors import ModelFileError


class Keys:
    """Checked access to `{architecture}.key` values."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self.header = header
        self.prefix = architecture + "."

    def bad(self, key: str, value: object, why: str) -> ModelFileError:
        """The error for a key."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelFileError(
            f"{self.header.source}: {self.prefix}{key} is {shown}: {why}",
            field=self.prefix + key,
        )

    def one(self, key: str, default: int = 0, limit: int = 1 << 24) -> int:
        """An integer; the largest where the file gives one per layer."""
        value = self.header.metadata.get(self.prefix + key, default)
        if isinstance(value, tuple):
            return max((self._checked(key, item, limit) for item in value), default=default)
        return self._checked(key, value, limit)

    def _checked(self, key: str, value: object, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(key, value, "a number was expected")
        if not 0 <= value <= limit:
            raise self.bad(key, value, f"0 to {limit} is possible")
        if value != int(value):
            raise self.bad(key, value, "a whole number was expected")
        return int(value)

    def many(
        self, key: str, default: int, layers: int, limit: int = 1 << 20
    ) -> int | tuple[int, ...]:
        """An integer, or one for each of at least `layers` layers."""
        value = self.header.metadata.get(self.prefix + key, default)
        if not isinstance(value, tuple):
            return self._checked(key, value, limit)
        if len(value) < layers:
            raise self.bad(key, value, f"{layers} layers need {layers} values")
        return tuple(self._checked(key, item, limit) for item in value[:layers])

    def flags(self, key: str, layers: int) -> tuple[bool, ...] | None:
        value = self.header.metadata.get(self.prefix + key)
        if not isinstance(value, tuple):
            return None
        if len(value) < layers:
            raise self.bad(key, value, f"{layers} layers need {layers} values")
        return tuple(bool(item) for item in value[:layers])

    def has(self, key: str) -> bool:
        return self.prefix + key in self.header.metadata
