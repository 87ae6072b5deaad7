"""Which devices the environment hides from programs that are started here.

NVML, `nvidia-smi`, `rocm-smi` and sysfs show every device whatever these variables say; CUDA and HIP
do not. Source: CUDA programming guide (environment variables), ROCm documentation (GPU isolation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from enginekit.facts.machine import Gpu

_VARIABLES = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
}


def marked(gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The same devices, with `visible` set.

    A list may hold indices, UUIDs or their beginnings, and MIG UUIDs; it ends at the first entry
    that names no device, as CUDA itself reads it. CUDA counts fastest first unless
    `CUDA_DEVICE_ORDER=PCI_BUS_ID`: where cards of different kinds are installed and the order is
    not that of the bus, indices cannot be told apart and nothing is marked as hidden.
    """
    for vendor, names in _VARIABLES.items():
        own = [gpu for gpu in gpus if gpu.vendor == vendor]
        for name in names:
            value = environ.get(name)
            if value is None or not own:
                continue
            same = len({gpu.name for gpu in own}) == 1
            ordered = same or vendor == "amd" or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
            chosen = _chosen(value, own, ordered)
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
