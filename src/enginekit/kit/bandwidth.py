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
"""Other programs only ever make a measurement lower, so the best of so many counts."""


def with_bandwidth(machine: Machine) -> Machine:
    """This computer with its memory bandwidth: the known one, else the best that was measured.

    The first `ROUNDS` times that it is asked for, it is measured (0.3 s); after that what was found
    is read from `bandwidth.json` in the cache folder. Removing that file has it measured again. A
    folder that cannot be written to only means that nothing is remembered.
    """
    if machine.cpu.bandwidth_bytes_per_second is not None:
        return machine
    key = f"{machine.cpu.model}, {machine.cpu.usable_cores} threads"
    known = _remembered()
    rates = known.get(key, [])
    if len(rates) < ROUNDS:
        from enginekit.hardware.detection import measured

        rate = measured(machine.cpu, machine.memory).bandwidth_bytes_per_second
        if rate is not None:
            rates = [*rates, rate]
            _remember({**known, key: rates})
    if not rates:
        return machine
    how = {"bandwidth_bytes_per_second": f"measured by copying; best of {len(rates)}"}
    cpu = replace(
        machine.cpu,
        bandwidth_bytes_per_second=max(rates),
        how={**machine.cpu.how, **how},
    )
    return replace(machine, cpu=cpu)


def _file() -> Path:
    from enginekit.catalog.sources import cache_dir

    return cache_dir() / "bandwidth.json"


def _remembered() -> dict[str, list[int]]:
    """Bytes per second by processor; what is damaged counts as not there."""
    try:
        found = json.loads(_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: rates
        for key, rates in found.items()
        if isinstance(rates, list) and all(type(rate) is int and rate > 0 for rate in rates)
    }


def _remember(known: Mapping[str, list[int]]) -> None:
    path = _file()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
