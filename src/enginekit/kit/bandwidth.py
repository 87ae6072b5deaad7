"""Memory bandwidth of this computer, measured where no table knows it.

Without it nothing can be said of the speed on a CPU, and a virtual machine never tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from enginekit.facts.machine import Machine

ROUNDS: Final = 3
"""Other programs only ever make a measurement lower, so the best of so many undisturbed ones counts."""

MOST_ROUNDS: Final = 6
"""Measurements in all: a computer that is always busy is not measured at every plan for ever."""

QUIET: Final = 0.9
"""Of its time a copying thread gets at least so much where no other program wants the cores."""


def with_bandwidth(machine: Machine) -> Machine:
    """This computer with its memory bandwidth: the known one, else the best that was measured.

    When it is asked for it is measured (0.3 s) until `ROUNDS` measurements were undisturbed by other
    programs, or `MOST_ROUNDS` were made; after that what was found is read from `bandwidth.json` in
    the cache folder. Removing that file has it measured again. A folder that cannot be written to
    only means that nothing is remembered.
    """
    if machine.cpu.bandwidth_bytes_per_second is not None:
        return machine
    key = f"{machine.cpu.model}, {machine.cpu.usable_cores} threads"
    known = _remembered()
    kept = known.get(key, {})
    quiet, busy = kept.get("quiet", []), kept.get("busy", [])
    if len(quiet) < ROUNDS and len(quiet) + len(busy) < MOST_ROUNDS:
        from enginekit.hardware.detection import copied_now

        copied = copied_now(machine.cpu, machine.memory)
        if copied is not None and copied.share >= QUIET:
            quiet = [*quiet, copied.bytes_per_second]
        elif copied is not None:
            busy = [*busy, copied.bytes_per_second]
        if copied is not None:
            _remember({**known, key: {"quiet": quiet, "busy": busy}})
    rates = [*quiet, *busy]
    if not rates:
        return machine
    said = f"measured by copying; best of {len(rates)}"
    if not quiet:
        said += ", all while other programs computed"
    how = {"bandwidth_bytes_per_second": said}
    cpu = replace(
        machine.cpu,
        bandwidth_bytes_per_second=max(rates),
        how={**machine.cpu.how, **how},
    )
    return replace(machine, cpu=cpu)


def _file() -> Path:
    from enginekit.catalog.sources import cache_dir

    return cache_dir() / "bandwidth.json"


def _remembered() -> dict[str, dict[str, list[int]]]:
    """Bytes per second by processor, `quiet` or `busy`; what is damaged counts as not there."""
    try:
        found = json.loads(_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: {kind: kept[kind] for kind in ("quiet", "busy") if _rates(kept.get(kind))}
        for key, kept in found.items()
        if isinstance(kept, dict)
    }


def _rates(found: object) -> bool:
    return isinstance(found, list) and all(type(rate) is int and rate > 0 for rate in found)


def _remember(known: Mapping[str, Mapping[str, list[int]]]) -> None:
    path = _file()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
