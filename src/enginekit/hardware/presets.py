"""Machines by name, for planning on hardware that one does not have.

`preset("rtx4090")`, `preset("4xrtx4090")`, `preset("m3-max-128")`: rows of `data/presets.csv`, each
with its source. `Nx` before the name of a machine with GPUs multiplies its GPUs. A preset is an
idle machine: everything its driver shows is free.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Literal

from enginekit.errors import ConfigError
from enginekit.facts.machine import (
    Cpu,
    Gpu,
    Interconnect,
    LinkKind,
    Machine,
    Memory,
    Os,
    System,
    UnifiedMemory,
)
from enginekit.hardware._text import GIB, MIB
from enginekit.hardware.apple import default_working_set
from enginekit.hardware.cpu import tabled
from enginekit.hardware.tables import apple_row, gpu_row

_MOST_GPUS = 1024
_CPU_VENDORS = {
    "Apple": "apple",
    "Ryzen": "amd",
    "EPYC": "amd",
    "Intel": "intel",
    "NVIDIA": "nvidia",
}
_TIMES = re.compile(r"(\d{1,6})\s*[x*]\s*(.+)")
_ISA = {
    "x86": ("avx", "avx2", "bmi2", "f16c", "fma", "sse4.2", "ssse3"),
    "arm": ("dotprod", "fp16", "neon"),
    "arm-old": ("neon",),
}


def preset_names() -> tuple[str, ...]:
    """All names, without the `Nx` forms, in the table's order."""
    return tuple(_rows())


def preset(name: str) -> Machine:
    """The machine of that name.

    Args:
        name: a name of `preset_names()` or another that people use (`dgx-spark`, `GeForce RTX 4090`),
            with or without `Nx` before it; case, spaces, dashes and underscores do not matter.

    Raises:
        ConfigError: no such preset; names the nearest ones.
    """
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    found = _spellings().get(_squeezed(wanted))
    if found is not None:
        return _machine(found)
    match = _TIMES.fullmatch(wanted)
    found = _spellings().get(_squeezed(match.group(2))) if match else None
    if match is not None and found is not None:
        return _multiplied(name, int(match.group(1)), _machine(found))
    base = match.group(2) if match else wanted
    near = difflib.get_close_matches(base, list(_rows()), n=4, cutoff=0.4)
    raise ConfigError(
        f"no hardware preset is called {name!r}" + (f"; near: {', '.join(near)}" if near else ""),
        hint="enginekit hardware    (lists them; a file works as well: --hardware FILE)",
    )


_MAKERS = re.compile(r"^(?:nvidia|geforce|amd|radeon|instinct|intel|apple|tesla)+")


def _squeezed(name: str) -> str:
    """What is left of a name when makers, case and separators do not count."""
    plain = re.sub(r"[\s_-]+", "", name.lower())
    return _MAKERS.sub("", plain) or plain


@cache
def _spellings() -> Mapping[str, str]:
    """Every spelling, squeezed, to the row's name; a row's own name always wins."""
    found: dict[str, str] = {}
    for name, row in _rows().items():
        for other in filter(None, row["aliases"].split(";")):
            found.setdefault(_squeezed(other), name)
    found.update({_squeezed(name): name for name in _rows()})
    return found


def _multiplied(name: str, count: int, machine: Machine) -> Machine:
    if not 1 <= count <= _MOST_GPUS:
        raise ConfigError(f"hardware preset {name!r}: from 1 to {_MOST_GPUS} GPUs")
    if not machine.gpus or machine.gpus[0].unified is not None:
        raise ConfigError(
            f"hardware preset {name!r}: {machine.name} shares its memory with the CPU or has no GPU, "
            "so it cannot be multiplied"
        )
    total = count * len(machine.gpus)
    if total > _MOST_GPUS:
        raise ConfigError(f"hardware preset {name!r}: from 1 to {_MOST_GPUS} GPUs")
    gpus = tuple(
        replace(machine.gpus[position % len(machine.gpus)], index=position)
        for position in range(total)
    )
    return replace(machine, name=f"{count}x{machine.name}", gpus=gpus)


@cache
def _rows() -> Mapping[str, Mapping[str, str]]:
    text = resources.files("enginekit.hardware").joinpath("data", "presets.csv").read_text("utf-8")
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}


@cache
def _machine(name: str) -> Machine:
    row = _rows()[name]
    how = f"preset {name} ({row['source']})"
    ram = round(float(row["ram_gib"]) * GIB)
    memory = Memory(
        total_bytes=ram,
        available_bytes=ram,
        how={"*": how, "available_bytes": "preset: nothing else runs"},
    )
    system: System = "macos" if row["gpu_vendor"] == "apple" else "linux"
    return Machine(
        name=name,
        gpus=_gpus(row, ram, how),
        cpu=_cpu(row, how),
        memory=memory,
        os=Os(
            system=system,
            name="macOS" if system == "macos" else "Linux",
            architecture=row["arch"],
            how={"*": how},
        ),
    )


def _gpus(row: Mapping[str, str], ram: int, how: str) -> tuple[Gpu, ...]:
    vendor, label = row["gpu_vendor"], row["gpu_name"]
    if not vendor:
        return ()
    if vendor == "apple":
        chip = apple_row(label, int(row["gpu_cores"]))
        assert chip is not None, label
        one = Gpu(
            index=0,
            vendor="apple",
            name=f"Apple {chip.chip}",
            cores=chip.gpu_cores,
            architecture="apple-" + chip.chip.split()[0].lower(),
            bandwidth_bytes_per_second=chip.bandwidth,
            fp16_flops_per_second=chip.fp16_flops,
            unified=UnifiedMemory(kind="apple", working_set_bytes=default_working_set(ram)),
            how={
                "*": how,
                "bandwidth_bytes_per_second": f"table: {chip.chip}",
                "fp16_flops_per_second": f"table: {chip.chip}; FP32 rate, about equal",
                "unified": "rule: 2/3 of RAM up to 36 GiB, 3/4 above",
            },
        )
        return (one,)
    kind: Literal["nvidia", "amd", "intel"] = (
        "nvidia" if vendor == "nvidia" else "amd" if vendor == "amd" else "intel"
    )
    marketed = round(float(row["gpu_gib"]) * GIB) if row["gpu_gib"] else None
    card = gpu_row(kind, label, marketed)
    assert card is not None, label
    visible = (
        int(row["visible_mib"]) * MIB
        if row["visible_mib"]
        else card.visible_bytes or card.memory_bytes
    )
    capability = re.fullmatch(r"(\d+)\.(\d+)", card.architecture)
    table = f"table: {card.name} ({card.source})"
    shown = bool(card.visible_bytes or row["visible_mib"])
    known = {
        "*": how,
        "total_bytes": f"{how}: as {'the driver shows it' if shown else 'marketed'}",
        "bandwidth_bytes_per_second": table,
        "fp16_flops_per_second": table,
        "compute_capability": table,
    }
    unified = None
    if marketed is None and kind == "nvidia":
        unified = UnifiedMemory(kind="nvidia")
    elif marketed is None and kind == "intel":
        unified = UnifiedMemory(kind="intel-igpu")
    elif marketed is None:
        unified = UnifiedMemory(
            kind="amd-apu",
            carve_out_bytes=round(float(row["carve_out_gib"] or 0) * GIB),
            gtt_bytes=ram // 2,
        )
        known["unified"] = "Linux default: half of RAM as GTT"
    total = None if unified else visible
    one = Gpu(
        index=0,
        vendor=kind,
        name=_full_name(kind, label),
        total_bytes=total,
        free_bytes=total,
        used_bytes=None if unified else 0,
        bandwidth_bytes_per_second=card.bandwidth,
        fp16_flops_per_second=card.fp16_flops,
        compute_capability=(int(capability[1]), int(capability[2])) if capability else None,
        architecture="" if capability else card.architecture,
        unified=unified,
        interconnect=_link(row["link"]),
        how=known,
    )
    return tuple(replace(one, index=index) for index in range(int(row["gpus"] or 1)))


def _link(text: str) -> Interconnect | None:
    """`nvlink 450` is a kind and 10^9 bytes per second in one direction."""
    if not text:
        return None
    word, _, rate = text.partition(" ")
    kinds: dict[str, LinkKind] = {"nvlink": "nvlink", "xgmi": "xgmi", "pcie": "pcie"}
    return Interconnect(kind=kinds[word], bytes_per_second=round(float(rate) * 10**9))


def _full_name(vendor: str, label: str) -> str:
    return {"nvidia": "NVIDIA ", "amd": "AMD ", "intel": "Intel "}[vendor] + label


def _cpu(row: Mapping[str, str], how: str) -> Cpu:
    model, cores = row["cpu"], int(row["cores"])
    threads = int(row["threads"] or cores)
    found = Cpu(
        vendor=next((vendor for word, vendor in _CPU_VENDORS.items() if word in model), "arm"),
        model=model,
        architecture=row["arch"],
        sockets=int(row["sockets"] or 1),
        physical_cores=cores,
        performance_cores=int(row["performance_cores"] or cores),
        logical_cores=threads,
        usable_cores=float(threads),
        isa=_ISA[row["isa"]],
        how={"*": how},
    )
    if row["gpu_vendor"] != "apple":
        known = tabled(found)
        share, whole = row["bandwidth_share"], known.bandwidth_bytes_per_second
        if not share or not whole:
            return known
        said = known.how.get("bandwidth_bytes_per_second", how)
        part = f"{said}; {float(share):.0%} of it, as of the processor"
        return replace(
            known,
            bandwidth_bytes_per_second=round(whole * float(share)),
            how={**known.how, "bandwidth_bytes_per_second": part},
        )
    chip = apple_row(row["gpu_name"], int(row["gpu_cores"]))
    assert chip is not None, row["gpu_name"]
    shared = {"bandwidth_bytes_per_second": f"table: {chip.chip}, shared with the GPU"}
    return replace(found, bandwidth_bytes_per_second=chip.bandwidth, how={**found.how, **shared})
