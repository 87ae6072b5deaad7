"""AMD devices, from `amd-smi`, `rocm-smi` (JSON only: its text layout changes) or sysfs.

An APU has two pools, the BIOS carve-out and GTT; `facts.machine.UnifiedMemory` says how they are
counted. Rules: the amdgpu driver's documentation, Ollama's APU test, ROCm issue 6004.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from enginekit.facts.machine import Gpu, GpuProcess, Interconnect, UnifiedMemory
from enginekit.hardware._look import Look, ProbeAbsentError, ProbeFailedError
from enginekit.hardware._text import GIB, integer, items, loads, mapping, pairs, size, text
from enginekit.hardware.tables import GpuRow, gpu_row

SYSFS_FILES = (
    "vendor device subsystem_device product_name mem_info_vram_total mem_info_vram_used "
    "mem_info_gtt_total mem_info_gtt_used mem_info_vram_vendor board_info uevent unique_id"
)
_VENDOR = "0x1002"
_POOL_FIELDS = frozenset(("total_bytes", "free_bytes", "used_bytes", "unified", "name"))
_GTT_KERNEL = (6, 10)
_APU_ARCHITECTURES = frozenset(
    (
        "gfx902",
        "gfx90c",
        "gfx1033",
        "gfx1035",
        "gfx1036",
        "gfx1037",
        "gfx1103",
        "gfx1150",
        "gfx1151",
        "gfx1152",
        "gfx1153",
    )
)
_PCIE_BYTES_PER_LANE = {2.5: 250, 5.0: 500, 8.0: 985, 16.0: 1969, 32.0: 3938, 64.0: 7563}
# PCI device ids, from the pci.ids database.
_NAMES = {
    "0x6861": "AMD Radeon Pro WX 9100",
    "0x6860": "AMD Instinct MI25",
    "0x1586": "AMD Radeon 8060S",
    "0x150e": "AMD Radeon 890M",
    "0x15bf": "AMD Radeon 780M",
    "0x1900": "AMD Radeon 780M",
    "0x1681": "AMD Radeon 680M",
    "0x67df": "AMD Radeon RX 580",
    "0x66af": "AMD Radeon VII",
    "0x738c": "AMD Instinct MI100",
    "0x740f": "AMD Instinct MI210",
    "0x7408": "AMD Instinct MI250X",
    "0x740c": "AMD Instinct MI250X",
    "0x74a0": "AMD Instinct MI300A",
    "0x74a1": "AMD Instinct MI300X",
    "0x74a5": "AMD Instinct MI325X",
    "0x75a0": "AMD Instinct MI350X",
    "0x75a3": "AMD Instinct MI355X",
    "0x744c": "AMD Radeon RX 7900 XTX",
    "0x73bf": "AMD Radeon RX 6900 XT",
    "0x73df": "AMD Radeon RX 6700 XT",
    "0x7550": "AMD Radeon RX 9070 XT",
    "0x7590": "AMD Radeon RX 9060 XT",
    "0x7551": "AMD Radeon AI PRO R9700",
}


def read(look: Look) -> tuple[Gpu, ...]:
    """`amd-smi`, else `rocm-smi`, else sysfs; sysfs always supplies what the tool left out."""
    kernel = look.read("/proc/sys/kernel/osrelease").strip()
    from_sysfs = parse(read_sysfs(look), kernel=kernel)
    if not from_sysfs and not look.exists("/sys/class/kfd"):
        raise ProbeAbsentError("no AMD device in /sys/class/drm")
    try:
        from_tool = parse(
            {
                "static": loads(look.run("amd-smi", "static", "--json")),
                "metric": loads(look.run("amd-smi", "metric", "--mem-usage", "--json")),
            },
            kernel=kernel,
        )
    except (ProbeAbsentError, ProbeFailedError):
        try:
            from_tool = parse(
                look.run("rocm-smi", "--showallinfo", "--showmeminfo", "all", "--json"),
                kernel=kernel,
            )
        except (ProbeAbsentError, ProbeFailedError):
            from_tool = ()
    known = {gpu.bus_id.lower(): gpu for gpu in from_sysfs if gpu.bus_id}
    merged = tuple(_completed(gpu, known.get(gpu.bus_id.lower())) for gpu in from_tool)
    return merged or from_sysfs


def read_sysfs(look: Look) -> dict[str, Any]:
    """The files of `SYSFS_FILES` per card, and the KFD topology, as text."""
    cards: dict[str, dict[str, str]] = {}
    for vendor in look.glob("/sys/class/drm/card[0-9]*/device/vendor"):
        if look.read(vendor).strip() == _VENDOR and "-" not in vendor.split("/")[4]:
            folder = vendor.removesuffix("/vendor")
            cards[folder.split("/")[4]] = {
                name: content
                for name in SYSFS_FILES.split()
                if (content := look.read(f"{folder}/{name}").strip())
            }
    nodes = {
        path.split("/")[-2]: look.read(path)
        for path in look.glob("/sys/class/kfd/kfd/topology/nodes/*/properties")
    }
    banks = {
        path.split("/")[-4]: look.read(path)
        for path in look.glob("/sys/class/kfd/kfd/topology/nodes/*/mem_banks/0/properties")
    }
    return {"cards": cards, "kfd": nodes, "kfd_banks": banks} if cards else {}


def parse(source: str | Mapping[str, Any], *, kernel: str = "") -> tuple[Gpu, ...]:
    """Devices from one of three shapes; never raises.

    * `rocm-smi … --json`: text or decoded.
    * `{"static": …, "metric": …}`: decoded `amd-smi static --json` and `amd-smi metric --json`.
    * `{"cards": {"card0": {file: text}}, "kfd": …, "kfd_banks": …}`: sysfs, see `read_sysfs`.

    Args:
        source: what the tool gave.
        kernel: Linux release; decides whether an APU's GTT is usable (from 6.10). Unknown: assumed.
    """
    document = mapping(loads(source))
    if "static" in document or "metric" in document:
        return _from_amd_smi(document, kernel)
    if "cards" in document:
        return _from_sysfs(document, kernel)
    return _from_rocm_smi(document, kernel)


def _build(
    *,
    index: int,
    name: str,
    how: str,
    kernel: str,
    architecture: str = "",
    total: int | None = None,
    used: int | None = None,
    gtt: int | None = None,
    gtt_used: int | None = None,
    apu: bool | None = None,
    measured_bandwidth: tuple[int, str] | None = None,
    **facts: Any,
) -> Gpu:
    row = gpu_row("amd", name, total) or _by_family(name, architecture, total)
    if apu is None:
        apu = architecture in _APU_ARCHITECTURES if architecture else _apu_by_name(name)
    if apu and row is None:
        row = gpu_row("amd", name)
    known = {"*": how}
    bandwidth = None
    if row is not None and row.bandwidth is not None:
        bandwidth = row.bandwidth
        known["bandwidth_bytes_per_second"] = f"table: {row.name} ({row.source})"
    elif measured_bandwidth is not None:
        bandwidth, known["bandwidth_bytes_per_second"] = measured_bandwidth
    if row is not None and row.fp16_flops is not None:
        known["fp16_flops_per_second"] = f"table: {row.name} ({row.source})"
    unified = None
    if apu:
        unified = UnifiedMemory(
            kind="amd-apu",
            carve_out_bytes=total,
            carve_out_used_bytes=used,
            gtt_bytes=gtt,
            gtt_used_bytes=gtt_used,
            uses_gtt=_kernel_lends(kernel),
        )
    has_free = not apu and total is not None and used is not None
    return Gpu(
        index=index,
        vendor="amd",
        name=name,
        total_bytes=None if apu else total,
        used_bytes=None if apu else used,
        free_bytes=max(0, total - used)
        if has_free and total is not None and used is not None
        else None,
        bandwidth_bytes_per_second=bandwidth,
        fp16_flops_per_second=row.fp16_flops if row else None,
        architecture=architecture or (row.architecture if row else ""),
        unified=unified,
        how=known,
        **facts,
    )


def _completed(tool: Gpu, sysfs: Gpu | None) -> Gpu:
    """The tool's record, filled from sysfs; an APU that the tool took for a card is sysfs's."""
    if sysfs is None:
        return tool
    first, second = (tool, sysfs)
    if sysfs.unified is not None and (tool.unified is None or tool.unified.gtt_bytes is None):
        first, second = sysfs, tool
    missing: dict[str, Any] = {
        item.name: getattr(second, item.name)
        for item in fields(Gpu)
        if getattr(first, item.name) in (None, "", ()) and item.name not in _POOL_FIELDS
    }
    if tool.name != "AMD GPU":
        missing["name"] = tool.name
    return replace(first, **missing, how={**second.how, **first.how})


def _from_rocm_smi(document: Mapping[str, Any], kernel: str) -> tuple[Gpu, ...]:
    how = "rocm-smi --json"
    system = mapping(document.get("system"))
    found = []
    for key, raw in document.items():
        match = re.fullmatch(r"card(\d{1,4})", str(key))
        card = {str(name).lower(): value for name, value in mapping(raw).items()}
        if match is None or not card:
            continue
        device = (
            text(card.get("device id")) or text(card.get("gpu id")) or text(card.get("card model"))
        )
        series = text(card.get("card series"))
        name = series if series and not series.startswith("0x") else ""
        name = name or text(card.get("device name")) or _NAMES.get(device.lower(), "")
        found.append(
            _build(
                index=int(match.group(1)),
                name=_brand(name),
                how=how,
                kernel=kernel,
                architecture=text(card.get("gfx version")).lower(),
                total=size(card.get("vram total memory (b)")),
                used=size(card.get("vram total used memory (b)")),
                gtt=size(card.get("gtt total memory (b)")),
                gtt_used=size(card.get("gtt total used memory (b)")),
                uuid=text(card.get("unique id")),
                bus_id=text(card.get("pci bus")),
                driver_version=text(system.get("Driver version"))
                or text(card.get("driver version")),
            )
        )
    return tuple(found)


def _from_amd_smi(document: Mapping[str, Any], kernel: str) -> tuple[Gpu, ...]:
    how = "amd-smi --json"
    usage = {
        integer(mapping(raw).get("gpu")): mapping(mapping(raw).get("mem_usage"))
        for raw in _gpu_data(document.get("metric"))
    }
    found = []
    for position, raw in enumerate(_gpu_data(document.get("static"))):
        card = mapping(raw)
        number = integer(card.get("gpu"))
        index = position if number is None else number
        asic, vram, bus = (mapping(card.get(part)) for part in ("asic", "vram", "bus"))
        memory = usage.get(index, {})
        name = text(asic.get("market_name")) or _NAMES.get(text(asic.get("device_id")).lower(), "")
        speed = size(mapping(vram.get("max_bandwidth")).get("value") or vram.get("max_bandwidth"))
        rate = (speed * 10**9, f"{how}: max_bandwidth") if speed and speed < 10**6 else None
        found.append(
            _build(
                index=index,
                name=_brand(name),
                how=how,
                kernel=kernel,
                architecture=text(asic.get("target_graphics_version")).lower(),
                total=_amount(memory.get("total_vram")) or _amount(vram.get("size")),
                used=_amount(memory.get("used_vram")),
                gtt=_amount(memory.get("total_gtt")),
                gtt_used=_amount(memory.get("used_gtt")),
                measured_bandwidth=rate,
                cores=integer(asic.get("num_compute_units")),
                uuid=text(asic.get("asic_serial")),
                bus_id=text(bus.get("bdf")),
                driver_version=_version(text(mapping(card.get("driver")).get("version"))),
                interconnect=_pcie(bus),
                processes=_processes(card.get("process_list")),
            )
        )
    return tuple(found)


def _from_sysfs(document: Mapping[str, Any], kernel: str) -> tuple[Gpu, ...]:
    how = "/sys/class/drm"
    nodes = [
        (node, dict(_words(str(content))))
        for node, content in sorted(mapping(document.get("kfd")).items())
    ]
    gpu_nodes = [(node, facts) for node, facts in nodes if integer(facts.get("simd_count"))]
    banks = mapping(document.get("kfd_banks"))
    found = []
    for index, (_, raw) in enumerate(sorted(mapping(document.get("cards")).items())):
        card = mapping(raw)
        device = text(card.get("device")).lower()
        node, kfd = next(
            (
                (n, facts)
                for n, facts in gpu_nodes
                if integer(facts.get("device_id")) == integer(device)
            ),
            ("", {}),
        )
        bank = dict(_words(str(banks.get(node, ""))))
        width, clock = integer(bank.get("width")), integer(bank.get("mem_clk_max"))
        total = size(card.get("mem_info_vram_total"))
        gtt = size(card.get("mem_info_gtt_total"))
        unmarked = not text(card.get("mem_info_vram_vendor")) and not text(card.get("board_info"))
        name = text(card.get("product_name")) or _NAMES.get(device, "")
        slot = dict(pairs(str(card.get("uevent", "")), "="))
        found.append(
            _build(
                index=index,
                name=_brand(name),
                how=how,
                kernel=kernel,
                architecture=_gfx(integer(kfd.get("gfx_target_version"))),
                total=total,
                used=size(card.get("mem_info_vram_used")),
                gtt=gtt,
                gtt_used=size(card.get("mem_info_gtt_used")),
                apu=True if unmarked and _small_beside(total, gtt) else None,
                measured_bandwidth=(
                    (width * clock * 10**6 * 2 // 8, "/sys/class/kfd: 2 x clock x width")
                    if width and clock and width < 10**5 and clock < 10**5
                    else None
                ),
                uuid=text(card.get("unique_id")),
                bus_id=slot.get("PCI_SLOT_NAME", ""),
                cores=_compute_units(kfd),
            )
        )
    return tuple(found)


def _gpu_data(source: object) -> list[Any]:
    document = loads(source)
    if isinstance(document, Mapping) and "gpu_data" in document:
        document = document["gpu_data"]
    return items(document)


def _amount(value: object) -> int | None:
    """`amd-smi` says MB and means MiB; a bare number is in that unit too."""
    return (
        size(value, "MiB") if not isinstance(value, str) or value.strip().isdigit() else size(value)
    )


def _processes(raw: object) -> tuple[GpuProcess, ...]:
    found = []
    for item in items(raw):
        entry = mapping(mapping(item).get("process_info", item))
        pid = integer(entry.get("pid"))
        if pid is not None:
            held = mapping(entry.get("memory_usage")).get("vram_mem") or entry.get("mem")
            found.append(GpuProcess(pid=pid, name=text(entry.get("name")), used_bytes=size(held)))
    return tuple(found)


def _pcie(bus: Mapping[str, Any]) -> Interconnect | None:
    width = integer(bus.get("max_pcie_width"))
    raw = bus.get("max_pcie_speed")
    speed = mapping(raw).get("value") if isinstance(raw, Mapping) else raw
    value = integer(speed) if not isinstance(speed, float) else speed
    lane = _PCIE_BYTES_PER_LANE.get(float(value)) if value is not None else None
    if lane is None or width not in {1, 2, 4, 8, 16, 32}:
        return None
    return Interconnect(
        kind="pcie", bytes_per_second=lane * width * 10**6, detail=f"PCIe {value} GT/s x{width}"
    )


def _by_family(name: str, architecture: str, total: int | None) -> GpuRow | None:
    """Old tools print all cards of a die: `Navi 22 [Radeon RX 6700/6700 XT / 6800M]`."""
    inside = re.search(r"\[([^\]]{1,120})\]", name)
    if inside is None:
        return None
    prefix = ""
    rows = []
    for part in re.split(r"\s*/\s*", inside.group(1)):
        label = part if re.search(r"RX|PRO|Instinct|VII|MI\d", part) else f"{prefix}{part}"
        prefix = "RX " if "RX" in label else prefix
        if (row := gpu_row("amd", label, total)) is not None:
            rows.append(row)
    same = [row for row in rows if not architecture or row.architecture == architecture]
    return min(same, key=lambda row: row.bandwidth or 0, default=None)


def _apu_by_name(name: str) -> bool:
    return (
        re.search(r"\b(680M|7[468]0M|8[4689]0M|80[4-6]0S|Strix|Phoenix|Rembrandt)\b", name)
        is not None
    )


def _version(raw: str) -> str:
    """Some releases print the whole `/proc/version` line without its spaces."""
    found = re.search(r"\d+\.\d[\w.\-]{0,40}", raw)
    return found.group(0) if found else raw[:60]


def _small_beside(total: int | None, gtt: int | None) -> bool:
    return bool(total and gtt and total <= 4 * GIB and gtt >= 8 * GIB and gtt >= 4 * total)


def _kernel_lends(kernel: str) -> bool:
    match = re.match(r"(\d{1,3})\.(\d{1,4})", kernel)
    return match is None or (int(match.group(1)), int(match.group(2))) >= _GTT_KERNEL


def _gfx(version: int | None) -> str:
    """110501 → gfx1151: major, minor, stepping in hexadecimal."""
    if not version or version < 0:
        return ""
    return f"gfx{version // 10000}{version // 100 % 100}{version % 100:x}"


def _compute_units(kfd: Mapping[str, str]) -> int | None:
    simds, per_unit = integer(kfd.get("simd_count")), integer(kfd.get("simd_per_cu"))
    return simds // per_unit if simds and per_unit else None


def _words(content: str) -> list[tuple[str, str]]:
    return [
        (words[0], words[1]) for line in content.splitlines() if len(words := line.split()) == 2
    ]


def _brand(name: str) -> str:
    trimmed = name.strip()
    return trimmed if trimmed else "AMD GPU"
