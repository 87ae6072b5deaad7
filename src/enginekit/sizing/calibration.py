"""Correcting an estimate by what was measured: same engine, version, architecture and backend.

After a load an engine says how large its buffers became. The median ratio of measured to estimated
then scales the next estimate, within bounds, and the plan says so. Weights and cache are
never scaled: a file's header and the cache formula are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

TERMS: Final = ("compute", "runtime")
BOUNDS: Final = (0.5, 2.0)
"""A ratio outside is a different setting, not a correction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One term of one load, in bytes."""

    engine: str
    version: str
    architecture: str
    backend: str
    term: str
    estimated: int
    measured: int

    @property
    def ratio(self) -> float:
        """Measured over estimated; 1 where nothing was estimated."""
        return self.measured / self.estimated if self.estimated > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `Measurement(**document)` reads it back."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Factors by term, and what they rest on."""

    factors: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    of: str = ""
    """Engine, version, architecture and backend, for people."""

    def scaled(self, term: str, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
        """Low, expected and high with the factor of the term; the range stays as wide."""
        factor = self.factors.get(term, 1.0)
        if factor == 1.0:
            return sizes
        return int(sizes[0] * factor), int(sizes[1] * factor), int(sizes[2] * max(factor, 1.0))

    @property
    def sentence(self) -> str:
        """What a plan says about it; empty without an effect."""
        changed = [f"{term} x{factor:.2f}" for term, factor in sorted(self.factors.items())]
        if not changed:
            return ""
        loads = "load" if self.samples == 1 else "loads"
        return f"corrected by {self.samples} measured {loads} of {self.of}: {', '.join(changed)}"


NONE: Final = Calibration()


def calibrate(
    measurements: Iterable[Measurement],
    *,
    engine: str,
    version: str,
    architecture: str,
    backend: str,
) -> Calibration:
    """The correction that measurements of exactly this combination give; none gives no change."""
    wanted = (engine, version, architecture, backend)
    ratios: dict[str, list[float]] = {}
    for one in measurements:
        same = (one.engine, one.version, one.architecture, one.backend) == wanted
        if same and one.term in TERMS and BOUNDS[0] <= one.ratio <= BOUNDS[1]:
            ratios.setdefault(one.term, []).append(one.ratio)
    return Calibration(
        factors={term: median(found) for term, found in ratios.items()},
        samples=max((len(found) for found in ratios.values()), default=0),
        of=f"{engine} {version}, {architecture} on {backend}",
    )
