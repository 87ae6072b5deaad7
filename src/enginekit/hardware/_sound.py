"""What a description of a machine must say, and must not, before models are planned for it.

A size that is left out is no size of nought: a plan for "0 bytes of memory" would be a wrong answer
to a question that nobody asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from enginekit.errors import ConfigError
from enginekit.facts.machine import Gpu, Machine, UnifiedMemory
from enginekit.hardware._text import GIB, MIB
from enginekit.hardware.apple import default_working_set
from enginekit.hardware.tables import GpuRow, gpu_rows_of

_WRITE: Final = "enginekit doctor --json > FILE    (writes the computer that it runs on)"
_LEAST: Final = 16 * MIB
"""A smaller memory is a number in another unit: `total_bytes = 24`."""
_SIZE: Final = re.compile(r"(?<![\d.])(\d{1,4})\s*gi?b\b", re.IGNORECASE)


def sound(machine: Machine, origin: str) -> Machine:
    """The machine with the sizes that data sheets know of its cards.

    A machine that probes have looked at is taken as they found it: what they could not read stays
    unknown, and such a GPU is left out of plans with that reason.

    Raises:
        ConfigError: a size is missing, absurd, or contradicts another; names the field.
    """
    memory = machine.memory
    if memory.limit_bytes is None:
        raise ConfigError(
            f"{origin}: memory.total_bytes is missing: how much RAM the computer has", hint=_WRITE
        )
    if machine.probes:
        return machine
    _plausible(memory.total_bytes, "memory.total_bytes", origin)
    _within(memory.available_bytes, memory.total_bytes, "memory.available_bytes", origin)
    seen: set[tuple[str, int]] = set()
    for position, gpu in enumerate(machine.gpus):
        where = f"gpus[{position}]"
        _plausible(gpu.total_bytes, f"{where}.total_bytes", origin)
        if gpu.unified is None:
            _within(gpu.free_bytes, gpu.total_bytes, f"{where}.free_bytes", origin)
            _within(gpu.used_bytes, gpu.total_bytes, f"{where}.used_bytes", origin)
        if (gpu.vendor, gpu.index) in seen and not gpu.mig_profile:
            raise ConfigError(
                f"{origin}: {where}.index is {gpu.index}, which an earlier {gpu.vendor} GPU has",
                hint="leave index out: GPUs are then counted as they come",
            )
        seen.add((gpu.vendor, gpu.index))
    ram = memory.total_bytes or memory.limit_bytes
    gpus = tuple(_sized(gpu, n, ram, origin) for n, gpu in enumerate(machine.gpus))
    return replace(machine, gpus=gpus)


def of_doctor(document: object) -> object:
    """The machine in what `enginekit doctor --json` printed, or the document as it is."""
    if isinstance(document, Mapping) and isinstance(document.get("machine"), Mapping):
        return document["machine"]
    return document


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these pairs; a key that occurs twice is an error, as it is in TOML."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        found[key] = value
    return found


def _plausible(size: int | None, where: str, origin: str) -> None:
    if size is not None and size < _LEAST:
        raise ConfigError(
            f"{origin}: {where} is {size} bytes, which no device has",
            hint=f'write the unit too: {where.rpartition(".")[2]} = "{size or 24} GiB"',
        )


def _within(part: int | None, whole: int | None, where: str, origin: str) -> None:
    if part is not None and whole is not None and part > whole:
        total = where.rpartition(".")[0] + ".total_bytes"
        raise ConfigError(
            f"{origin}: {where} is {part / GIB:.2f} GiB, more than {total} with {whole / GIB:.2f} GiB"
        )


def _sized(gpu: Gpu, position: int, ram: int, origin: str) -> Gpu:
    """The GPU with its size: its own, else that of the one card with its name."""
    where = f"gpus[{position}]"
    if gpu.unified is not None or gpu.vendor == "apple":
        return _lent(gpu, ram)
    if gpu.total_bytes is not None or gpu.free_bytes is not None:
        return gpu
    rows = [row for row in gpu_rows_of(gpu.vendor, gpu.name) if _bytes(row)]
    said = _SIZE.search(gpu.name)
    if said is not None:
        rows = [row for row in rows if row.memory_bytes == int(said[1]) * GIB]
    if len({_bytes(row) for row in rows}) == 1 and not gpu.mig_profile:
        row = rows[0]
        shown = "as the driver shows it" if row.visible_bytes else "as marketed"
        how = {**gpu.how, "total_bytes": f"table: {row.name}, {shown}"}
        return replace(gpu, total_bytes=_bytes(row), how=how)
    sizes = sorted({row.memory_bytes for row in rows if row.memory_bytes})
    known = " or ".join(f"{size / GIB:g}" for size in sizes)
    why = f"cards of that name have {known} GiB" if known else "no table knows its memory"
    raise ConfigError(
        f"{origin}: {where}.total_bytes is missing, and of {gpu.name!r} {why}",
        hint='total_bytes = "24 GiB"    (for a part that shares system memory: unified = { kind = … })',
    )


def _lent(gpu: Gpu, ram: int) -> Gpu:
    """The GPU with what its system lends it by default, where the description leaves that out."""
    shared = gpu.unified or UnifiedMemory(kind="apple")
    how = dict(gpu.how)
    if shared.kind == "apple" and not (shared.working_set_bytes or shared.wired_limit_bytes):
        shared = replace(shared, working_set_bytes=default_working_set(ram))
        how["unified"] = "rule: 2/3 of RAM up to 36 GiB, 3/4 above"
    elif shared.kind == "amd-apu" and shared.uses_gtt and shared.gtt_bytes is None:
        shared = replace(shared, gtt_bytes=ram // 2)
        how["unified"] = "Linux default: half of RAM as GTT"
    return replace(gpu, unified=shared, how=how) if shared != gpu.unified else gpu


def _bytes(row: GpuRow) -> int | None:
    return row.visible_bytes or row.memory_bytes
