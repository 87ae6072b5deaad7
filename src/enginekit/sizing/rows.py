"""What lies on each device of a placement, taken apart by what it depends on."""

from __future__ import annotations

from typing import NamedTuple

from enginekit.sizing.budget import Device
from enginekit.sizing.policy import Triple


class Needs(NamedTuple):
    """Bytes on one device beside its weights."""

    device: Device
    attention: int
    doubt: int
    """What the cache may need beyond `attention`; above 0 only for unknown layouts."""
    state: int
    compute: Triple
    projector: Triple
    runtime: Triple

    @property
    def expected(self) -> int:
        """All of it."""
        return self.attention + self.state + self.compute[1] + self.projector[1] + self.runtime[1]

    @property
    def high(self) -> int:
        """The upper end."""
        fixed = self.attention + self.doubt + self.state
        return fixed + self.compute[2] + self.projector[2] + self.runtime[2]


class Part(NamedTuple):
    """What the layers of one device keep."""

    cells: tuple[int, ...]
    """Cache bytes per cell, by window in the order of `CacheTable.windows`."""
    state: int
    """Bytes per slot."""
    doubt: float
    """Bytes per token that an unknown layout may need beyond `cells`."""


class Row(NamedTuple):
    """One device of a placement with everything that does not depend on context and slots."""

    limit: int
    margin: int
    cells: tuple[int, ...]
    """Cache bytes per cell, by window in the order of `CacheTable.windows`."""
    state: int
    """Bytes per slot."""
    doubt: float
    """Bytes per token that an unknown layout may need beyond `cells`."""
    expected: int
    """Of the runtime."""
    high: int
    carve_out: int
    """-1 for a device with memory of its own."""
    host: bool
    beside: bool
    """Whether it is a host with the inputs of GPUs instead of a compute buffer."""


Line = tuple[Row, int, int]
"""With the weights: expected and high of all that does not depend on context and slots."""


class Load(NamedTuple):
    """What a context with its slots costs wherever it lies."""

    context: int
    cells: tuple[int, ...]
    """By window, in the order of `CacheTable.windows`."""
    buffer: Triple
    """Of a device that holds layers."""
    beside: Triple
    """Of the host when all layers are on GPUs."""
