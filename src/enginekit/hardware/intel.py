"""Intel GPUs, from `xpu-smi` (JSON) or sysfs.

Discrete cards name their memory under the xe driver (`tile*/physical_vram_size_bytes`) and under
i915 (`lmem_total_bytes`); an integrated GPU has neither file and shares system RAM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enginekit.facts.machine import Gpu, UnifiedMemory
from enginekit.hardware._look import Look, ProbeAbsentError, ProbeFailedError
from enginekit.hardware._text import integer, items, loads, mapping, pairs, size, text
from enginekit.hardware.tables import gpu_row

_VENDOR = "0x8086"
# PCI device ids, from the pci.ids database.
_NAMES = {
    "0x56a0": "Intel Arc A770",
    "0x56a1": "Intel Arc A750",
    "0x56a2": "Intel Arc A580",
    "0x56a5": "Intel Arc A380",
    "0x56a6": "Intel Arc A310",
    "0xe20b": "Intel Arc B580",
    "0xe20c": "Intel Arc B570",
    "0xe211": "Intel Arc Pro B60",
    "0xe212": "Intel Arc Pro B50",
    "0xe223": "Intel Arc Pro B70",
    "0x64a0": "Intel Arc 140V",
    "0x56c0": "Intel Data Center GPU Flex 170",
    "0x0bd5": "Intel Data Center GPU Max 1550",
    "0x0bda": "Intel Data Center GPU Max 1100",
}
_DISCRETE = re.compile(
    r"\b[AB]\d{3}\w?\b|\bPro [AB]\d\d|\b(Flex|Max) \d{3,4}\b|Data Center|Gaudi", re.IGNORECASE
)
_UNNAMED = re.compile(r"\[(0x[0-9a-fA-F]{4})\]")
_INTEGRATED = re.compile(r"\b(UHD|HD|Iris|1[34]0[VT]|Graphics)\b", re.IGNORECASE)


def read(look: Look) -> tuple[Gpu, ...]:
    """`xpu-smi`, one question per device, else sysfs."""
    cards = read_sysfs(look)
    if not cards:
        raise ProbeAbsentError("no Intel device in /sys/class/drm")
    try:
        listed = mapping(loads(look.run("xpu-smi", "discovery", "-j"))).get("device_list")
        documents = [
            loads(
                look.run(
                    "xpu-smi",
                    "discovery",
                    "-d",
                    str(integer(mapping(entry).get("device_id"))),
                    "-j",
                )
            )
            for entry in items(listed)
        ]
        return parse({"devices": documents}) or parse({"cards": cards})
    except (ProbeAbsentError, ProbeFailedError):
        return parse({"cards": cards})


def read_sysfs(look: Look) -> dict[str, dict[str, str]]:
    """Device id, slot and memory files of each Intel card, as text."""
    cards: dict[str, dict[str, str]] = {}
    for vendor in look.glob("/sys/class/drm/card[0-9]*/device/vendor"):
        name = vendor.split("/")[4]
        if "-" in name or look.read(vendor).strip() != _VENDOR:
            continue
        folder = vendor.removesuffix("/vendor")
        cards[name] = {
            "device": look.read(f"{folder}/device").strip(),
            "uevent": look.read(f"{folder}/uevent"),
            "lmem_total_bytes": look.read(f"/sys/class/drm/{name}/lmem_total_bytes").strip(),
            "physical_vram_size_bytes": " ".join(
                look.read(tile).strip()
                for tile in look.glob(f"{folder}/tile*/physical_vram_size_bytes")
            ),
        }
    return cards


def parse(source: str | Mapping[str, Any]) -> tuple[Gpu, ...]:
    """Devices from one of three shapes; never raises.

    * `{"devices": [...]}`: answers of `xpu-smi discovery -d N -j`.
    * text or mapping of `xpu-smi discovery -j` (`device_list`): names without memory sizes.
    * `{"cards": {"card0": {file: text}}}`: sysfs, see `read_sysfs`.
    """
    document = mapping(loads(source))
    if "cards" in document:
        return _from_sysfs(mapping(document["cards"]))
    listed = items(document.get("devices")) or items(document.get("device_list"))
    if not listed and "device_name" in document:
        listed = [document]
    return tuple(_from_xpu_smi(mapping(card), position) for position, card in enumerate(listed))


def _from_xpu_smi(card: Mapping[str, Any], position: int) -> Gpu:
    number = integer(card.get("device_id"))
    name = text(card.get("device_name")) or "Intel GPU"
    # Drivers that do not know a card's name give its PCI device: `Intel(R) Graphics [0xe211]`.
    unnamed = _UNNAMED.search(name)
    return _build(
        index=position if number is None else number,
        name=_NAMES.get(unnamed[1].lower(), name) if unnamed else name,
        how="xpu-smi discovery",
        total=size(card.get("memory_physical_size_byte"))
        or size(card.get("max_mem_alloc_size_byte")),
        free=size(card.get("memory_free_size_byte")),
        uuid=text(card.get("uuid")),
        bus_id=text(card.get("pci_bdf_address")),
        driver_version=text(card.get("driver_version")),
    )


def _from_sysfs(cards: Mapping[str, Any]) -> tuple[Gpu, ...]:
    found = []
    for index, (_, raw) in enumerate(sorted(cards.items())):
        card = mapping(raw)
        device = text(card.get("device")).lower()
        tiles = [
            value
            for part in str(card.get("physical_vram_size_bytes", "")).split()
            if (value := integer(part))
        ]
        slot = dict(pairs(str(card.get("uevent", "")), "="))
        found.append(
            _build(
                index=index,
                name=_NAMES.get(device, f"Intel Graphics {device}".strip()),
                how="/sys/class/drm",
                total=sum(tiles) or size(card.get("lmem_total_bytes")) or None,
                shared=not tiles and not text(card.get("lmem_total_bytes")),
                bus_id=slot.get("PCI_SLOT_NAME", ""),
            )
        )
    return tuple(found)


def _build(
    *,
    index: int,
    name: str,
    how: str,
    total: int | None,
    free: int | None = None,
    shared: bool | None = None,
    **facts: Any,
) -> Gpu:
    if shared is None:
        shared = not _DISCRETE.search(name) and _INTEGRATED.search(name) is not None
    row = gpu_row("intel", name, None if shared else total)
    known = {"*": how}
    if shared:
        known["unified"] = f"{how}: no memory of its own"
    if row is not None and row.bandwidth is not None:
        known["bandwidth_bytes_per_second"] = f"table: {row.name} ({row.source})"
    if row is not None and row.fp16_flops is not None:
        known["fp16_flops_per_second"] = f"table: {row.name} ({row.source})"
    return Gpu(
        index=index,
        vendor="intel",
        name=name,
        total_bytes=None if shared else total,
        free_bytes=None if shared else free,
        bandwidth_bytes_per_second=row.bandwidth if row else None,
        fp16_flops_per_second=row.fp16_flops if row else None,
        architecture=row.architecture if row else "",
        unified=UnifiedMemory(kind="intel-igpu") if shared else None,
        how=known,
        **facts,
    )
