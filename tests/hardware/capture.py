"""Turns a folder of captured tool output into a `Machine`, with the same parsers that `detect` uses.

A folder holds the outputs that one machine gave, each under a fixed file name, `SOURCE` (where it
was published), and `expected.json` (what must come out).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginekit.facts.machine import Cpu, Gpu, Machine, Memory, Os
from enginekit.hardware import amd, apple, cpu, intel, memory, nvidia, os_, windows

ROOT = Path(__file__).parent / "captures"


def folders() -> list[Path]:
    return sorted(path for path in ROOT.iterdir() if path.is_dir())


def is_constructed(folder: Path) -> bool:
    return (folder / "SOURCE").read_text("utf-8").startswith("CONSTRUCTED")


def expected(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "expected.json").read_text("utf-8"))
    return document


def machine(folder: Path) -> Machine:
    def text(name: str) -> str:
        file = folder / name
        return file.read_text("utf-8") if file.exists() else ""

    kernel = text("kernel.txt").strip()
    gpus: list[Gpu] = []
    for name in ("nvidia-smi.xml", "nvidia-smi-q.txt", "nvidia-smi.csv", "nvidia-smi.txt"):
        if content := text(name):
            gpus += nvidia.parse(content)
    if content := text("rocm-smi.json"):
        gpus += amd.parse(content, kernel=kernel)
    if content := text("amd-smi-static.json"):
        gpus += amd.parse({"static": json.loads(content)}, kernel=kernel)
    if (folder / "sysfs").exists():
        gpus += amd.parse(_sysfs(folder), kernel=kernel)
    if content := text("xpu-smi.json"):
        gpus += intel.parse(content)
    macos = {
        "displays": text("sp-displays.txt"),
        "hardware": text("sp-hardware.txt"),
        "sysctl": text("sysctl.txt"),
    }
    gpus += apple.parse(macos)
    cim = text("windows-cim.json")
    if cim:
        gpus += windows.parse(cim)
    processor = Cpu()
    for name in (
        "proc-cpuinfo.txt",
        "lscpu.txt",
        "sysctl.txt",
        "sp-hardware.txt",
        "windows-cim.json",
    ):
        if content := text(name):
            processor = cpu.parse(content)
            break
    ram = Memory()
    if content := text("proc-meminfo.txt") or text("vm_stat.txt") or cim:
        ram = memory.parse(content, text("sysctl.txt"))
    system = Os()
    if cim:
        system = os_.parse_cim(cim)
    elif kernel:
        system = os_.parse({"kernel": kernel})
    return Machine(gpus=tuple(gpus), cpu=processor, memory=ram, os=system)


def _sysfs(folder: Path) -> dict[str, Any]:
    cards = {
        card.name: {file.name: file.read_text("utf-8").strip() for file in card.iterdir()}
        for card in (folder / "sysfs").iterdir()
    }
    kfd = folder / "kfd"
    nodes = {node.name: node.read_text("utf-8") for node in kfd.iterdir()} if kfd.exists() else {}
    return {"cards": cards, "kfd": nodes}
