"""The three layouts of `nvidia-smi` as one nested mapping, under the names that `nvidia` reads."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from enginekit.hardware._text import items, mapping, size

_QUERY_LINE = re.compile(r"^(\s*)(.*?)(?:\s+: (.*)|\s*:)?$")
_DEEPEST = 12
_LONGEST = 1 << 16
"""A header that asks for every field has 4,200 characters."""


def from_xml(source: str) -> dict[str, Any]:
    """`nvidia-smi -q -x`."""
    start, end = source.find("<nvidia_smi_log"), source.rfind("</nvidia_smi_log>")
    body = source[start : end + len("</nvidia_smi_log>")] if end > start else source[start:]
    try:
        # Expat resolves no external entity, and the DOCTYPE line lies before `start`.
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError):
        return {}
    return {
        **_versions({child.tag: child.text for child in root}),
        "gpus": [_normal(_tree(node), node.get("id", "")) for node in root.findall("gpu")],
    }


def _versions(head: Mapping[str, Any]) -> dict[str, str]:
    """Driver 610 calls them KMD and CUDA UMD version, and remarks on the old fields in brackets."""

    def first(*keys: str) -> str:
        return (
            next((str(head[key]) for key in keys if head.get(key)), "").partition(" [")[0].strip()
        )

    return {
        "driver_version": first("kmd_version", "driver_version"),
        "cuda_version": first("cuda_umd_version", "cuda_version"),
    }


def _tree(node: ElementTree.Element, depth: int = 0) -> dict[str, Any]:
    """Nested mapping of an XML element; repeated elements become a list under their name."""
    result: dict[str, Any] = {}
    for child in node if depth < _DEEPEST else ():
        value: Any = _tree(child, depth + 1) if len(child) else (child.text or "").strip()
        if child.tag in {"process_info", "mig_device"}:
            result.setdefault(child.tag, []).append(value)
        else:
            result[child.tag] = value
    return result


def _normal(card: Mapping[str, Any], bus_id: str) -> dict[str, Any]:
    """One card of `nvidia-smi -q`, XML or text, under the names that `_card` reads."""
    memory = mapping(card.get("fb_memory_usage"))
    link = mapping(
        mapping(card.get("pci")).get("pci_gpu_link_info")
        or mapping(card.get("pci")).get("gpu_link_info")
    )
    generation, widths = (
        mapping(link.get("pcie_gen") or link.get("pcie_generation")),
        mapping(link.get("link_widths") or link.get("link_width")),
    )
    devices = card.get("mig_devices")
    return {
        "index": None,
        "name": card.get("product_name"),
        "uuid": card.get("uuid") or card.get("gpu_uuid"),
        "bus_id": bus_id,
        "architecture": card.get("product_architecture"),
        "addressing_mode": card.get("addressing_mode"),
        "mig_mode": mapping(card.get("mig_mode")).get("current_mig")
        or mapping(card.get("mig_mode")).get("current"),
        "driver_model": mapping(card.get("driver_model")).get("current_dm")
        or mapping(card.get("driver_model")).get("current"),
        "display_active": card.get("display_active"),
        "pcie_generation": generation.get("max_link_gen") or generation.get("max"),
        "pcie_width": str(widths.get("max_link_width") or widths.get("max") or "").rstrip("x"),
        "processes": [
            {
                "pid": mapping(entry).get("pid"),
                "name": mapping(entry).get("process_name") or mapping(entry).get("name"),
                "used": size(
                    mapping(entry).get("used_memory") or mapping(entry).get("used_gpu_memory")
                ),
            }
            for entry in items(mapping(card.get("processes")).get("process_info"))
        ],
        "mig_devices": [
            {
                "index": mapping(part).get("index"),
                "gpu_instance_id": mapping(part).get("gpu_instance_id"),
                **_sizes(
                    mapping(
                        mapping(part).get("fb_memory_usage")
                        or mapping(part).get("shared_fb_memory_usage")
                    )
                ),
            }
            for part in items(
                mapping(devices).get("mig_device") if isinstance(devices, Mapping) else None
            )
        ],
        **_sizes(memory),
    }


def _sizes(memory: Mapping[str, Any]) -> dict[str, int | None]:
    return {key: size(memory.get(key)) for key in ("total", "reserved", "used", "free")}


def from_query(source: str) -> dict[str, Any]:
    """The indented text of `nvidia-smi -q` as the same nested mapping as its XML."""
    log: dict[str, Any] = {"gpus": []}
    card: dict[str, Any] | None = None
    bus_id = ""
    stack: list[tuple[int, dict[str, Any]]] = []
    for line in source.splitlines():
        match = _QUERY_LINE.match(line)
        if match is None or not match.group(2):
            continue
        indent, key, value = len(match.group(1)), _key(match.group(2)), match.group(3)
        if indent == 0:
            if card is not None:
                log["gpus"].append(_normal(card, bus_id))
                card = None
            if match.group(2).startswith("GPU ") and value is None:
                bus_id, card, stack = match.group(2)[4:].strip(), {}, []
                stack.append((0, card))
            elif value is not None:
                log[key] = value
            continue
        if card is None:
            continue
        while len(stack) > 1 and stack[-1][0] >= indent:
            stack.pop()
        parent = stack[-1][1]
        if key == "process_id":
            entry: dict[str, Any] = {"pid": value}
            parent.setdefault("process_info", []).append(entry)
            stack.append((indent, entry))
        elif key == "mig_device" and value is None:
            # One heading for each, where XML has a list under `mig_devices`.
            part: dict[str, Any] = {}
            known = parent.get("mig_devices")
            devices = known if isinstance(known, dict) else {}
            parent["mig_devices"] = devices
            devices.setdefault("mig_device", []).append(part)
            stack.append((indent, part))
        elif value is None:
            inner: dict[str, Any] = {}
            if key == "mig_devices" or len(stack) < _DEEPEST:
                parent[key] = inner
                stack.append((indent, inner))
        else:
            parent[key] = value
    if card is not None:
        log["gpus"].append(_normal(card, bus_id))
    return {**log, **_versions(log)}


def _key(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.strip().lower()).strip("_")


def from_csv(source: str) -> dict[str, Any]:
    """`nvidia-smi --query-gpu=… --format=csv`, with its header line and with or without units."""
    lines = [line for line in source.splitlines() if line.strip() and len(line) < _LONGEST]
    start = next(
        (n for n, line in enumerate(lines) if re.search(r"(^|,)\s*name\s*(,|$)", line)), None
    )
    if start is None:
        return {}
    try:
        rows = list(csv.reader(lines[start:], skipinitialspace=True))
    except csv.Error:
        return {}
    heads = [re.sub(r"\s*\[.*\]$", "", head).strip() for head in rows[0]]
    units = ["MiB" if "[MiB]" in head else "" for head in rows[0]]
    found = []
    for row in rows[1:]:
        if len(row) != len(heads):
            continue
        cell = {head: value.strip() for head, value in zip(heads, row, strict=True)}
        unit = dict(zip(heads, units, strict=True))
        found.append(
            {
                "index": cell.get("index"),
                "name": cell.get("name"),
                "uuid": cell.get("uuid"),
                "bus_id": cell.get("pci.bus_id"),
                "compute_capability": cell.get("compute_cap"),
                **_versions(cell),
                "addressing_mode": cell.get("addressing_mode"),
                "mig_mode": cell.get("mig.mode.current"),
                "display_active": cell.get("display_active"),
                "pcie_generation": cell.get("pcie.link.gen.max"),
                "pcie_width": cell.get("pcie.link.width.max"),
                **{
                    key: size(cell.get(f"memory.{key}"), unit.get(f"memory.{key}", ""))
                    for key in ("total", "reserved", "used", "free")
                },
            }
        )
    return {"gpus": found}


def from_table(source: str) -> dict[str, Any]:
    """The boxed summary that bare `nvidia-smi` draws; the last resort, since it cuts long names."""
    head = {
        f"{what.lower()}_version": version
        for what, version in re.findall(r"(Driver|KMD|CUDA)(?: UMD)? Version:\s*([^\s|]+)", source)
    }
    found: list[dict[str, Any]] = []
    for line in source.splitlines()[:2000]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4:
            _add_slice(cells, found)
        if len(cells) != 3:
            continue
        first = re.match(r"(\d{1,4})\s+(.{1,80}?)\s+(On|Off|N/A|WDDM|TCC)$", cells[0])
        if first is not None:
            bus = re.match(r"([0-9A-Fa-f]{4,8}:\S+)\s+(On|Off|N/A)", cells[1])
            found.append(
                {
                    "index": first.group(1),
                    "name": first.group(2),
                    "bus_id": bus.group(1) if bus else "",
                    "display_active": {"On": True, "Off": False}.get(bus.group(2) if bus else ""),
                    "driver_model": first.group(3) if first.group(3) in {"WDDM", "TCC"} else "",
                }
            )
        elif found and "total" not in found[-1]:
            memory = re.search(r"(\d{1,9}MiB)\s*/\s*(\d{1,9}MiB)", cells[1])
            if memory is not None:
                found[-1]["used"], found[-1]["total"] = size(memory[1]), size(memory[2])
        elif found and cells[2] in {"Enabled", "Disabled"}:
            found[-1]["mig_mode"] = cells[2]
    return {**_versions(head), "gpus": found}


def _add_slice(cells: list[str], found: list[dict[str, Any]]) -> None:
    """One row of the `MIG devices` box: card, instances, number; its memory."""
    numbers = re.fullmatch(r"(\d{1,4})\s+(\d{1,4})\s+\d{1,4}\s+(\d{1,4})", cells[0])
    memory = re.search(r"(\d{1,9}MiB)\s*/\s*(\d{1,9}MiB)", cells[1])
    card = next((card for card in found if numbers and card["index"] == numbers[1]), None)
    if numbers is not None and memory is not None and card is not None:
        part = {"index": numbers[3], "gpu_instance_id": numbers[2]}
        part |= {"used": size(memory[1]), "total": size(memory[2])}
        card.setdefault("mig_devices", []).append(part)
