"""GPUs on Windows where no vendor tool answers.

`Win32_VideoController.AdapterRAM` is a 32-bit field and useless above 4 GB: the size comes from the
registry value `HardwareInformation.qwMemorySize` of the display class, matched by driver name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enginekit.facts.machine import Gpu, UnifiedMemory, Vendor
from enginekit.hardware._look import Look
from enginekit.hardware._text import integer, items, loads, mapping, text
from enginekit.hardware.tables import gpu_row

CIM_COMMAND = (
    "@{VideoController=@(Get-CimInstance Win32_VideoController|Select-Object Name,AdapterRAM,"
    "DriverVersion,AdapterCompatibility,PNPDeviceID);Registry=@(Get-ItemProperty -Path 'HKLM:\\SYSTEM"
    "\\CurrentControlSet\\Control\\Class\\{4d36e968-e325-11ce-bfc1-08002be10318}\\0*' -ErrorAction "
    "SilentlyContinue|Select-Object DriverDesc,'HardwareInformation.qwMemorySize')}|ConvertTo-Json -Depth 4"
)
_FIELD_LIMIT = 2**32 - 2**21
_SOFTWARE = re.compile(
    r"basic (render|display)|remote|virtual|parsec|citrix|vnc|displaylink|iddcx|meta ", re.I
)
_INTEGRATED = re.compile(
    r"\b(UHD|Iris|HD) |Intel\(R\) Graphics|Arc\(TM\) (?:1[34]0\w )?(?:\w+ )?Graphics$|Radeon\(TM\) (Vega )?(\d+ )?Graphics|Radeon\(TM\) (\d{3}M|80\d0S)|Adreno",
    re.I,
)


def read(look: Look) -> tuple[Gpu, ...]:
    """One PowerShell call."""
    return parse(look.run("powershell", "-NoProfile", "-Command", CIM_COMMAND))


def parse(source: str | Mapping[str, Any]) -> tuple[Gpu, ...]:
    """JSON of `CIM_COMMAND`, or of `Get-CimInstance Win32_VideoController | ConvertTo-Json` alone.

    Software and remote adapters are left out. Never raises.
    """
    document = loads(source)
    keyed = mapping(document)
    controllers = items(keyed.get("VideoController") if "VideoController" in keyed else document)
    sizes: dict[str, int] = {}
    for raw in items(keyed.get("Registry")):
        entry = mapping(raw)
        amount = integer(entry.get("HardwareInformation.qwMemorySize"))
        if amount and amount > 0:
            sizes[text(entry.get("DriverDesc"))] = amount
    found: list[Gpu] = []
    for raw in controllers:
        entry = mapping(raw)
        name = text(entry.get("Name"))
        if name and not _SOFTWARE.search(name):
            found.append(_gpu(len(found), name, entry, sizes))
    return tuple(found)


def _gpu(index: int, name: str, entry: Mapping[str, Any], sizes: Mapping[str, int]) -> Gpu:
    vendor = _vendor(f"{name} {text(entry.get('AdapterCompatibility'))}")
    shared = _INTEGRATED.search(name) is not None
    total, how = sizes.get(name), "registry HardwareInformation.qwMemorySize"
    if total is None:
        field = integer(entry.get("AdapterRAM"))
        if field is not None and 0 < field < _FIELD_LIMIT:
            total, how = field, "Win32_VideoController AdapterRAM"
    row = gpu_row(vendor, name, None if shared else total)
    known = {"*": "Win32_VideoController"}
    if total is None and row is not None and not shared:
        total = row.visible_bytes or row.memory_bytes
        how = f"table: {row.name}; AdapterRAM cannot say more than 4 GB"
    unified = None
    if shared and vendor == "amd":
        unified = UnifiedMemory(kind="amd-apu", carve_out_bytes=total)
        known["unified"] = how
    elif shared:
        unified = UnifiedMemory(kind="intel-igpu")
        known["unified"] = "Win32_VideoController: integrated by its name"
    elif total is not None:
        known["total_bytes"] = how
    if row is not None and row.bandwidth is not None:
        known["bandwidth_bytes_per_second"] = f"table: {row.name} ({row.source})"
    compute = re.match(r"(\d+)\.(\d+)$", row.architecture) if row and vendor == "nvidia" else None
    return Gpu(
        index=index,
        vendor=vendor,
        name=name,
        total_bytes=None if shared else total,
        bandwidth_bytes_per_second=row.bandwidth if row else None,
        fp16_flops_per_second=row.fp16_flops if row else None,
        compute_capability=(int(compute[1]), int(compute[2])) if compute else None,
        unified=unified,
        driver_version=text(entry.get("DriverVersion")),
        how=known,
    )


def _vendor(label: str) -> Vendor:
    known: tuple[tuple[Vendor, str], ...] = (
        ("nvidia", "nvidia|geforce|quadro|tesla"),
        ("amd", r"amd|radeon|advanced micro"),
        ("intel", "intel"),
    )
    return next((vendor for vendor, pattern in known if re.search(pattern, label, re.I)), "other")
