"""System RAM and what limits this process's share of it.

`/proc/meminfo` and its like describe the host even inside a container; the control group says what
of it this process may have. Its limit is the smallest one on the way up to the root.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from enginekit.facts.machine import Cgroup, Memory
from enginekit.hardware._look import Look
from enginekit.hardware._text import KIB, integer, items, loads, mapping, size
from enginekit.hardware.apple import read_sysctl, sysctl_facts

CIM_COMMAND = (
    "@{OperatingSystem=Get-CimInstance Win32_OperatingSystem|Select-Object TotalVisibleMemorySize,"
    "FreePhysicalMemory,SizeStoredInPagingFiles,FreeSpaceInPagingFiles}|ConvertTo-Json -Depth 3"
)
_NO_LIMIT_V1 = 2**62
_MEMINFO_LINE = re.compile(r"^([A-Za-z0-9_()]{1,60}):\s+(\d{1,20})(?:\s*(kB))?", re.MULTILINE)


def read(look: Look, system: str) -> Memory:
    """`/proc/meminfo` with control group and /dev/shm, `vm_stat` and `sysctl`, or CIM."""
    if system == "linux":
        memory = parse_meminfo(look.read("/proc/meminfo"))
        how = {"cgroup": "files of the control group", "shm_bytes": "size of /dev/shm"}
        return replace(
            memory, cgroup=read_cgroup(look), shm_bytes=_shm(look), how={**memory.how, **how}
        )
    if system == "macos":
        return parse_vm_stat(look.run("vm_stat"), read_sysctl(look))
    return parse_cim(look.run("powershell", "-NoProfile", "-Command", CIM_COMMAND))


def parse(source: str, sysctl: str = "") -> Memory:
    """Recognises `/proc/meminfo`, `vm_stat` (with `sysctl`) or CIM JSON; never raises."""
    if "Mach Virtual Memory Statistics" in source:
        return parse_vm_stat(source, sysctl)
    if source.lstrip()[:1] in {"{", "["}:
        return parse_cim(source)
    return parse_meminfo(source)


def parse_meminfo(source: str) -> Memory:
    """`/proc/meminfo`. Kernels before 3.14 lack MemAvailable: free + cache + buffers stands in."""
    facts = {
        name: int(value) * (KIB if unit else 1)
        for name, value, unit in _MEMINFO_LINE.findall(source)
        if len(value) < 16
    }
    known = {"*": "/proc/meminfo"} if facts else {}
    total = facts.get("MemTotal")
    available = facts.get("MemAvailable")
    if available is not None:
        known["available_bytes"] = "/proc/meminfo MemAvailable"
    elif "MemFree" in facts:
        available = sum(facts.get(name, 0) for name in ("MemFree", "Cached", "Buffers"))
        known["available_bytes"] = "/proc/meminfo MemFree + Cached + Buffers (no MemAvailable)"
    reserved = facts.get("HugePages_Total", 0)
    return Memory(
        total_bytes=total,
        available_bytes=available,
        swap_total_bytes=facts.get("SwapTotal"),
        swap_free_bytes=facts.get("SwapFree"),
        hugepages_free_bytes=(
            facts.get("HugePages_Free", 0) * facts.get("Hugepagesize", 0) if reserved else None
        ),
        how=known,
    )


def parse_vm_stat(source: str, sysctl: str = "") -> Memory:
    """macOS `vm_stat` and `sysctl hw.memsize vm.swapusage`.

    Available is free + inactive + speculative + purgeable pages, what the system gives without
    compressing or swapping.
    """
    page = integer((re.search(r"page size of (\d{1,8}) bytes", source) or [None, None])[1]) or 4096
    pages = {
        name.strip().strip('"').lower(): int(value)
        for name, value in re.findall(r"^([^:\n]{1,60}):\s+(\d{1,18})\.?\s*$", source, re.MULTILINE)
    }
    facts = sysctl_facts(sysctl)
    total = integer(facts.get("hw.memsize"))
    swap = dict(
        re.findall(r"(total|used|free) = ([\d.]{1,20}[A-Z])", facts.get("vm.swapusage", ""))
    )
    kinds = ("pages free", "pages inactive", "pages speculative", "pages purgeable")
    available = sum(pages.get(kind, 0) for kind in kinds) * page if "pages free" in pages else None
    if available is not None and total is not None:
        available = min(available, total)
    known = {"*": "sysctl"} if facts else {}
    if available is not None:
        known["available_bytes"] = "vm_stat: free + inactive + speculative + purgeable"
    return Memory(
        total_bytes=total,
        available_bytes=available,
        swap_total_bytes=size(swap.get("total")),
        swap_free_bytes=size(swap.get("free")),
        how=known,
    )


def parse_cim(source: str | Mapping[str, Any]) -> Memory:
    """JSON of `CIM_COMMAND`, or of `Get-CimInstance Win32_OperatingSystem | ConvertTo-Json`; KiB."""
    document = mapping(loads(source))
    entries = items(document.get("OperatingSystem", document))
    facts = mapping(entries[0]) if entries else {}
    total, free = (
        integer(facts.get("TotalVisibleMemorySize")),
        integer(facts.get("FreePhysicalMemory")),
    )
    paging, paging_free = (
        integer(facts.get("SizeStoredInPagingFiles")),
        integer(facts.get("FreeSpaceInPagingFiles")),
    )
    known = {"*": "Win32_OperatingSystem"} if facts else {}
    if free is not None:
        known["available_bytes"] = "Win32_OperatingSystem FreePhysicalMemory"
    return Memory(
        total_bytes=_kib(total),
        available_bytes=_kib(free),
        swap_total_bytes=_kib(paging),
        swap_free_bytes=_kib(paging_free),
        how=known,
    )


def read_cgroup(look: Look) -> Cgroup | None:
    """The limit of this process's group, from whatever hierarchy the kernel mounts."""
    return parse_cgroup(
        look.read("/proc/self/cgroup"), look.read("/proc/self/mountinfo"), look.read
    )


def parse_cgroup(membership: str, mountinfo: str, read: Callable[[str], str]) -> Cgroup | None:
    """The tightest limit from this process's group up to the mount.

    Args:
        membership: `/proc/self/cgroup`.
        mountinfo: `/proc/self/mountinfo`; the usual mount points if empty.
        read: content of a file by absolute path, empty if there is none.

    Returns:
        None if no control group of either version can be read. With a memory controller under
        version 1 (also in hybrid mode) that one counts, else version 2.
    """
    groups: dict[str, str] = {}
    for line in membership.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(",") if parts[1] else [""]:
                groups[controller] = parts[2] or "/"
    mounts = _mounts(mountinfo)
    if "memory" in groups:
        root, base = mounts.get("memory", ("/", "/sys/fs/cgroup/memory"))
        if found := _v1(base, _levels(groups["memory"], root), mounts, groups, read):
            return found
    root, base = mounts.get("", ("/", "/sys/fs/cgroup"))
    return _v2(base, _levels(groups.get("", "/"), root), read)


def _v2(base: str, levels: list[str], read: Callable[[str], str]) -> Cgroup | None:
    best: Cgroup | None = None
    quota: float | None = None
    swap: int | None = None
    seen = False
    for level in levels:
        folder = _join(base, level)
        limits = [_limit(read(f"{folder}/{name}")) for name in ("memory.max", "memory.high")]
        current = integer(read(f"{folder}/memory.current"))
        seen = seen or current is not None or read(f"{folder}/cgroup.controllers") != ""
        known = [value for value in limits if value is not None]
        quota = _lower(quota, _cpu_max(read(f"{folder}/cpu.max")))
        swap_here = _limit(read(f"{folder}/memory.swap.max"))
        swap = (
            swap_here if swap is None else min(swap, swap_here if swap_here is not None else swap)
        )
        here = Cgroup(
            version=2,
            path=level,
            limit_bytes=min(known, default=None),
            current_bytes=current,
            inactive_file_bytes=_stat(read(f"{folder}/memory.stat"), "inactive_file"),
        )
        best = _tighter(best, here)
    if best is None or not (seen or best.limit_bytes is not None):
        return None
    return replace(best, swap_limit_bytes=swap, cpu_quota=quota)


def _v1(
    base: str,
    levels: list[str],
    mounts: Mapping[str, tuple[str, str]],
    groups: Mapping[str, str],
    read: Callable[[str], str],
) -> Cgroup | None:
    best: Cgroup | None = None
    for level in levels:
        folder = _join(base, level)
        limit = integer(read(f"{folder}/memory.limit_in_bytes"))
        current = integer(read(f"{folder}/memory.usage_in_bytes"))
        if limit is None and current is None:
            continue
        # Unlimited is the largest page-aligned number, 2^63 - 4096, which `integer` refuses.
        here = Cgroup(
            version=1,
            path=level,
            limit_bytes=limit if limit is not None and 0 <= limit < _NO_LIMIT_V1 else None,
            current_bytes=current,
            inactive_file_bytes=_stat(read(f"{folder}/memory.stat"), "total_inactive_file"),
        )
        best = _tighter(best, here)
    if best is None:
        return None
    quota: float | None = None
    root, cpu_base = mounts.get("cpu", ("/", "/sys/fs/cgroup/cpu"))
    for level in _levels(groups.get("cpu", "/"), root):
        folder = _join(cpu_base, level)
        allowed, period = (
            integer(read(f"{folder}/cpu.cfs_quota_us")),
            integer(read(f"{folder}/cpu.cfs_period_us")),
        )
        if allowed and period and allowed > 0 and period > 0:
            quota = _lower(quota, allowed / period)
    return replace(best, cpu_quota=quota)


def _tighter(best: Cgroup | None, here: Cgroup) -> Cgroup:
    """The group that leaves less; between two without a limit, the inner one."""
    if best is None:
        return here
    left, right = best.free_bytes, here.free_bytes
    return here if right is not None and (left is None or right < left) else best


def _levels(path: str, root: str) -> list[str]:
    """The group and its ancestors, inside the part of the tree that is mounted here.

    In a container the path may lie outside of what is mounted (`/../..`): then only the mount's
    own root can be read.
    """
    relative = path
    if root != "/" and (path == root or path.startswith(root.rstrip("/") + "/")):
        relative = path[len(root.rstrip("/")) :] or "/"
    parts = [part for part in relative.split("/") if part][:64]
    if ".." in parts:
        parts = []
    return ["/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


def _mounts(mountinfo: str) -> dict[str, tuple[str, str]]:
    """Controller → (root of the mount inside the hierarchy, mount point); `""` is version 2."""
    found: dict[str, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) < 5 or not after:
            continue
        if after[0] == "cgroup2":
            found.setdefault("", (before[3], before[4]))
        elif after[0] == "cgroup" and len(after) >= 3:
            for option in after[2].split(","):
                found.setdefault(option, (before[3], before[4]))
    return found


def _join(base: str, level: str) -> str:
    return base.rstrip("/") + ("" if level == "/" else level)


def _limit(content: str) -> int | None:
    return None if content.strip() == "max" else integer(content)


def _cpu_max(content: str) -> float | None:
    words = content.split()
    if len(words) != 2 or words[0] == "max":
        return None
    allowed, period = integer(words[0]), integer(words[1])
    return allowed / period if allowed and period and allowed > 0 and period > 0 else None


def _lower(first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return min(known, default=None)


def _stat(content: str, name: str) -> int | None:
    match = re.search(rf"^{name} (\d{{1,19}})$", content, re.MULTILINE)
    return integer(match.group(1)) if match else None


def _kib(value: int | None) -> int | None:
    return None if value is None else value * KIB


def _shm(look: Look) -> int | None:
    import os

    try:
        stat = os.statvfs(look.at("/dev/shm"))  # noqa: S108
    except (OSError, AttributeError):
        return None
    return stat.f_frsize * stat.f_blocks
