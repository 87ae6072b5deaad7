"""Processors, from `/proc/cpuinfo`, `lscpu`, `sysctl` or Windows CIM.

Physical cores are counted as distinct (socket, core) pairs; performance cores of a hybrid part come
from sysfs or `sysctl`. Memory bandwidth is read off a table by model name, or measured on request.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from enginekit.facts.machine import Cpu
from enginekit.hardware._look import Look
from enginekit.hardware._text import integer, items, loads, mapping, pairs, text
from enginekit.hardware.apple import hardware_facts, sysctl_facts
from enginekit.hardware.tables import apple_row, cpu_row

# Names as kernels test for them; Linux x86 flag, ARM feature or macOS suffix → ours.
_ISA = {
    "sse4_2": "sse4.2", "ssse3": "ssse3", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi2": "bmi2",
    "avx_vnni": "avx-vnni", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16", "avx512_fp16": "avx512-fp16", "amx_tile": "amx-tile", "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16", "asimd": "neon", "neon": "neon", "asimddp": "dotprod", "asimdhp": "fp16",
    "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2", "sme": "sme", "vsx": "vsx",
    "AdvSIMD": "neon", "FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "FEAT_FP16": "fp16", "FEAT_SME": "sme",
    "avx2_0": "avx2", "avx1_0": "avx", "avx512f_mac": "avx512f",
}  # fmt: skip
_VENDORS = {
    "genuineintel": "intel", "authenticamd": "amd", "hygongenuine": "hygon", "centaurhauls": "centaur",
    "arm": "arm", "ampere": "ampere", "apple": "apple", "nvidia": "nvidia", "qualcomm": "qualcomm",
    "0x41": "arm", "0xc0": "ampere", "0x61": "apple", "0x4e": "nvidia", "0x51": "qualcomm", "0x48": "hisilicon", "0x42": "broadcom", "0x46": "fujitsu",
}  # fmt: skip
MEMORY_FIELDS = (
    "memory_channels",
    "memory_type",
    "memory_mega_transfers",
    "bandwidth_bytes_per_second",
)
_SMALL_CORES = re.compile(r"Cortex-A(7|35|53|55|510|520)$|Icestorm|Blizzard")
# MIDR implementer and part number, from the vendors' technical reference manuals and util-linux.
_PARTS = {
    "0x41:0xd03": "Cortex-A53", "0x41:0xd04": "Cortex-A35", "0x41:0xd05": "Cortex-A55", "0x41:0xd07": "Cortex-A57",
    "0x41:0xd08": "Cortex-A72", "0x41:0xd09": "Cortex-A73", "0x41:0xd0b": "Cortex-A76", "0x41:0xd0c": "Neoverse-N1",
    "0x41:0xd40": "Neoverse-V1", "0x41:0xd41": "Cortex-A78", "0x41:0xd42": "Cortex-A78AE", "0x41:0xd44": "Cortex-X1",
    "0x41:0xd46": "Cortex-A510", "0x41:0xd47": "Cortex-A710", "0x41:0xd48": "Cortex-X2", "0x41:0xd49": "Neoverse-N2",
    "0x41:0xd4d": "Cortex-A715", "0x41:0xd4e": "Cortex-X3", "0x41:0xd4f": "Neoverse-V2", "0x41:0xd80": "Cortex-A520",
    "0x41:0xd83": "Neoverse-V3AE", "0x41:0xd84": "Neoverse-V3", "0x41:0xd85": "Cortex-X925", "0x41:0xd87": "Cortex-A725",
    "0x41:0xc07": "Cortex-A7", "0x41:0xc0f": "Cortex-A15", "0x41:0xb76": "ARM1176", "0x48:0xd01": "Kunpeng-920",
    "0xc0:0xac3": "Ampere-1", "0xc0:0xac4": "Ampere-1a", "0x4e:0x004": "Carmel", "0x46:0x001": "A64FX",
    "0x61:0x022": "Icestorm-M1", "0x61:0x023": "Firestorm-M1", "0x61:0x032": "Blizzard-M2", "0x61:0x033": "Avalanche-M2",
}  # fmt: skip


def read(look: Look, system: str) -> Cpu:
    """What this system offers: `/proc/cpuinfo` and sysfs, `sysctl`, or PowerShell's CIM."""
    if system == "linux":
        found, board = _cpuinfo(look.read("/proc/cpuinfo"))
        return tabled(_with_topology(found, look), _board(look) or board)
    if system == "macos":
        from enginekit.hardware.apple import read_sysctl

        return parse_sysctl(read_sysctl(look))
    return parse_cim(look.run("powershell", "-NoProfile", "-Command", CIM_COMMAND))


CIM_COMMAND = (
    "@{Processor=@(Get-CimInstance Win32_Processor|Select-Object Name,Manufacturer,NumberOfCores,"
    "NumberOfLogicalProcessors,Architecture);Memory=@(Get-CimInstance Win32_PhysicalMemory|"
    "Select-Object Capacity,ConfiguredClockSpeed,Speed,SMBIOSMemoryType,DataWidth)}|ConvertTo-Json -Depth 4"
)


def parse(source: str, *, board: str = "") -> Cpu:
    """Recognises `/proc/cpuinfo`, `lscpu`, `sysctl`, `system_profiler` or CIM JSON; never raises."""
    if "hw.memsize" in source or "machdep.cpu" in source or "hw.physicalcpu" in source:
        return parse_sysctl(source)
    if re.search(r"Hardware Overview:|SPHardwareDataType|^\s*Chip: Apple ", source, re.MULTILINE):
        facts = hardware_facts(source)
        return parse_sysctl("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if source.lstrip()[:1] in {"{", "["}:
        return parse_cim(source)
    if re.search(r"^(Architecture|CPU\(s\)):", source, re.MULTILINE):
        return parse_lscpu(source)
    return parse_cpuinfo(source, board=board)


def parse_cpuinfo(source: str, *, board: str = "") -> Cpu:
    """`/proc/cpuinfo` of x86, ARM, POWER or RISC-V.

    Args:
        source: the file.
        board: `/proc/device-tree/model`; names the memory of single-board computers.
    """
    found, named = _cpuinfo(source)
    return tabled(found, board or named)


def _cpuinfo(source: str) -> tuple[Cpu, str]:
    """The CPU without its memory bandwidth, and the board if the file names it (Raspberry Pi)."""
    blocks: list[dict[str, str]] = [{}]
    for line in source.splitlines():
        key, found, value = (part.strip() for part in line.partition(":"))
        numbered = key == "processor" and value.isdigit()
        if (not line.strip() and blocks[-1]) or (numbered and "processor" in blocks[-1]):
            blocks.append({})
        if found and (numbered or key.lower() != "processor"):
            blocks[-1].setdefault(key.lower(), value)
    entries = [block for block in blocks if "processor" in block]
    everything: dict[str, str] = {}
    for block in blocks:
        for key, value in block.items():
            everything.setdefault(key, value)
    cores = {
        (block.get("physical id", "0"), block["core id"]) for block in entries if "core id" in block
    }
    sockets = {block["physical id"] for block in entries if "physical id" in block}
    implementer = everything.get("cpu implementer", "").lower()
    parts = [_part(block) for block in entries if "cpu part" in block]
    model = "" if "cpu part" in everything else everything.get("model name", "")
    named = " + ".join(dict.fromkeys(part for part in parts if part))
    model = model or named or everything.get("cpu", "") or everything.get("model name", "")
    features = everything.get("flags", "") or everything.get("features", "")
    logical = len(entries) or None
    physical = len(cores) or (logical if implementer else None)
    cpu = Cpu(
        vendor=_vendor(everything.get("vendor_id", "") or implementer),
        model=model,
        architecture=_architecture(everything, features),
        sockets=len(sockets) or None,
        physical_cores=physical,
        performance_cores=_fast_arm(parts) or _fast_x86(entries) or physical,
        logical_cores=logical,
        isa=_isa(features.split()),
        virtual="hypervisor" in features.split(),
        how={"*": "/proc/cpuinfo"} if entries else {},
    )
    return cpu, everything.get("model", "") if implementer else ""


def parse_lscpu(source: str) -> Cpu:
    """`lscpu`, in English."""
    facts: dict[str, str] = {}
    kinds: list[dict[str, str]] = []
    # The flags may be wrapped, and only the first of their lines has a colon.
    for key, value in pairs(re.sub(r"\n {12,}(?=[^:\n]*(?:\n|$))", " ", source)):
        if key == "Model name":
            kinds.append({"Model name": value})
        elif kinds:
            kinds[-1].setdefault(key, value)
        facts.setdefault(key, value)
    if len(kinds) < 2:  # util-linux before 2.37 counts cores above the name, which may be missing
        kinds = [{"Model name": "", **facts}]
    counted = [(kind["Model name"], _lscpu_cores(kind)) for kind in kinds]
    physical = sum(count or 0 for _, count in counted) or None
    parts = [name for name, count in counted for _ in range(min(count or 0, 8192))]
    features = facts.get("Flags", "").split()
    cpu = Cpu(
        vendor=_vendor(facts.get("Vendor ID", "")),
        model=" + ".join(dict.fromkeys(name for name, _ in counted)),
        architecture=facts.get("Architecture", "").lower(),
        sockets=integer(facts.get("Socket(s)")) or integer(facts.get("Cluster(s)")),
        physical_cores=physical,
        performance_cores=_fast_arm(parts) or physical,
        logical_cores=integer(facts.get("CPU(s)")),
        numa_nodes=integer(facts.get("NUMA node(s)")),
        isa=_isa(features),
        virtual="Hypervisor vendor" in facts,
        how={"*": "lscpu"} if facts else {},
    )
    return tabled(cpu)


def parse_sysctl(source: str) -> Cpu:
    """macOS `sysctl hw machdep.cpu`; an Intel Mac's flags are in `machdep.cpu.features`."""
    facts = sysctl_facts(source)
    model = facts.get("machdep.cpu.brand_string", "")
    listed = " ".join(
        facts.get(name, "") for name in ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    )
    switched = [
        name.rsplit(".", 1)[-1]
        for name, value in facts.items()
        if name.startswith("hw.optional.") and value == "1"
    ]
    apple = model.startswith("Apple")
    row = apple_row(model, None, integer(facts.get("hw.memsize"))) if apple else None
    physical = integer(facts.get("hw.physicalcpu")) or integer(facts.get("machdep.cpu.core_count"))
    logical = integer(facts.get("hw.logicalcpu")) or integer(facts.get("hw.ncpu"))
    known = {"*": "sysctl"} if facts else {}
    if row is not None:
        known["bandwidth_bytes_per_second"] = f"table: {row.chip}, shared with the GPU"
    cpu = Cpu(
        vendor="apple" if apple else _vendor(facts.get("machdep.cpu.vendor", "")),
        model=model,
        architecture="arm64" if apple else ("x86_64" if model else ""),
        sockets=integer(facts.get("hw.packages")) or (1 if model else None),
        physical_cores=physical,
        performance_cores=integer(facts.get("hw.perflevel0.physicalcpu")) or physical,
        logical_cores=logical or integer(facts.get("machdep.cpu.thread_count")),
        isa=_isa([*switched, *_intel_mac(listed)]) or (("neon",) if apple else ()),
        bandwidth_bytes_per_second=row.bandwidth if row else None,
        how=known,
    )
    return cpu if apple else tabled(cpu)


def parse_cim(source: str | Mapping[str, Any]) -> Cpu:
    """JSON of `CIM_COMMAND`, or of `Get-CimInstance Win32_Processor | ConvertTo-Json` alone."""
    document = loads(source)
    nested = mapping(document).get("Processor") if "Processor" in mapping(document) else document
    sockets = [mapping(entry) for entry in items(nested)]
    sockets = [
        entry
        for entry in sockets
        if "NumberOfCores" in entry or "NumberOfLogicalProcessors" in entry
    ]
    if not sockets:
        return Cpu()
    cores = sum(integer(entry.get("NumberOfCores")) or 0 for entry in sockets) or None
    cpu = Cpu(
        vendor=_vendor(text(sockets[0].get("Manufacturer"))),
        model=text(sockets[0].get("Name")),
        architecture={9: "x86_64", 12: "arm64", 0: "x86"}.get(
            integer(sockets[0].get("Architecture")) or -1, ""
        ),
        sockets=len(sockets),
        physical_cores=cores,
        performance_cores=cores,
        logical_cores=sum(integer(entry.get("NumberOfLogicalProcessors")) or 0 for entry in sockets)
        or None,
        how={"*": "Win32_Processor"},
    )
    return _with_modules(
        tabled(cpu), [mapping(entry) for entry in items(mapping(document).get("Memory"))]
    )


def tabled(cpu: Cpu, board: str = "") -> Cpu:
    """The same CPU with memory bandwidth from the table, unless it is virtual or unknown.

    A virtual machine shares its host's channels: the nominal figure would promise too much.
    """
    row = cpu_row(f"{cpu.model} {board}".strip())
    if row is None or cpu.bandwidth_bytes_per_second is not None or cpu.virtual:
        return cpu
    how = f"table: fastest memory the part takes ({row.source})"
    return replace(
        cpu,
        memory_channels=row.channels * (cpu.sockets or 1),
        memory_type=row.memory_type,
        memory_mega_transfers=row.mega_transfers,
        bandwidth_bytes_per_second=row.bandwidth * (cpu.sockets or 1),
        how={**cpu.how, **dict.fromkeys(MEMORY_FIELDS, how)},
    )


class Copied(NamedTuple):
    """What copying reached."""

    bytes_per_second: int
    share: float = 1.0
    """Processor time that the threads got, of the time that passed for them: 0 to 1."""


def measure_bandwidth(
    seconds: float = 0.3, threads: int | None = None, room: int | None = None
) -> Copied | None:
    """Bytes per second that copying reaches, read and write counted; about 80 % of nominal.

    Each thread copies blocks of 64 MiB, far larger than a cache, until the time is over, and takes
    128 MiB while it runs. Eight threads at most, and no more than have room. What all of them copied
    counts per second on the wall, from the first block to the last: threads that take turns do not
    compete for the memory, so rates per processor second would add up to more than it gives. Other
    programs only ever make this rate lower, and the share of processor time tells that they did.

    Args:
        seconds: how long to copy.
        threads: how many at once; None: one for each CPU that this process may use.
        room: bytes that may be taken; None: as many as the threads need.

    Returns:
        None where there is no room for a single thread.
    """
    block = 64 * 1024 * 1024
    count = max(1, min(threads or _cpus(), 8))
    if room is not None:
        count = min(count, room // (2 * block))
    if count < 1:
        return None
    spans = [(0.0, 0.0, 0.0, 0)] * count  # begin, end, processor time, bytes
    # Taken here: a thread that fails for want of memory would leave the others waiting.
    pairs = [
        (ctypes.create_string_buffer(block), ctypes.create_string_buffer(block))
        for _ in range(count)
    ]
    barrier = threading.Barrier(count + 1)

    def work(slot: int) -> None:
        source, target = pairs[slot]
        ctypes.memset(source, 1, block)
        ctypes.memset(target, 2, block)
        with suppress(threading.BrokenBarrierError):
            barrier.wait()
            begun, own, copied = time.perf_counter(), time.thread_time(), 0
            now = begun
            while now < begun + seconds or not copied:
                ctypes.memmove(target, source, block)
                copied += 2 * block
                now = time.perf_counter()
            spans[slot] = begun, now, time.thread_time() - own, copied

    workers = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(count)]
    try:
        for worker in workers:
            worker.start()
    except RuntimeError:  # the system gives no further thread
        barrier.abort()
        raise
    barrier.wait()
    for worker in workers:
        worker.join()
    passed = max(span[1] for span in spans) - min(span[0] for span in spans)
    share = sum(span[2] for span in spans) / max(sum(span[1] - span[0] for span in spans), 1e-9)
    return Copied(round(sum(span[3] for span in spans) / max(passed, 1e-9)), min(share, 1.0))


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _with_modules(cpu: Cpu, modules: list[Mapping[str, Any]]) -> Cpu:
    """Bandwidth from the memory modules that Windows lists; consumer boards have two channels."""
    rates = [
        rate
        for module in modules
        if (rate := integer(module.get("ConfiguredClockSpeed")) or integer(module.get("Speed")))
    ]
    if not rates:
        return cpu
    table = cpu_row(cpu.model)
    most = (table.channels if table else 2) * (cpu.sockets or 1)
    channels = min(len(rates), most)
    kind = {24: "DDR3", 26: "DDR4", 34: "DDR5", 35: "LPDDR5"}.get(
        integer(modules[0].get("SMBIOSMemoryType")) or 0, ""
    )
    rate = min(rates)
    how = f"Win32_PhysicalMemory: {rate} MT/s x {channels} channels"
    return replace(
        cpu,
        memory_channels=channels,
        memory_type=kind or cpu.memory_type,
        memory_mega_transfers=rate,
        bandwidth_bytes_per_second=rate * 10**6 * 8 * channels,
        how={**cpu.how, **dict.fromkeys(MEMORY_FIELDS, how)},
    )


def _with_topology(cpu: Cpu, look: Look) -> Cpu:
    changes: dict[str, Any] = {}
    nodes = [path for path in look.glob("/sys/devices/system/node/node*") if path[-1].isdigit()]
    if nodes:
        changes["numa_nodes"] = len(nodes)
    pairs_seen = {
        (look.read(f"{path}/physical_package_id").strip(), look.read(f"{path}/core_id").strip())
        for path in look.glob("/sys/devices/system/cpu/cpu[0-9]*/topology")
    }
    if pairs_seen and cpu.physical_cores is None:
        changes["physical_cores"] = changes["performance_cores"] = len(pairs_seen)
    packages = {package for package, _ in pairs_seen if package}
    if packages and cpu.sockets is None:
        changes["sockets"] = len(packages)
    fast = _cpu_list(look.read("/sys/devices/cpu_core/cpus"))
    if fast:
        cores = {
            (
                look.read(f"/sys/devices/system/cpu/cpu{n}/topology/physical_package_id").strip(),
                look.read(f"/sys/devices/system/cpu/cpu{n}/topology/core_id").strip() or str(n),
            )
            for n in fast
        }
        changes["performance_cores"] = len(cores)
    how = dict.fromkeys(changes, "/sys/devices/system")
    return replace(cpu, **changes, how={**cpu.how, **how}) if changes else cpu


def _part(block: Mapping[str, str]) -> str:
    return _PARTS.get(f"{block.get('cpu implementer', '').lower()}:{block['cpu part'].lower()}", "")


def _fast_arm(parts: list[str]) -> int | None:
    """Cores that are not the small kind of a mixed part; beside a Cortex-X925 the A725 is small."""
    if len(set(parts)) < 2:
        return None
    beside = "Cortex-X925" in parts
    fast = [
        part
        for part in parts
        if not _SMALL_CORES.search(part) and not (beside and part == "Cortex-A725")
    ]
    return len(fast) or None


def _fast_x86(entries: list[dict[str, str]]) -> int | None:
    """On hybrid Intel parts only performance cores have two threads, if threads are on at all."""
    threads: dict[tuple[str, str], int] = {}
    for block in entries:
        if "core id" in block:
            place = (block.get("physical id", "0"), block["core id"])
            threads[place] = threads.get(place, 0) + 1
    doubled = sum(1 for count in threads.values() if count > 1)
    return doubled if 0 < doubled < len(threads) else None


def _lscpu_cores(kind: Mapping[str, str]) -> int | None:
    cores = integer(kind.get("Core(s) per socket")) or integer(kind.get("Core(s) per cluster"))
    groups = integer(kind.get("Socket(s)")) or integer(kind.get("Cluster(s)")) or 1
    return cores * groups if cores else None


def _cpu_list(source: str) -> list[int]:
    """`0-3,8` → [0, 1, 2, 3, 8]; at most 8192 entries."""
    found: list[int] = []
    for part in source.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match is not None:
            last = int(match.group(2) or match.group(1))
            found.extend(range(int(match.group(1)), min(last, 8191) + 1))
    return found[:8192]


def _board(look: Look) -> str:
    board = look.read("/proc/device-tree/model") or look.read("/sys/class/dmi/id/product_name")
    return board.strip("\x00\n ")


def _vendor(raw: str) -> str:
    lowered = raw.strip().lower()
    return _VENDORS.get(lowered, lowered.split()[0] if lowered else "")


def _architecture(facts: Mapping[str, str], features: str) -> str:
    if "vendor_id" in facts and "flags" in facts:
        return "x86_64" if "lm" in features.split() else "i686"
    if "cpu architecture" in facts:
        return (
            "aarch64"
            if facts["cpu architecture"] in {"8", "AArch64"} and "asimd" in features
            else "armv" + facts["cpu architecture"][:1]
        )
    if "POWER" in facts.get("cpu", ""):
        return "ppc64"
    return "riscv64" if facts.get("isa", "").startswith("rv64") else ""


def _isa(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted({_ISA[name] for name in names if name in _ISA}))


def _intel_mac(listed: str) -> list[str]:
    renamed = {"AVX1.0": "avx", "SSE4.2": "sse4_2"}
    return [renamed.get(name, name.lower()) for name in listed.split()]
