"""A snapshot of NVML as plain JSON types, so that reading it is separate from understanding it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def snapshot() -> dict[str, Any] | None:
    """Everything `nvidia.parse` wants, or None without the binding (`nvidia-ml-py`) or a driver.

    Each value is asked for on its own: an old driver or a unified part refuses some of them.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except Exception:
        return None
    try:
        return _snapshot(pynvml)
    except Exception:
        return None
    finally:
        _ask(pynvml.nvmlShutdown)


def _snapshot(nvml: Any) -> dict[str, Any]:
    cuda = _ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
    count = _ask(nvml.nvmlDeviceGetCount) or 0
    return {
        "driver_version": _ask(nvml.nvmlSystemGetDriverVersion),
        "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else None,
        "gpus": [
            _device(nvml, nvml.nvmlDeviceGetHandleByIndex(index), index) for index in range(count)
        ],
    }


def _device(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    capability = _ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    mig = _ask(nvml.nvmlDeviceGetMigMode, handle)
    links = [
        link
        for link in range(getattr(nvml, "NVML_NVLINK_MAX_LINKS", 18))
        if _ask(nvml.nvmlDeviceGetNvLinkState, handle, link) == 1
    ]
    pci = _ask(nvml.nvmlDeviceGetPciInfo, handle)
    addressing = _ask(getattr(nvml, "nvmlDeviceGetAddressingMode", None), handle)
    model = _ask(nvml.nvmlDeviceGetDriverModel, handle)
    return {
        "index": index,
        "name": _string(_ask(nvml.nvmlDeviceGetName, handle)),
        "uuid": _string(_ask(nvml.nvmlDeviceGetUUID, handle)),
        "bus_id": _string(getattr(pci, "busId", "")),
        "compute_capability": "{}.{}".format(*capability) if capability else None,
        "memory_clock_mhz": _ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "bus_bits": _ask(getattr(nvml, "nvmlDeviceGetMemoryBusWidth", None), handle),
        "mig_mode": "Enabled" if mig and mig[0] == 1 else "Disabled",
        "mig_devices": _slices(nvml, handle) if mig and mig[0] == 1 else [],
        "addressing_mode": {1: "HMM", 2: "ATS"}.get(getattr(addressing, "value", addressing), ""),
        "driver_model": {0: "WDDM", 1: "TCC"}.get(model[0], "") if model else "",
        "display_active": bool(_ask(nvml.nvmlDeviceGetDisplayActive, handle)),
        "nvlinks": len(links),
        "nvlink_version": _ask(nvml.nvmlDeviceGetNvLinkVersion, handle, links[0])
        if links
        else None,
        "pcie_generation": _ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        "pcie_width": _ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        "processes": [
            {
                "pid": process.pid,
                "name": _string(_ask(nvml.nvmlSystemGetProcessName, process.pid) or ""),
                "used": process.usedGpuMemory,
            }
            for process in _ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        ],
        **_memory(nvml, handle),
    }


def _slices(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    found = []
    for index in range(_ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = _ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if part is None:
            continue
        name = _string(_ask(nvml.nvmlDeviceGetName, part))
        found.append(
            {
                "index": index,
                "gpu_instance_id": _ask(nvml.nvmlDeviceGetGpuInstanceId, part),
                "uuid": _string(_ask(nvml.nvmlDeviceGetUUID, part)),
                "profile": name.partition(" MIG ")[2],
                **_memory(nvml, part),
            }
        )
    return found


def _memory(nvml: Any, handle: Any) -> dict[str, int | None]:
    info = None
    if (version := getattr(nvml, "nvmlMemory_v2", None)) is not None:
        info = _ask(nvml.nvmlDeviceGetMemoryInfo, handle, version)
    if info is None:
        info = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    return {key: getattr(info, key, None) for key in ("total", "reserved", "used", "free")}


def _string(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _ask(function: Callable[..., Any] | None, *arguments: Any) -> Any:
    if function is None:
        return None
    try:
        return function(*arguments)
    except Exception:
        return None
