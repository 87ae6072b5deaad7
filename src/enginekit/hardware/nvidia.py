"""NVIDIA devices, from NVML or from `nvidia-smi` in any of its three layouts.

`parse()` takes what any of them gave and returns the devices that an engine can use: a card with
MIG enabled is replaced by its slices. Sources of the rules: NVML reference, and issues of projects
that met unified parts (GB10, Jetson), where the driver refuses to name a memory size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enginekit.facts.machine import Gpu, GpuProcess, Interconnect, UnifiedMemory
from enginekit.hardware import _nvml
from enginekit.hardware._look import Look, ProbeAbsentError, ProbeFailedError
from enginekit.hardware._nvidia_smi import from_csv, from_query, from_table, from_xml
from enginekit.hardware._text import integer, items, mapping, number, pairs, text
from enginekit.hardware.tables import board_row, gpu_row

CSV_FIELDS = (
    "index,uuid,name,memory.total,memory.reserved,memory.used,memory.free,compute_cap,"
    "driver_version,pci.bus_id,mig.mode.current,clocks.max.memory,pcie.link.gen.max,"
    "pcie.link.width.max,display_active"
)
_UNIFIED_NAME = re.compile(r"\b(GB10|Orin|Thor|Xavier|Tegra|nvgpu)\b", re.IGNORECASE)
_PCIE_BYTES_PER_LANE = {1: 250, 2: 500, 3: 985, 4: 1969, 5: 3938, 6: 7563}
_NVLINK_BYTES_PER_LINK = {1: 20, 2: 25, 3: 25, 4: 25, 5: 50}


def read(look: Look) -> tuple[Gpu, ...]:
    """NVML if its binding is installed, else `nvidia-smi -q -x`, else its CSV."""
    board = look.read("/proc/device-tree/model").strip("\x00\n ")
    if (snapshot := _nvml.snapshot()) is not None:
        return parse(snapshot, board=board)
    try:
        return parse(look.run("nvidia-smi", "-q", "-x"), board=board)
    except ProbeFailedError:
        return parse(look.run("nvidia-smi"), board=board)
    except ProbeAbsentError:
        if found := look.glob("/proc/driver/nvidia/gpus/*/information"):
            return parse_proc({path: look.read(path) for path in found})
        raise


def parse(source: str | Mapping[str, Any], *, board: str = "") -> tuple[Gpu, ...]:
    """Devices from an NVML snapshot or any output of `nvidia-smi`: `-q -x`, `-q`, CSV with its
    header, or the boxed summary. Never raises; what is not understood gives no devices.

    Args:
        source: what the tool or the library gave.
        board: `/proc/device-tree/model`; a Jetson's driver does not name the module.
    """
    if not isinstance(source, str):
        return _devices(mapping(source), "NVML", board)
    if "<nvidia_smi_log" in source:
        return _devices(from_xml(source), "nvidia-smi -q -x", board)
    if "NVSMI LOG" in source:
        return _devices(from_query(source), "nvidia-smi -q", board)
    if "NVIDIA-SMI" in source and "|" in source:
        return _devices(from_table(source), "nvidia-smi", board)
    return _devices(from_csv(source), "nvidia-smi --query-gpu", board)


def parse_proc(files: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Names only, from `/proc/driver/nvidia/gpus/*/information`, where nvidia-smi is missing."""
    found = []
    for index, (_, content) in enumerate(sorted(files.items())):
        lines = dict(pairs(content))
        found.append(
            {
                "name": lines.get("Model", ""),
                "bus_id": lines.get("Bus Location", ""),
                "index": index,
            }
        )
    return _devices({"gpus": found}, "/proc/driver/nvidia")


def _devices(log: Mapping[str, Any], how: str, board: str = "") -> tuple[Gpu, ...]:
    found: list[Gpu] = []
    for position, raw in enumerate(items(log.get("gpus"))):
        card = mapping(raw)
        whole = _card(card, position, log, how, board)
        slices = [_slice(part, whole, how) for part in _memories(card.get("mig_devices"))]
        found.extend(slices if whole.mig_enabled and slices else [whole])
    return tuple(found)


def _card(
    card: Mapping[str, Any], position: int, log: Mapping[str, Any], how: str, board: str
) -> Gpu:
    name = text(card.get("name")) or "NVIDIA GPU"
    index = integer(card.get("index"))
    total = integer(card.get("total"))
    unified = _UNIFIED_NAME.search(name) is not None or (
        not total and text(card.get("addressing_mode")).upper() == "ATS"
    )
    if unified or not total:
        total = None
    row = (board_row(board) if unified else None) or gpu_row("nvidia", name, total)
    known: dict[str, str] = {"*": how}
    compute = _capability(card.get("compute_capability"))
    if compute is None and row is not None and row.architecture:
        compute = _capability(row.architecture)
        known["compute_capability"] = f"table: {row.name} ({row.source})"
    clock, bus = number(card.get("memory_clock_mhz")), integer(card.get("bus_bits"))
    bandwidth = None
    if clock and bus and 0 < clock < 1e6 and 0 < bus < 1e6 and not unified:
        bandwidth = round(2 * clock * 1e6 * bus / 8)
        known["bandwidth_bytes_per_second"] = f"{how}: 2 x {clock:g} MHz x {bus} bit"
    elif row is not None and row.bandwidth is not None:
        bandwidth = row.bandwidth
        known["bandwidth_bytes_per_second"] = f"table: {row.name} ({row.source})"
    if row is not None and row.fp16_flops is not None:
        known["fp16_flops_per_second"] = f"table: {row.name} ({row.source})"
    if unified:
        known["unified"] = f"{how}: the driver names no memory of its own"
    own = {} if unified else {key: integer(card.get(key)) for key in ("free", "used", "reserved")}
    return Gpu(
        index=position if index is None else index,
        vendor="nvidia",
        name=name,
        uuid=text(card.get("uuid")),
        bus_id=text(card.get("bus_id")),
        total_bytes=total,
        free_bytes=own.get("free"),
        used_bytes=own.get("used"),
        reserved_bytes=own.get("reserved"),
        bandwidth_bytes_per_second=bandwidth,
        fp16_flops_per_second=row.fp16_flops if row else None,
        compute_capability=compute,
        architecture=text(card.get("architecture")).lower(),
        unified=UnifiedMemory(kind="nvidia") if unified else None,
        mig_enabled=text(card.get("mig_mode")).lower() in {"enabled", "1"},
        processes=_processes(card.get("processes")),
        driver_version=text(log.get("driver_version")) or text(card.get("driver_version")),
        runtime_version=text(log.get("cuda_version")),
        driver_model=text(card.get("driver_model")),
        display_active=_truth(card.get("display_active")),
        interconnect=_interconnect(card),
        how=known,
    )


def _memories(parts: Any) -> list[Mapping[str, Any]]:
    """One of the compute instances of each GPU instance: they share its memory, and a process can use
    one of them."""
    found: dict[object, Mapping[str, Any]] = {}
    for position, raw in enumerate(items(parts)):
        part = mapping(raw)
        instance = integer(part.get("gpu_instance_id"))
        found.setdefault(("position", position) if instance is None else instance, part)
    return list(found.values())


def _slice(part: Mapping[str, Any], card: Gpu, how: str) -> Gpu:
    total = integer(part.get("total"))
    share = None
    known = {"*": how}
    if card.bandwidth_bytes_per_second and card.total_bytes and total:
        share = min(1.0, total / card.total_bytes)
        known["bandwidth_bytes_per_second"] = (
            "the card's bandwidth times the slice's share of memory"
        )
    profile = text(part.get("profile"))
    label = profile or f"instance {text(part.get('gpu_instance_id')) or text(part.get('index'))}"
    return Gpu(
        index=card.index,
        vendor="nvidia",
        name=f"{card.name} MIG {label}",
        uuid=text(part.get("uuid")),
        bus_id=card.bus_id,
        total_bytes=total,
        free_bytes=integer(part.get("free")),
        used_bytes=integer(part.get("used")),
        reserved_bytes=integer(part.get("reserved")),
        bandwidth_bytes_per_second=(
            round(card.bandwidth_bytes_per_second * share)
            if share and card.bandwidth_bytes_per_second
            else None
        ),
        compute_capability=card.compute_capability,
        architecture=card.architecture,
        mig_enabled=True,
        mig_profile=profile,
        parent_uuid=card.uuid or card.bus_id,
        driver_version=card.driver_version,
        runtime_version=card.runtime_version,
        how=known,
    )


def _interconnect(card: Mapping[str, Any]) -> Interconnect | None:
    links, version = integer(card.get("nvlinks")), integer(card.get("nvlink_version"))
    if links and 0 < links < 100:
        per_link = _NVLINK_BYTES_PER_LINK.get(version or 0)
        return Interconnect(
            kind="nvlink",
            bytes_per_second=per_link * links * 10**9 if per_link else None,
            detail=f"{links} NVLinks",
        )
    generation, width = integer(card.get("pcie_generation")), integer(card.get("pcie_width"))
    lane = _PCIE_BYTES_PER_LANE.get(generation or 0)
    if lane is None or width not in {1, 2, 4, 8, 16, 32}:
        return None
    return Interconnect(
        kind="pcie", bytes_per_second=lane * width * 10**6, detail=f"PCIe {generation}.0 x{width}"
    )


def _processes(raw: object) -> tuple[GpuProcess, ...]:
    found = []
    for item in items(raw):
        entry = mapping(item)
        pid = integer(entry.get("pid"))
        if pid is not None:
            found.append(
                GpuProcess(
                    pid=pid, name=text(entry.get("name")), used_bytes=integer(entry.get("used"))
                )
            )
    return tuple(found)


def _capability(value: object) -> tuple[int, int] | None:
    match = re.match(r"\s*(\d{1,2})\.(\d{1,2})\s*$", value) if isinstance(value, str) else None
    return (int(match.group(1)), int(match.group(2))) if match else None


def _truth(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"enabled": True, "yes": True, "disabled": False, "no": False}.get(text(value).lower())
