"""`enginekit hardware`: the machines that can be planned for by name."""

from __future__ import annotations

import sys

from enginekit.cli import table
from enginekit.cli.output import print_json
from enginekit.facts.machine import Machine
from enginekit.hardware import preset, preset_names

_GIB = 2**30


def hardware(word: str = "", /, *, json: bool = False) -> int:
    """Show the machines that `--hardware` knows by name; Nx before a name takes N of its GPUs.

    Parameters
    ----------
    word
        Only those with this in their name or in that of their GPU or processor.
    json
        Print one JSON object, sizes in bytes.
    """
    wanted = word.strip().lower()
    found = [machine for machine in map(preset, preset_names()) if _has(machine, wanted)]
    if json:
        print_json({"machines": [machine.to_dict() for machine in found]})
        return 0
    if not found:
        preset(word)  # says which names are near
    table.show(
        ("name", "GPUs", "GiB", "GB/s", "RAM GiB", "processor"),
        [_row(machine) for machine in found],
        right=("GiB", "GB/s", "RAM GiB"),
        optional=("processor",),
    )
    sys.stderr.write(
        "\nwhat fits: enginekit plan MODEL --hardware NAME; this computer: enginekit doctor\n"
    )
    return 0


def _has(machine: Machine, wanted: str) -> bool:
    names = (machine.name, machine.cpu.model, *(gpu.name for gpu in machine.gpus))
    return any(wanted in name.lower() for name in names)


def _row(machine: Machine) -> tuple[str, ...]:
    first = machine.gpus[0] if machine.gpus else None
    count = f"{len(machine.gpus)} x " if len(machine.gpus) > 1 else ""
    size = machine.gpu_capacity_bytes(first) if first else None
    rate = (first or machine.cpu).bandwidth_bytes_per_second
    return (
        machine.name,
        f"{count}{first.name}" if first else "none",
        _number(size, _GIB),
        _number(rate, 10**9),
        _number(machine.memory.total_bytes, _GIB),
        machine.cpu.model,
    )


def _number(value: int | None, unit: int) -> str:
    return "-" if value is None else f"{value / unit:.0f}"
