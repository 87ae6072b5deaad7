"""What llama.cpp's log says about memory, read without running anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MIB = 2**20

_BEGIN = re.compile(r"load_model: loading model '(?:.*/)?(?P<id>[^/']+)\.gguf'")
_END = re.compile(r"exiting due to model loading error|server is listening")
_ROW = re.compile(
    r"common_memory_breakdown_print: \|\s+- (?P<name>.+?)\s*\|"
    r".*?(?P<self>\d+) =\s+(?P<model>\d+) \+\s+(?P<context>\d+) \+\s+(?P<compute>\d+)"
)
_KV = re.compile(
    r"(?P<kind>llama_\w+): size =\s+(?P<mib>[\d.]+) MiB \(\s*(?P<cells>\d+) cells,\s*(?P<layers>\d+) layers"
)
_COMPUTE = re.compile(r"sched_reserve:\s+(?P<name>\S+) compute buffer size =\s+(?P<mib>[\d.]+) MiB")
_OUTPUT = re.compile(r"llama_context:\s+\S+\s+output buffer size =\s+(?P<mib>[\d.]+) MiB")
_ERROR = re.compile(r"error loading model(?:[^:]*): (?P<why>.+)$")


@dataclass
class Breakdown:
    """One plan, in MiB. The table's columns are whole MiB, cut off, not rounded."""

    id: str
    model: int = 0
    context: int = 0
    compute: int = 0
    rows: list[str] = field(default_factory=list)
    caches: list[tuple[str, int, int, float]] = field(default_factory=list)
    """Kind, cells, layers, MiB to two digits, in the order of the log."""
    compute_exact: float = 0.0
    output: float = 0.0
    errors: list[str] = field(default_factory=list)
    ended: bool = False
    """Whether the log goes on to the end of the attempt; if not, the process died."""

    @property
    def planned(self) -> bool:
        """Whether llama.cpp came as far as a breakdown."""
        return bool(self.rows)

    @property
    def total(self) -> int:
        return self.model + self.context + self.compute


def parse(lines: Iterable[str]) -> Iterator[Breakdown]:
    """The plans of a log, one per model file, told apart by the file's name.

    llama.cpp writes its log from a thread of its own, so nothing that the process prints beside it
    could mark where a model begins. Of several breakdowns of one file the first counts.
    """
    found: Breakdown | None = None
    closed = False
    for raw in lines:
        line = raw.rstrip("\n")
        if match := _BEGIN.search(line):
            if found is not None:
                yield found
            found, closed = Breakdown(match["id"]), False
            continue
        if found is None:
            continue
        if _END.search(line):
            found.ended = True
            yield found
            found = None
            continue
        if match := _ERROR.search(line):
            found.errors.append(match["why"])
        if found.rows and "common_memory_breakdown_print" not in line:
            closed = True
        if closed:
            continue
        _read(found, line)
    if found is not None:
        yield found


def _read(found: Breakdown, line: str) -> None:
    if match := _ROW.search(line):
        found.rows.append(match["name"])
        found.model += int(match["model"])
        found.context += int(match["context"])
        found.compute += int(match["compute"])
    elif match := _KV.search(line):
        found.caches.append(
            (match["kind"], int(match["cells"]), int(match["layers"]), float(match["mib"]))
        )
    elif match := _COMPUTE.search(line):
        found.compute_exact += float(match["mib"])
    elif match := _OUTPUT.search(line):
        found.output += float(match["mib"])
