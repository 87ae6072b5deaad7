"""Apple GPUs, from `system_profiler`, `sysctl` and Metal's own working-set limit.

Metal names the limit (`recommendedMaxWorkingSetSize`) but has no command-line tool: it is asked in a
child process through `ctypes`, so that nothing it does can hurt this one. Without an answer the
rule is two thirds of RAM up to 36 GiB and three quarters above (measured on macOS 13 to 15;
macOS 26 grants more).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from enginekit.facts.machine import Gpu, UnifiedMemory, Vendor
from enginekit.hardware._look import (
    Look,
    ProbeAbsentError,
    ProbeFailedError,
    ProbeTimeoutError,
)
from enginekit.hardware._text import GIB, MIB, integer, items, loads, mapping, pairs, size, text
from enginekit.hardware.tables import apple_row, gpu_row

SYSCTL_NAMES = (
    "hw.memsize",
    "hw.model",
    "hw.physicalcpu",
    "hw.logicalcpu",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "hw.packages",
    "hw.optional",
    "machdep.cpu",
    "iogpu.wired_limit_mb",
    "debug.iogpu.wired_limit",
    "sysctl.proc_translated",
    "vm.swapusage",
    "kern.osproductversion",
)
_SMALL_MACHINE = 36 * GIB
_METAL = """
import ctypes, ctypes.util
metal = ctypes.CDLL("/System/Library/Frameworks/Metal.framework/Metal")
objc = ctypes.CDLL(ctypes.util.find_library("objc"))
metal.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
objc.sel_registerName.restype = ctypes.c_void_p
objc.sel_registerName.argtypes = [ctypes.c_char_p]
send = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p)(("objc_msgSend", objc))
device = metal.MTLCreateSystemDefaultDevice()
if device:
    print(send(device, objc.sel_registerName(b"recommendedMaxWorkingSetSize")))
"""


def read(look: Look) -> tuple[Gpu, ...]:
    """`system_profiler SPDisplaysDataType -json`, `sysctl` and Metal."""
    return parse(
        {
            "displays": _quiet(look, "system_profiler", "SPDisplaysDataType", "-json"),
            "sysctl": read_sysctl(look),
            # In a frozen program the executable is that program, not an interpreter.
            "metal": ""
            if getattr(sys, "frozen", False)
            else _quiet(look, sys.executable, "-I", "-c", _METAL),
        }
    )


def read_sysctl(look: Look) -> str:
    """Every name of `SYSCTL_NAMES` that this Mac knows."""
    return look.run("sysctl", *SYSCTL_NAMES)


def parse(sources: Mapping[str, Any]) -> tuple[Gpu, ...]:
    """Devices from texts under the keys `displays`, `hardware`, `sysctl`, `metal`.

    `displays` and `hardware` are `system_profiler SPDisplaysDataType` and `SPHardwareDataType`, as
    JSON or plain text. Each may be missing. Never raises.
    """
    facts = hardware_facts(sources.get("hardware")) | sysctl_facts(str(sources.get("sysctl", "")))
    memory = integer(facts.get("hw.memsize"))
    wired = integer(facts.get("iogpu.wired_limit_mb"))
    limit = wired * MIB if wired else integer(facts.get("debug.iogpu.wired_limit")) or None
    metal = integer(str(sources.get("metal", "")).strip())
    found = []
    for index, card in enumerate(_cards(sources.get("displays"))):
        name = card.get("name", "")
        if name.lower().startswith("apple"):
            found.append(_apple(index, name, integer(card.get("cores")), memory, metal, limit))
        elif name:
            found.append(_other(index, name, size(card.get("vram"))))
    brand = facts.get("machdep.cpu.brand_string", "")
    if not found and brand.startswith("Apple"):
        found.append(_apple(0, brand, None, memory, metal, limit))
    return tuple(found)


def sysctl_facts(source: str) -> dict[str, str]:
    """`name: value` (macOS) or `name = value` lines of `sysctl`."""
    found: dict[str, str] = {}
    for line in source.splitlines():
        match = re.match(r"([a-zA-Z_][\w.]{0,200})\s*[:=]\s*(.*)$", line)
        if match is not None:
            found.setdefault(match.group(1), match.group(2).strip())
    return found


def hardware_facts(source: object) -> dict[str, str]:
    """`system_profiler SPHardwareDataType` (text or JSON) under the names that `sysctl` uses."""
    document = loads(source)
    found: dict[str, str] = {}
    if isinstance(document, Mapping):
        for card in items(document.get("SPHardwareDataType")):
            entry = mapping(card)
            found = {
                "Chip": text(entry.get("chip_type")),
                "Memory": text(entry.get("physical_memory")),
                "Model Identifier": text(entry.get("machine_model")),
                "Total Number of Cores": text(entry.get("number_processors")),
            }
    else:
        found = dict(pairs(source if isinstance(source, str) else ""))
    facts = {
        "machdep.cpu.brand_string": found.get("Chip", ""),
        "hw.model": found.get("Model Identifier", ""),
        "hw.memsize": str(size(found.get("Memory")) or ""),
    }
    cores = re.findall(r"\d+", found.get("Total Number of Cores", ""))
    if found.get("Total Number of Cores", "").startswith("proc"):
        cores = cores[:1] + cores[-2:]
    if cores:
        facts["hw.physicalcpu"] = facts["hw.logicalcpu"] = cores[0]
    if len(cores) >= 3:
        facts["hw.perflevel0.physicalcpu"] = cores[1]
    return {key: value for key, value in facts.items() if value}


def default_working_set(memory_bytes: int) -> int:
    """The rule for when Metal cannot be asked: 2/3 of RAM up to 36 GiB, 3/4 above."""
    if memory_bytes <= _SMALL_MACHINE:
        return memory_bytes * 2 // 3
    return memory_bytes * 3 // 4


def _apple(
    index: int,
    name: str,
    cores: int | None,
    memory: int | None,
    metal: int | None,
    limit: int | None,
) -> Gpu:
    row = apple_row(name, cores, memory)
    known = {"*": "system_profiler" if cores is not None else "sysctl machdep.cpu.brand_string"}
    working_set = metal if metal and metal > 0 else None
    if working_set is not None:
        known["unified"] = "Metal recommendedMaxWorkingSetSize"
    elif memory:
        working_set = default_working_set(memory)
        known["unified"] = "rule: 2/3 of RAM up to 36 GiB, 3/4 above; Metal was not asked"
    if limit:
        known["wired_limit_bytes"] = "sysctl iogpu.wired_limit_mb"
    if row is not None:
        certain = cores is not None or memory is not None
        known["bandwidth_bytes_per_second"] = f"table: {row.chip}, {row.gpu_cores} GPU cores" + (
            "" if certain else " (cores unknown: smallest variant assumed)"
        )
        if row.fp16_flops is not None:
            known["fp16_flops_per_second"] = f"table: {row.chip}; FP32 rate, about equal"
    chip = name.lower().removeprefix("apple").strip()
    return Gpu(
        index=index,
        vendor="apple",
        name=name,
        cores=cores,
        architecture="apple-" + (chip.split() or [""])[0],
        bandwidth_bytes_per_second=row.bandwidth if row else None,
        fp16_flops_per_second=row.fp16_flops if row else None,
        unified=UnifiedMemory(
            kind="apple", working_set_bytes=working_set, wired_limit_bytes=limit or None
        ),
        how=known,
    )


def _other(index: int, name: str, vram: int | None) -> Gpu:
    """A card of an Intel Mac; its integrated GPU shares RAM."""
    vendor: Vendor = "other"
    for candidate, pattern in (
        ("amd", "radeon|amd"),
        ("intel", "intel|iris"),
        ("nvidia", "nvidia|geforce"),
    ):
        if re.search(pattern, name, re.IGNORECASE):
            vendor = candidate  # type: ignore[assignment]
            break
    shared = UnifiedMemory(kind="intel-igpu") if vendor == "intel" else None
    row = gpu_row(vendor, name, vram)
    return Gpu(
        index=index,
        vendor=vendor,
        name=name,
        total_bytes=None if shared else vram,
        bandwidth_bytes_per_second=row.bandwidth if row else None,
        unified=shared,
        how={"*": "system_profiler"}
        | ({"bandwidth_bytes_per_second": f"table: {row.name} ({row.source})"} if row else {}),
    )


def _cards(source: object) -> list[dict[str, str]]:
    document = loads(source)
    if isinstance(document, Mapping) and "SPDisplaysDataType" in document:
        return [
            {
                "name": text(mapping(card).get("sppci_model")) or text(mapping(card).get("_name")),
                "cores": text(mapping(card).get("sppci_cores")),
                "vram": text(mapping(card).get("spdisplays_vram")),
            }
            for card in items(document["SPDisplaysDataType"])
        ]
    found: list[dict[str, str]] = []
    for key, value in pairs(source if isinstance(source, str) else ""):
        if key == "Chipset Model":
            found.append({"name": value})
        elif found and key == "Total Number of Cores":
            found[-1]["cores"] = value
        elif found and key.startswith("VRAM"):
            found[-1]["vram"] = value
    return found


def _quiet(look: Look, *argv: str) -> str:
    try:
        return look.run(*argv)
    except (ProbeAbsentError, ProbeFailedError, ProbeTimeoutError):
        return ""
