"""`enginekit doctor`: what was found on this computer, and how we know."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated, Any

from cyclopts import Parameter

from enginekit import registry
from enginekit.cli.output import print_json, stdout
from enginekit.facts.machine import Machine, known_by
from enginekit.kit import planning
from enginekit.sizing.budget import devices

_GIB = 2**30
_LABEL = 16
"""Columns before a value."""


def doctor(
    *,
    hardware: str | None = None,
    engines: Annotated[bool, Parameter(negative="--no-engines")] = True,
    json: bool = False,
) -> int:
    """Show the hardware as engines will see it, how each value is known, and engines found.

    Parameters
    ----------
    hardware
        A machine by name or file instead of this one; engines are then not looked for.
    engines
        Whether to look for running servers on loopback.
    json
        Print one JSON object, sizes in bytes.
    """
    machine = planning.machine_of(hardware)
    found = _found() if engines and hardware is None else []
    if json:
        print_json({"machine": machine.to_dict(), "engines": found})
        return 0
    lines = [*_system(machine), *_gpus(machine), *_budgets(machine), *_probes(machine)]
    if found:
        lines += ["", "engines"]
        lines += [_row(entry["engine"], entry["state"], entry["url"]) for entry in found]
    elif engines and hardware is None:
        lines += [
            "",
            "engines",
            "  none answers on loopback; `enginekit engines` says where we looked",
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _found() -> list[dict[str, Any]]:
    from enginekit.kit.client import Client
    from enginekit.kit.discover import discover

    return [
        {
            "engine": look.engine.name,
            "version": look.facts.version if look.facts else None,
            "url": look.url,
            "state": "running" if look.facts else f"running, but: {look.why}",
        }
        for look in Client().run(discover())
        if look.engine is not None
    ]


def _row(name: str, value: str, how: str = "") -> str:
    """A line of a name, what it is and how that is known, or several in a narrow terminal."""
    width = max(min(80, stdout.width), _LABEL + 20)
    start = f"  {name:<{_LABEL - 2}}"
    if how and len(start) + len(value) + len(how) + 4 <= width:
        return f"{start}{value}  [{how}]"
    lines = _folded(value, width, start, " " * _LABEL)
    if how:
        lines += _folded(f"[{how}]", width, " " * _LABEL, " " * (_LABEL + 1))
    return "\n".join(lines)


def _folded(text: str, width: int, first: str, rest: str) -> list[str]:
    found = textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return found or [first.rstrip()]


def _size(value: int | None) -> str:
    return "unknown" if value is None else f"{value / _GIB:.2f} GiB"


def _rate(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e9:.0f} GB/s"


def _system(machine: Machine) -> list[str]:
    system, cpu, memory = machine.os, machine.cpu, machine.memory
    hypervisor = "" if system.hypervisor == "unknown" else system.hypervisor
    extra = [system.container, f"WSL {system.wsl}" if system.wsl else "", hypervisor]
    name = " ".join(part for part in (system.name or system.system, *extra) if part)
    cores = cpu.performance_cores or cpu.physical_cores
    limited = memory.limit_bytes
    lines = [
        machine.name or "this computer",
        _row("system", name, known_by(system, "name")),
        _row("processor", cpu.model or "unknown", known_by(cpu, "model")),
        _row("cores", f"{cores or 'unknown'}, {cpu.usable_cores or '?'} usable threads",
             known_by(cpu, "physical_cores")),
        _row("instructions", " ".join(cpu.isa) or "unknown", known_by(cpu, "isa")),
        _row("bandwidth", _rate(cpu.bandwidth_bytes_per_second),
             known_by(cpu, "bandwidth_bytes_per_second")),
        _row("memory", _size(memory.total_bytes), known_by(memory, "total_bytes")),
        _row("usable now", _size(memory.usable_bytes), known_by(memory, "available_bytes")),
    ]  # fmt: skip
    if memory.cgroup is not None and memory.cgroup.limit_bytes is not None:
        lines.append(_row("cgroup limit", _size(limited), f"cgroup v{memory.cgroup.version}"))
    return lines


def _gpus(machine: Machine) -> list[str]:
    if not machine.gpus:
        return ["", "no GPU found"]
    lines = []
    for gpu in machine.gpus:
        lines += ["", f"GPU {gpu.index}: {gpu.name}" + ("" if gpu.visible else " (hidden)")]
        capacity = machine.gpu_capacity_bytes(gpu)
        lines.append(_row("memory", _size(capacity), known_by(gpu, "total_bytes")))
        free = machine.gpu_free_bytes(gpu)
        lines.append(_row("free", _size(free), known_by(gpu, "free_bytes")))
        rate = gpu.bandwidth_bytes_per_second
        lines.append(_row("bandwidth", _rate(rate), known_by(gpu, "bandwidth_bytes_per_second")))
        if gpu.fp16_flops_per_second:
            value = f"{gpu.fp16_flops_per_second / 1e12:.1f} TFLOPS FP16"
            lines.append(_row("compute", value, known_by(gpu, "fp16_flops_per_second")))
        kind = gpu.architecture
        if gpu.compute_capability:
            kind = f"compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}"
        if kind:
            lines.append(_row("generation", kind))
        if gpu.unified is not None:
            lines.append(_row("unified", f"shares system memory ({gpu.unified.kind})"))
        lines += [
            _row("process", f"{process.pid} {process.name} {_size(process.used_bytes)}")
            for process in gpu.processes
        ]
    return lines


def _budgets(machine: Machine) -> list[str]:
    """What each engine may take of the devices, by its own rules."""
    lines = ["", "what each engine can use"]
    for name in registry.names():
        policy = planning.engine_policy(name)
        found = devices(machine, policy)
        shown = [f"GPU {gpu.index} {_size(gpu.budget)}" for gpu in found.gpus]
        reason = (found.gpus[0] if found.gpus else found.host).reason
        if not shown and policy.cpu:
            shown = [f"CPU {_size(found.host.budget)}"]
        elif not shown:
            shown, reason = ["nothing here"], "it needs a GPU that it knows"
        if len(shown) > 4:
            shown = [*shown[:2], f"and {len(shown) - 2} more alike"]
        lines.append(_row(name, ", ".join(shown), reason))
    return lines


def _probes(machine: Machine) -> list[str]:
    if not machine.probes:
        return []
    rows = [_row(probe.name, probe.outcome, probe.detail) for probe in machine.probes]
    return ["", "probes", *rows]
