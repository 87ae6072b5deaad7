"""What each device of a machine has to give: free now, the engine's own cap, margins.

Free memory is the driver's word at this moment, never the number on the box. A GPU that borrows
system memory and the host draw on one pool; `shared` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from enginekit.facts.machine import Gpu, Machine
from enginekit.sizing.policy import GIB, MIB, Backend, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place for bytes. All sizes in bytes."""

    name: str
    index: int
    """The GPU's index; -1 for the host."""
    backend: Backend
    total: int
    free: int
    """Free now, whatever the policy."""
    cap: int
    """The most that the policy takes."""
    margin: int
    """Left alone on purpose."""
    reason: str
    """Where `cap` and `margin` come from."""
    bandwidth: int | None = None
    flops: int | None = None
    carve_out: int = 0
    """The part of a shared GPU's memory that is not system RAM."""
    shared: bool = False
    """Whether it draws on system RAM."""
    link: int | None = None
    """Bytes per second to its peers, one direction."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None if unknown or not NVIDIA's."""

    limit: int = field(init=False)
    """The most that can be had: the smaller of free and cap."""
    budget: int = field(init=False)
    """What a plan may count on: the limit less the margin."""
    host: bool = field(init=False)
    """Whether this is system memory used by the CPU."""

    def __post_init__(self) -> None:
        # Searches read these thousands of times.
        limit = min(self.free, self.cap)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "budget", max(0, limit - self.margin))
        object.__setattr__(self, "host", self.index < 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What a policy can use of a machine."""

    gpus: tuple[Device, ...]
    """Of one kind, the roomiest first."""
    host: Device
    excluded: tuple[str, ...]
    """Why other GPUs are left out, one sentence each."""


@lru_cache(maxsize=512)
def devices(machine: Machine, policy: Policy) -> Devices:
    """The devices of a machine as an engine of that policy sees them."""
    groups: dict[tuple[str, bool], list[Device]] = {}
    excluded: list[str] = []
    for gpu in machine.gpus:
        why = _why_not(gpu, policy)
        if not why and not machine.gpu_capacity_bytes(gpu) and not machine.gpu_free_bytes(gpu):
            why = "how much memory it has is not known"
        if why:
            excluded.append(f"{gpu.name}: {why}")
            continue
        kind = (gpu.vendor, gpu.unified is not None)
        groups.setdefault(kind, []).append(_gpu(machine, gpu, policy))
    best: list[Device] = []
    for found in groups.values():
        if sum(device.budget for device in found) > sum(device.budget for device in best):
            best = found
    for found in groups.values():
        if found is not best:
            busy = not any(device.budget for device in found)
            why = "nothing is free on it" if busy else "one engine process uses one kind of GPU"
            excluded += [f"{device.name}: {why}" for device in found]
    best.sort(key=lambda device: (-device.budget, device.index))
    return Devices(gpus=tuple(best), host=_host(machine), excluded=tuple(excluded))


def _why_not(gpu: Gpu, policy: Policy) -> str:
    if not gpu.visible:
        return "hidden from programs by an environment variable"
    if gpu.vendor not in policy.backends:
        return f"no build of the engine for {gpu.vendor}"
    capability = gpu.compute_capability
    if capability is not None and capability < policy.compute_capability:
        least = ".".join(map(str, policy.compute_capability))
        return f"compute capability {capability[0]}.{capability[1]}, {least} is needed"
    known = policy.architectures.get(gpu.vendor)
    if known is not None and gpu.architecture and gpu.architecture not in known:
        return f"no kernels for {gpu.architecture}"
    return ""


def _gpu(machine: Machine, gpu: Gpu, policy: Policy) -> Device:
    capacity = machine.gpu_capacity_bytes(gpu) or 0
    free = machine.gpu_free_bytes(gpu)
    free = capacity if free is None else free
    capacity = max(capacity, free)
    cap = int(capacity * policy.utilization)
    shared = gpu.unified is not None
    reasons = []
    if policy.utilization < 1:
        reasons.append(f"{policy.utilization:.0%} of {capacity / GIB:.2f} GiB")
    if gpu.unified is not None and gpu.unified.kind == "apple":
        reasons.append("Metal's working set")
    elif shared:
        reasons.append("shared with the system")
    if policy.margin:
        reasons.append(f"{policy.margin // MIB} MiB left free")
    return Device(
        name=gpu.name,
        index=gpu.index,
        backend=policy.backends[gpu.vendor],
        total=capacity,
        free=free,
        cap=cap,
        margin=policy.margin,
        reason=", ".join(reasons) or "all that is free",
        bandwidth=gpu.bandwidth_bytes_per_second
        or (machine.cpu.bandwidth_bytes_per_second if shared else None),
        flops=gpu.fp16_flops_per_second,
        carve_out=(gpu.unified.carve_out_bytes or 0) if gpu.unified else 0,
        shared=shared,
        link=gpu.interconnect.bytes_per_second if gpu.interconnect else None,
        capability=gpu.compute_capability,
    )


def _host(machine: Machine) -> Device:
    memory = machine.memory
    total = memory.limit_bytes or 0
    free = memory.usable_bytes
    free = total if free is None else free
    group = memory.cgroup
    limited = group is not None and group.limit_bytes is not None and group.limit_bytes == total
    margin, reason = reserve(total, free, contained=limited)
    return Device(
        name="host memory",
        index=-1,
        backend="cpu",
        total=total,
        free=free,
        cap=total,
        margin=margin,
        reason=reason,
        bandwidth=machine.cpu.bandwidth_bytes_per_second,
        flops=cpu_flops(machine),
    )


def reserve(total: int, free: int, *, contained: bool = False) -> tuple[int, str]:
    """What to leave of system memory, and why.

    15 per cent of all RAM, at least 2 and at most 32 GiB, belongs to the system and other programs;
    what they use already counts towards it. A control group holds nobody else.
    """
    if contained:
        return max(total // 20, 256 * MIB), "the control group's limit, 5 per cent left free"
    least = min(2 * GIB, total // 4)
    wanted = min(max(total * 15 // 100, least), 32 * GIB)
    rest = max(wanted - (total - free), min(GIB, total // 20))
    return rest, f"{wanted / GIB:.1f} GiB for the system and other programs"


_FLOPS_PER_CYCLE = (
    ("amx_tile", 512),
    ("avx512f", 64),
    ("avx2", 32),
    ("i8mm", 32),
    ("neon", 16),
    ("avx", 16),
)
"""Floating-point operations per cycle and core that quantized matrix kernels reach at best."""


def cpu_flops(machine: Machine) -> int | None:
    """A CPU's peak from cores and instruction set at 3 GHz; None if neither is known."""
    cpu = machine.cpu
    cores = cpu.performance_cores or cpu.physical_cores
    if not cores:
        return None
    if cpu.usable_cores is not None:
        cores = min(cores, max(1, int(cpu.usable_cores)))
    isa = set(cpu.isa)
    rate = next((flops for name, flops in _FLOPS_PER_CYCLE if name in isa), 8)
    return int(cores * 3_000_000_000 * rate)
