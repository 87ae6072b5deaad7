"""Looking at this computer: every probe in its own thread, one time budget, no exception.

What failed is part of the answer: `Machine.probes` has a line for each probe with its outcome.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from enginekit.facts.machine import Cpu, Gpu, Machine, Memory, Os, Probe, System
from enginekit.hardware import amd, apple, cpu, intel, memory, nvidia, os_, windows
from enginekit.hardware._look import Look, ProbeAbsentError, ProbeFailedError, ProbeTimeoutError
from enginekit.hardware.visibility import marked

_GRACE = 0.25


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any
    probe: Probe


def detect(
    timeout: float = 5.0,
    *,
    look: Look | None = None,
    system: System | None = None,
    measure: bool = False,
) -> Machine:
    """This computer, as well as it can be known within the budget.

    Never raises. A tool that hangs is ended when the budget is over and reported as `timeout` in
    `Machine.probes`; a missing tool is `absent`. Where a probe for RAM fails, `psutil` stands in.

    Args:
        timeout: seconds for everything; probes run side by side.
        look: how to reach files and tools; the real ones if not given.
        system: operating system; this one if not given.
        measure: measure memory bandwidth where neither a table nor the system knows it, as on a
            virtual machine (0.3 s, up to 1 GiB of RAM and a quarter of what is free).
    """
    look = Look(timeout) if look is None else look
    system = os_.current_system() if system is None else system
    answers = _gather(_probes(look, system), look)
    value = {name: answer.value for name, answer in answers.items()}
    found_os: Os = value.get("os") or Os(system=system)
    found_cpu = _usable(value.get("cpu") or Cpu(), value.get("memory"))
    found_memory: Memory = value.get("memory") or Memory()
    if found_memory.total_bytes is None or found_memory.available_bytes is None:
        found_memory = _from_psutil(found_memory)
    gpus: list[Gpu] = [
        gpu for name in ("nvidia", "amd", "intel", "apple") for gpu in value.get(name) or ()
    ]
    if system == "windows":
        seen = {gpu.vendor for gpu in gpus}
        gpus.extend(gpu for gpu in value.get("windows") or () if gpu.vendor not in seen)
    if measure:
        found_cpu = measured(found_cpu, found_memory)
    return Machine(
        gpus=marked(tuple(gpus), look.environ),
        cpu=found_cpu,
        memory=found_memory,
        os=found_os,
        probes=tuple(answers[name].probe for name in sorted(answers)),
    )


def _probes(look: Look, system: System) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {
        "os": lambda: os_.read(look, system),
        "cpu": lambda: cpu.read(look, system),
        "memory": lambda: memory.read(look, system),
    }
    if system != "macos":
        found["nvidia"] = lambda: nvidia.read(look)
    if system == "linux":
        found["amd"] = lambda: amd.read(look)
        found["intel"] = lambda: intel.read(look)
    if system == "macos":
        found["apple"] = lambda: apple.read(look)
    if system == "windows":
        found["windows"] = lambda: windows.read(look)
    return found


def _gather(probes: dict[str, Callable[[], Any]], look: Look) -> dict[str, _Answer]:
    """Answers in the order of `probes`; a probe that outlives the budget is left behind.

    Threads are daemons: one stuck inside a driver call cannot be ended, and must not keep the
    interpreter from leaving.
    """
    done: queue.SimpleQueue[tuple[str, _Answer]] = queue.SimpleQueue()

    def work(name: str, probe: Callable[[], Any]) -> None:
        done.put((name, _attempt(name, probe)))

    for name, probe in probes.items():
        threading.Thread(target=work, args=(name, probe), name=f"probe-{name}", daemon=True).start()
    answers: dict[str, _Answer] = {}
    while len(answers) < len(probes):
        try:
            name, answer = done.get(timeout=look.remaining() + _GRACE)
        except queue.Empty:
            break
        answers[name] = answer
    for name in probes:
        if name not in answers:
            late = Probe(name=name, outcome="timeout", detail="no answer within the time budget")
            answers[name] = _Answer(None, late)
    return answers


def _attempt(name: str, probe: Callable[[], Any]) -> _Answer:
    try:
        value = probe()
    except ProbeAbsentError as error:
        return _Answer(None, Probe(name=name, outcome="absent", detail=str(error)))
    except ProbeTimeoutError as error:
        return _Answer(None, Probe(name=name, outcome="timeout", detail=str(error)))
    except ProbeFailedError as error:
        return _Answer(None, Probe(name=name, outcome="failed", detail=str(error)))
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return _Answer(None, Probe(name=name, outcome="failed", detail=detail[:300]))
    if isinstance(value, tuple):
        detail = f"{len(value)} device" + ("" if len(value) == 1 else "s")
        return _Answer(value, Probe(name=name, outcome="ok" if value else "absent", detail=detail))
    return _Answer(value, Probe(name=name, outcome="ok"))


def measured(found: Cpu, ram: Memory) -> Cpu:
    """The CPU with a memory bandwidth measured now, unless it is known or there is no room."""
    if found.bandwidth_bytes_per_second is not None:
        return found
    copied = copied_now(found, ram)
    if copied is None:
        return found
    how = {**found.how, "bandwidth_bytes_per_second": "measured by copying for 0.3 s"}
    return replace(found, bandwidth_bytes_per_second=copied.bytes_per_second, how=how)


def copied_now(found: Cpu, ram: Memory) -> cpu.Copied | None:
    """What copying reaches now, with no more threads than usable cores; None: no room for it."""
    threads = max(1, math.floor(found.usable_cores)) if found.usable_cores else None
    try:
        return cpu.measure_bandwidth(threads=threads, room=(ram.usable_bytes or 0) // 4)
    except (MemoryError, RuntimeError):  # no memory after all, or no further thread
        return None


def cpu_quota(look: Look | None = None) -> float | None:
    """Processors' worth of time that this process's control group leaves it; None: no limit."""
    group = memory.read_cgroup(Look() if look is None else look)
    return None if group is None else group.cpu_quota


def _usable(found: Cpu, ram: Memory | None) -> Cpu:
    """The CPU with what affinity and the control group's quota leave of it."""
    known = dict(found.how)
    logical = found.logical_cores
    if logical is None:
        logical = os.cpu_count()
        known["logical_cores"] = "os.cpu_count"
    usable = float(logical) if logical else None
    if hasattr(os, "sched_getaffinity"):
        allowed = float(len(os.sched_getaffinity(0)))
        usable = min(usable, allowed) if usable is not None else allowed
        known["usable_cores"] = "affinity"
    quota = ram.cgroup.cpu_quota if ram is not None and ram.cgroup is not None else None
    if quota is not None and (usable is None or quota < usable):
        usable = quota
        known["usable_cores"] = "control group's CPU quota"
    return replace(found, logical_cores=logical, usable_cores=usable, how=known)


def _from_psutil(found: Memory) -> Memory:
    try:
        import psutil

        seen = psutil.virtual_memory()
    except Exception:
        return _from_sysconf(found)
    return replace(
        found,
        total_bytes=found.total_bytes if found.total_bytes is not None else int(seen.total),
        available_bytes=(
            found.available_bytes if found.available_bytes is not None else int(seen.available)
        ),
        how={"*": "psutil", **found.how},
    )


def _from_sysconf(found: Memory) -> Memory:
    """What the C library asks the kernel for, where even /proc is missing (a chroot)."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return found
    if not 0 < free <= total:
        return found
    return replace(
        found,
        total_bytes=found.total_bytes if found.total_bytes is not None else total,
        available_bytes=found.available_bytes if found.available_bytes is not None else free,
        how={"*": "sysconf", **found.how},
    )
