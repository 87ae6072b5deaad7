"""Which devices the environment hides from programs that are started here.

NVML, `nvidia-smi`, `rocm-smi` and sysfs show every device whatever these variables say; CUDA, HIP and
SYCL do not. Source: CUDA programming guide (environment variables), ROCm documentation (GPU isolation),
Intel oneAPI DPC++ environment variables (ONEAPI_DEVICE_SELECTOR).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from enginekit.facts.machine import Gpu

_VARIABLES = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "intel": ("ONEAPI_DEVICE_SELECTOR",),
}


def marked(gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The same devices, with `visible` set.

    A list may hold indices, UUIDs or their beginnings, and MIG UUIDs; it ends at the first entry
    that names no device, as CUDA itself reads it. CUDA counts fastest first unless
    `CUDA_DEVICE_ORDER=PCI_BUS_ID`: where cards of different kinds are installed and the order is
    not that of the bus, indices cannot be told apart and nothing is marked as hidden.
    """
    variables = dict(_VARIABLES)
    if "HIP_VISIBLE_DEVICES" not in environ and all(gpu.vendor != "nvidia" for gpu in gpus):
        # HIP reads CUDA's variable too, for programs that were written for CUDA.
        variables["amd"] = ("ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    for vendor, names in variables.items():
        own = [gpu for gpu in gpus if gpu.vendor == vendor]
        for name in names:
            value = environ.get(name)
            if value is None or not own:
                continue
            same = len({gpu.name for gpu in own}) == 1
            ordered = same or vendor == "amd" or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
            find = _selected if name == "ONEAPI_DEVICE_SELECTOR" else _chosen
            chosen = find(value, own, ordered)
            if chosen is not None:
                gpus = tuple(
                    replace(gpu, visible=False, how={**gpu.how, "visible": f"{name}={value}"[:120]})
                    if gpu in own and gpu not in chosen
                    else gpu
                    for gpu in gpus
                )
                own = chosen
    return gpus


def _chosen(value: str, own: list[Gpu], ordered: bool) -> list[Gpu] | None:
    """The devices that a list names, in its order; None if it cannot be known."""
    found: list[Gpu] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry.isascii() and entry.isdigit():
            if not ordered:
                return None
            match = own[int(entry)] if len(entry) < 6 and int(entry) < len(own) else None
        else:
            match = next(
                (gpu for gpu in own if entry and gpu.uuid.lower().startswith(entry.lower())), None
            )
        if match is None or match in found:
            break
        found.append(match)
    return found


def _selected(value: str, own: list[Gpu], ordered: bool) -> list[Gpu] | None:
    """What a selector such as `level_zero:0,1;!level_zero:1` leaves; None if it cannot be known.

    GPUs are those of the Level Zero backend; another backend's (`opencl:0`) are not taken for them.
    """
    kept: set[int] | None = None
    dropped: set[int] = set()
    for term in filter(None, (part.strip().lower() for part in value.split(";"))):
        backend, colon, listed = term.removeprefix("!").partition(":")
        numbers: set[int] = set()
        for entry in listed.split(","):
            root = entry.strip().partition(".")[0]  # 0.1 is a tile of device 0
            if root in ("*", "gpu"):
                numbers |= set(range(len(own)))
            elif root.isascii() and root.isdigit() and len(root) < 6:
                if not ordered:
                    return None
                numbers.add(int(root))
            elif root not in ("cpu", "fpga"):
                return None
        if not colon:
            return None
        if backend not in ("level_zero", "*"):
            numbers = set()
        if term.startswith("!"):
            dropped |= numbers
        else:
            kept = (kept or set()) | numbers
    if kept is None:
        if not dropped:
            return None
        kept = set(range(len(own)))
    return [gpu for position, gpu in enumerate(own) if position in kept - dropped]
