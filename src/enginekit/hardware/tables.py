"""What data sheets say, for what drivers do not: bandwidth, compute, chip families.

Three tables lie beside this module: `gpus.csv` (cards by normalised driver name and size),
`apple.csv` (chips by name and GPU cores) and `cpus.csv` (processors by pattern, first match wins).
Each row names its source. Memory in the tables is GiB as marketed, bandwidth 10^9 bytes per second.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from enginekit.hardware._text import GIB, MIB

_GIGA = 10**9
_TERA = 10**12
_SIZE = re.compile(r"\b\d+\s*gi?b\b")
_TOKEN = re.compile(r"[a-z0-9]+")
_NOISE = frozenset(
    (
        "nvidia",
        "geforce",
        "tesla",
        "generation",
        "gen",
        "graphics",
        "amd",
        "ati",
        "radeon",
        "instinct",
        "intel",
        "corporation",
        "advanced",
        "micro",
        "devices",
        "inc",
        "r",
        "tm",
        "series",
        "hbm2",
        "hbm2e",
        "hbm3",
        "hbm3e",
        "nvgpu",
        "mig",
        "device",
        "tegra",
        "gpu",
    )
)
_RENAMED = {"laptop": "mobile"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One card of `gpus.csv`, in bytes and per second."""

    vendor: str
    matches: tuple[str, ...]
    name: str
    memory_bytes: int | None
    visible_bytes: int | None
    bandwidth: int | None
    fp16_flops: int | None
    architecture: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppleRow:
    """One chip of `apple.csv`."""

    chip: str
    gpu_cores: int
    bandwidth: int
    fp16_flops: int | None
    max_memory_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRow:
    """One processor pattern of `cpus.csv`; `bus_bytes` is the width of one channel."""

    pattern: re.Pattern[str]
    memory_type: str
    mega_transfers: int
    channels: int
    bus_bytes: int
    source: str

    @property
    def bandwidth(self) -> int:
        """Nominal bytes per second of one socket."""
        return self.mega_transfers * 10**6 * self.channels * self.bus_bytes


def normalised(name: str) -> str:
    """A driver's device name reduced to what tells cards apart.

    >>> normalised("NVIDIA GeForce RTX 4070 Laptop GPU")
    'rtx 4070 mobile'
    >>> normalised("NVIDIA A100-SXM4-80GB")
    'a100 sxm4'
    """
    bare = _SIZE.sub(" ", name.lower().replace("(r)", " ").replace("(tm)", " "))
    tokens = [_RENAMED.get(token, token) for token in _TOKEN.findall(bare)]
    return " ".join(token for token in tokens if token not in _NOISE)


def gpu_row(vendor: str, name: str, total_bytes: int | None = None) -> GpuRow | None:
    """The table's card for a driver name; its memory size decides between namesakes.

    A name that the tool cut (`NVIDIA RTX 6000 Ada Gene...`) is looked up without its last word.

    None if no card of that name has about that much memory (a fifth more or less) or, the name
    being whole, twice as much: such cards carry chips of twice the size on the same bus.
    """
    cut = name.rstrip().endswith("...")
    wanted = normalised(name.rstrip(". "))
    if cut:
        # `GeForce RTX 2080 ...`: a word is missing; `RTX 6000 Ada Gene...`: the last one is cut.
        if name.rstrip(".").endswith(" ") and (one := _slowest_longer(vendor, wanted, total_bytes)):
            return one
        wanted = wanted.rpartition(" ")[0]
    found = _by_match().get((vendor, wanted), ())
    if total_bytes is None:
        return found[0] if found else None
    close = [
        row
        for row in found
        if row.memory_bytes is None or abs(row.memory_bytes - total_bytes) * 5 <= row.memory_bytes
    ]
    if not close and len(found) == 1 and not cut and found[0].memory_bytes:
        doubled = 2 * found[0].memory_bytes
        close = [row for row in found if abs(doubled - total_bytes) * 20 <= doubled]
    return min(
        close, key=lambda row: abs((row.memory_bytes or total_bytes) - total_bytes), default=None
    )


def _slowest_longer(vendor: str, start: str, total_bytes: int | None) -> GpuRow | None:
    """The card whose name begins so, goes on and has that much memory: the slowest if several of one
    architecture do, None if they are of several."""
    found = {
        row.name: row
        for (maker, match), rows in _by_match().items()
        if maker == vendor and match.startswith(start + " ")
        for row in rows
        if total_bytes is None
        or row.memory_bytes is None
        or abs(row.memory_bytes - total_bytes) * 20 <= row.memory_bytes
    }
    if len({row.architecture for row in found.values()}) != 1:
        return None
    return min(found.values(), key=lambda row: row.bandwidth or 0)


def gpu_rows_of(vendor: str, name: str) -> tuple[GpuRow, ...]:
    """All cards of a name: those that were sold with different amounts of memory have a row each."""
    return _by_match().get((vendor, normalised(name)), ())


def board_row(board: str) -> GpuRow | None:
    """The module inside a named developer kit (`NVIDIA Jetson Orin Nano Developer Kit Super`)."""
    wanted = normalised(board)
    if "super" in wanted.split():
        wanted = wanted.replace(" super", "").replace("orin nano", "orin nano super")
    found = [
        (len(match), row)
        for (vendor, match), rows in _by_match().items()
        for row in rows
        if vendor == "nvidia" and match.startswith("jetson ") and wanted.startswith(match)
    ]
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]


def apple_row(
    chip: str, gpu_cores: int | None = None, memory_bytes: int | None = None
) -> AppleRow | None:
    """The table's chip. Where core counts differ (`M3 Max` 30 or 40) the cores decide.

    Without cores, memory beyond the smaller variant's maximum decides, else the smaller is assumed.
    """
    wanted = chip.lower().replace("apple", "").strip()
    found = [row for row in _apple() if row.chip.lower() == wanted]
    if not found:
        return None
    if gpu_cores is not None:
        return min(found, key=lambda row: abs(row.gpu_cores - gpu_cores))
    if memory_bytes is not None:
        for row in found:
            if memory_bytes <= row.max_memory_bytes:
                return row
    return found[-1] if memory_bytes is not None else found[0]


def cpu_row(model: str) -> CpuRow | None:
    """First pattern of `cpus.csv` that occurs in the model name, ignoring case."""
    cleaned = re.sub(r"\((?:r|tm|c)\)", "", model, flags=re.IGNORECASE)
    return next((row for row in _cpus() if row.pattern.search(cleaned)), None)


@cache
def _rows(name: str) -> tuple[dict[str, str], ...]:
    text = resources.files("enginekit.hardware").joinpath("data", name).read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@cache
def gpu_rows() -> tuple[GpuRow, ...]:
    """The whole of `gpus.csv`."""
    return tuple(
        GpuRow(
            vendor=row["vendor"],
            matches=tuple(row["match"].split("|")),
            name=row["name"],
            memory_bytes=_scaled(row["memory_gib"], GIB),
            visible_bytes=_scaled(row["visible_mib"], MIB),
            bandwidth=_scaled(row["bandwidth_gb_per_s"], _GIGA),
            fp16_flops=_scaled(row["fp16_tflops"], _TERA),
            architecture=row["architecture"],
            source=row["source"],
        )
        for row in _rows("gpus.csv")
    )


@cache
def _by_match() -> dict[tuple[str, str], tuple[GpuRow, ...]]:
    found: dict[tuple[str, str], tuple[GpuRow, ...]] = {}
    for row in gpu_rows():
        for match in dict.fromkeys((*row.matches, normalised(row.name))):
            found[row.vendor, match] = (*found.get((row.vendor, match), ()), row)
    return found


@cache
def _apple() -> tuple[AppleRow, ...]:
    return tuple(
        AppleRow(
            chip=row["chip"],
            gpu_cores=int(row["gpu_cores"]),
            bandwidth=round(float(row["bandwidth_gb_per_s"]) * _GIGA),
            fp16_flops=_scaled(row["fp16_tflops"], _TERA),
            max_memory_bytes=int(row["max_memory_gib"]) * GIB,
            source=row["source"],
        )
        for row in _rows("apple.csv")
    )


@cache
def _cpus() -> tuple[CpuRow, ...]:
    return tuple(
        CpuRow(
            pattern=re.compile(row["pattern"], re.IGNORECASE),
            memory_type=row["memory_type"],
            mega_transfers=int(row["mega_transfers"]),
            channels=int(row["channels"]),
            bus_bytes=int(row["bus_bytes"]),
            source=row["source"],
        )
        for row in _rows("cpus.csv")
    )


def _scaled(value: str, unit: int) -> int | None:
    return round(float(value) * unit) if value else None
