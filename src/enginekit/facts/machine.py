"""What is known of a computer: nouns that can do nothing but small sums.

Units, everywhere: memory is an `int` of bytes, bandwidth an `int` of bytes per second, compute an
`int` of floating-point operations per second. Nothing here is a GiB or a GB. `None` means that no
probe could say; it never means zero.

Each record has `how`: field name → the probe or table that produced the value
(`"nvidia-smi -q -x"`, `"table: GeForce RTX 4090"`, `"preset rtx4090"`); its entry `"*"` stands for
every field without one of its own. `known_by(record, field)` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeAlias

Vendor: TypeAlias = Literal["nvidia", "amd", "apple", "intel", "other"]
System: TypeAlias = Literal["linux", "macos", "windows", "other"]
UnifiedKind: TypeAlias = Literal["apple", "amd-apu", "nvidia", "intel-igpu"]
LinkKind: TypeAlias = Literal["nvlink", "xgmi", "xe-link", "pcie", "fabric"]

How: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a device; `used_bytes` is None where the driver hides it (WSL)."""

    pid: int
    name: str = ""
    used_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interconnect:
    """The fastest way from this device to its peers.

    `bytes_per_second` is the nominal rate in one direction, all links of the device together.
    """

    kind: LinkKind
    bytes_per_second: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedMemory:
    """How a device that has no memory of its own shares the system's.

    * `apple`: one pool; the GPU may wire `wired_limit_bytes` if an administrator set it, else
      `working_set_bytes` (Metal's recommendedMaxWorkingSetSize, measured or by rule).
    * `amd-apu`: a BIOS carve-out (taken away from the RAM that the system sees) plus GTT, pages of
      system RAM that the kernel lends. `uses_gtt` is true from Linux 6.10 (HIP and Vulkan).
    * `nvidia` (GB10, Jetson, Thor) and `intel-igpu`: system RAM, no fixed limit.
    """

    kind: UnifiedKind
    working_set_bytes: int | None = None
    wired_limit_bytes: int | None = None
    carve_out_bytes: int | None = None
    carve_out_used_bytes: int | None = None
    gtt_bytes: int | None = None
    gtt_used_bytes: int | None = None
    uses_gtt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device that an engine can be told to use: a card, a MIG slice, an integrated GPU."""

    index: int
    """Position in the vendor tool's order, not in CUDA's visible order."""
    vendor: Vendor
    name: str
    uuid: str = ""
    bus_id: str = ""
    total_bytes: int | None = None
    """What the driver reports, which is less than the label on the box. None on unified parts."""
    free_bytes: int | None = None
    used_bytes: int | None = None
    reserved_bytes: int | None = None
    """Held by the driver itself; part of neither `free_bytes` nor `used_bytes`."""
    bandwidth_bytes_per_second: int | None = None
    """Nominal memory bandwidth; `how` says whether computed from clocks or tabled."""
    fp16_flops_per_second: int | None = None
    """Dense FP16/BF16 matrix rate, no sparsity; from a table."""
    compute_capability: tuple[int, int] | None = None
    """NVIDIA only: (8, 9)."""
    architecture: str = ""
    """`ada`, `gfx1100`, `apple-m3`, `xe2`."""
    cores: int | None = None
    """GPU cores on Apple, compute units on AMD."""
    unified: UnifiedMemory | None = None
    mig_enabled: bool = False
    mig_profile: str = ""
    """`3g.40gb` if this record is a MIG slice."""
    parent_uuid: str = ""
    processes: tuple[GpuProcess, ...] = ()
    driver_version: str = ""
    runtime_version: str = ""
    """Newest CUDA that the driver can run (`12.4`), or the ROCm version."""
    driver_model: str = ""
    """Windows: `WDDM` or `TCC`."""
    display_active: bool | None = None
    visible: bool = True
    """False if `CUDA_VISIBLE_DEVICES` or its AMD cousins hide it from programs started here."""
    interconnect: Interconnect | None = None
    how: How = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processors as this process may use them."""

    vendor: str = ""
    """`intel`, `amd`, `apple`, `arm`, `ampere`, `nvidia`, … lower case."""
    model: str = ""
    architecture: str = ""
    """`x86_64`, `aarch64`, as the kernel says, in lower case."""
    sockets: int | None = None
    physical_cores: int | None = None
    performance_cores: int | None = None
    """Physical cores without the efficiency cores of a hybrid part; equals `physical_cores` elsewhere."""
    logical_cores: int | None = None
    usable_cores: float | None = None
    """Logical cores that affinity and the cgroup's CPU quota leave to this process."""
    numa_nodes: int | None = None
    isa: tuple[str, ...] = ()
    """Instruction-set extensions that matter to kernels, normalised and sorted (`avx2`, `neon`, …)."""
    memory_channels: int | None = None
    memory_type: str = ""
    memory_mega_transfers: int | None = None
    """Transfers per second on each channel, in millions (the 5600 of DDR5-5600)."""
    bandwidth_bytes_per_second: int | None = None
    """Memory bandwidth of all channels together, nominal unless `how` says measured."""
    virtual: bool = False
    how: How = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The tightest memory limit from this process's control group up to the root."""

    version: Literal[1, 2]
    path: str = "/"
    limit_bytes: int | None = None
    """None: no limit. The smaller of `memory.max` and `memory.high`, over all ancestors."""
    current_bytes: int | None = None
    """Usage of the group that sets the limit, page cache included."""
    inactive_file_bytes: int | None = None
    """Page cache in `current_bytes` that the kernel gives back at once."""
    swap_limit_bytes: int | None = None
    cpu_quota: float | None = None
    """CPUs' worth of time per period (1.5), None: unlimited."""

    @property
    def free_bytes(self) -> int | None:
        """What may still be allocated: limit − (current − reclaimable page cache), None: no limit."""
        if self.limit_bytes is None:
            return None
        held = max(0, (self.current_bytes or 0) - (self.inactive_file_bytes or 0))
        return max(0, self.limit_bytes - held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """System RAM, as the kernel counts it (an APU's carve-out is not in it)."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    """What new programs can get without swapping (Linux `MemAvailable`), for the whole host."""
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    hugepages_free_bytes: int | None = None
    """Set only where huge pages are reserved."""
    shm_bytes: int | None = None
    """Size of /dev/shm; vLLM's tensor parallelism needs a GiB or more (Docker's default is 64 MiB)."""
    cgroup: Cgroup | None = None
    how: How = field(default_factory=dict, hash=False)

    @property
    def limit_bytes(self) -> int | None:
        """The most this process could ever have: total, or the control group's limit if smaller."""
        return _smallest(self.total_bytes, self.cgroup.limit_bytes if self.cgroup else None)

    @property
    def usable_bytes(self) -> int | None:
        """What this process can have now: min(available, what the control group leaves)."""
        available = self.available_bytes if self.available_bytes is not None else self.total_bytes
        return _smallest(available, self.cgroup.free_bytes if self.cgroup else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Os:
    """The operating system, and what stands between it and the metal."""

    system: System = "other"
    name: str = ""
    """`Ubuntu 24.04.1 LTS`, `macOS`, `Microsoft Windows 11 Pro`."""
    version: str = ""
    kernel: str = ""
    architecture: str = ""
    container: str = ""
    """`docker`, `podman`, `kubernetes`, `lxc`, … or empty."""
    wsl: Literal[0, 1, 2] = 0
    hypervisor: str = ""
    rosetta: bool = False
    """An x86 Python on Apple silicon: no Metal for native wheels."""
    device_model: str = ""
    """Board name where there is one: `Raspberry Pi 5 Model B Rev 1.0`, `Mac14,6`."""
    how: How = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One look at the machine: what was asked, whether it answered, and if not why."""

    name: str
    outcome: Literal["ok", "absent", "failed", "timeout"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A computer, real or planned.

    `gpus` holds what an engine can use: a card with MIG enabled is replaced by its slices.
    """

    name: str = ""
    """Name of the preset or file; empty for this computer."""
    gpus: tuple[Gpu, ...] = ()
    cpu: Cpu = field(default_factory=Cpu)
    memory: Memory = field(default_factory=Memory)
    os: Os = field(default_factory=Os)
    probes: tuple[Probe, ...] = ()

    def gpu_capacity_bytes(self, gpu: Gpu) -> int | None:
        """The most that `gpu` could hold with nothing else running."""
        shared = gpu.unified
        if shared is None:
            return gpu.total_bytes
        ram = self.memory.limit_bytes
        if shared.kind == "apple":
            return _smallest(shared.wired_limit_bytes or shared.working_set_bytes, ram)
        if shared.kind == "amd-apu":
            carve_out = shared.carve_out_bytes or 0
            lent = _smallest(shared.gtt_bytes, ram) if shared.uses_gtt else 0
            return carve_out + (lent or 0) or None
        return _smallest(gpu.total_bytes, ram)

    def gpu_free_bytes(self, gpu: Gpu) -> int | None:
        """What `gpu` could hold now, before any policy or margin.

        A card of its own: the driver's free memory. Shared parts: never more than the RAM that is
        free now, whatever the driver claims (adding carve-out and GTT blindly gave "132 GiB" on a
        128 GiB machine, ROCm issue 6004).
        """
        shared = gpu.unified
        if shared is None:
            if gpu.free_bytes is not None:
                return gpu.free_bytes
            if gpu.total_bytes is None:
                return None
            return max(0, gpu.total_bytes - (gpu.used_bytes or 0) - (gpu.reserved_bytes or 0))
        ram = self.memory.usable_bytes
        if shared.kind == "apple":
            return _smallest(shared.wired_limit_bytes or shared.working_set_bytes, ram)
        if shared.kind == "amd-apu":
            carve_out = max(0, (shared.carve_out_bytes or 0) - (shared.carve_out_used_bytes or 0))
            if not shared.uses_gtt:
                return carve_out
            lent = shared.gtt_bytes
            if lent is not None:
                lent = max(0, lent - (shared.gtt_used_bytes or 0))
            return carve_out + (_smallest(lent, ram) or 0)
        if shared.kind == "nvidia" and self.memory.hugepages_free_bytes:
            return self.memory.hugepages_free_bytes
        return _smallest(gpu.free_bytes, ram)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the fields that still have their default.

        `enginekit.hardware.machine_from_dict` reads it back to an equal machine.
        """
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def known_by(record: Gpu | Cpu | Memory | Os, field: str) -> str:
    """How the value of a field is known: a probe, a table row, a rule; empty for a default."""
    return record.how.get(field) or record.how.get("*", "")


def _smallest(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        blank = _BLANKS.get(type(value), {})
        result: dict[str, object] = {}
        for item in fields(value):
            current = getattr(value, item.name)
            if item.name in blank and blank[item.name] == current:
                continue
            result[item.name] = _plain(current)
        return result
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _defaults(cls: type, **required: object) -> dict[str, object]:
    blank = cls(**required)
    return {
        item.name: getattr(blank, item.name) for item in fields(blank) if item.name not in required
    }


_BLANKS: dict[type, dict[str, object]] = {
    GpuProcess: _defaults(GpuProcess, pid=0),
    Interconnect: _defaults(Interconnect, kind="pcie"),
    UnifiedMemory: _defaults(UnifiedMemory, kind="apple"),
    Gpu: _defaults(Gpu, index=0, vendor="other", name=""),
    Cpu: _defaults(Cpu),
    Cgroup: _defaults(Cgroup, version=2),
    Memory: _defaults(Memory),
    Os: _defaults(Os),
    Probe: _defaults(Probe, name="", outcome="ok"),
    Machine: _defaults(Machine),
}
