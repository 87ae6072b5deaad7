"""`detect()` on this machine and on machines made of files and fake tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from enginekit.errors import ConfigError
from enginekit.facts.machine import Cpu, Machine, Memory, known_by
from enginekit.hardware import cpu, detect, detection
from enginekit.hardware._look import Look, ProbeAbsentError, ProbeFailedError, ProbeTimeoutError
from enginekit.hardware.detection import copied_now
from enginekit.kit import planning
from tests.hardware import capture

MIB = 1024**2
posix = pytest.mark.skipif(os.name != "posix", reason="fake tools are shell scripts")


@pytest.fixture
def without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/sh\n" + textwrap.dedent(body))
    file.chmod(0o755)


def outcome(machine: Machine, name: str) -> str:
    return next(probe.outcome for probe in machine.probes if probe.name == name)


def detail(machine: Machine, name: str) -> str:
    return next(probe.detail for probe in machine.probes if probe.name == name)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_this_machine_agrees_with_psutil():
    machine = detect()
    assert machine.memory.total_bytes == psutil.virtual_memory().total
    available = machine.memory.available_bytes
    assert available is not None
    assert abs(available - psutil.virtual_memory().available) < 2048 * MIB
    assert machine.cpu.logical_cores == psutil.cpu_count()
    if (cores := psutil.cpu_count(logical=False)) and machine.cpu.physical_cores:
        assert machine.cpu.physical_cores == cores
    assert machine.cpu.usable_cores is not None
    assert 0 < machine.cpu.usable_cores <= (machine.cpu.logical_cores or 0)
    assert {"os", "cpu", "memory"} <= {
        probe.name for probe in machine.probes if probe.outcome == "ok"
    }


def test_every_probe_is_accounted_for_with_a_reason_if_it_found_nothing():
    for probe in detect().probes:
        assert probe.outcome in ("ok", "absent", "failed", "timeout")
        assert probe.outcome == "ok" or probe.detail


@posix
@pytest.mark.usefixtures("without_nvml")
def test_a_tool_that_hangs_is_ended_with_everything_it_started(tmp_path: Path):
    """The fake tool starts a grandchild that keeps its output open, as a wedged driver's would."""
    tool(
        tmp_path,
        "nvidia-smi",
        f"""
        sleep 600 &
        echo $! > {tmp_path}/grandchild
        echo $$ > {tmp_path}/child
        wait
        """,
    )
    (tmp_path / "proc").mkdir()
    path = f"{tmp_path}:{os.environ['PATH']}"
    machine = detect(look=Look(1.0, path=path), system="linux")
    assert outcome(machine, "nvidia") == "timeout"
    assert machine.memory.total_bytes == psutil.virtual_memory().total
    pids = [int((tmp_path / name).read_text()) for name in ("child", "grandchild")]
    for _ in range(100):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_a_driver_library_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    """A call stuck inside a driver cannot be ended; the answer comes without it."""
    release = threading.Event()
    stuck = types.ModuleType("pynvml")
    stuck.nvmlInit = release.wait  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", stuck)
    try:
        machine = detect(look=Look(0.3), system="linux")
    finally:
        release.set()
    assert outcome(machine, "nvidia") == "timeout"
    assert outcome(machine, "memory") == "ok"


@posix
@pytest.mark.usefixtures("without_nvml")
@pytest.mark.parametrize("name", ["nvidia-rtx-3090", "nvidia-a100-80-mig", "nvidia-tesla-t4"])
def test_a_fake_nvidia_smi_is_read_from_end_to_end(tmp_path: Path, name: str):
    folder = capture.ROOT / name
    shutil.copy(folder / "nvidia-smi.xml", tmp_path / "out.xml")
    tool(
        tmp_path / "bin",
        "nvidia-smi",
        f'[ "$*" = "-q -x" ] && exec /bin/cat {tmp_path}/out.xml; exit 9',
    )
    machine = detect(look=Look(10, root=tmp_path, path=str(tmp_path / "bin")), system="linux")
    assert machine.gpus == capture.machine(folder).gpus
    assert outcome(machine, "nvidia") == "ok"


@posix
@pytest.mark.usefixtures("without_nvml")
def test_where_xml_is_refused_the_summary_is_read(tmp_path: Path):
    shutil.copy(capture.ROOT / "jetson-agx-orin" / "nvidia-smi.txt", tmp_path / "out.txt")
    tool(tmp_path / "bin", "nvidia-smi", f"[ $# = 0 ] && exec /bin/cat {tmp_path}/out.txt; exit 1")
    board = tmp_path / "proc/device-tree/model"
    board.parent.mkdir(parents=True)
    board.write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    machine = detect(look=Look(10, root=tmp_path, path=str(tmp_path / "bin")), system="linux")
    (gpu,) = machine.gpus
    assert gpu.bandwidth_bytes_per_second == 68 * 10**9
    assert machine.os.device_model == "NVIDIA Jetson Orin Nano Developer Kit"


@posix
@pytest.mark.usefixtures("without_nvml")
def test_a_broken_tool_is_reported_in_its_own_words(tmp_path: Path):
    tool(
        tmp_path,
        "nvidia-smi",
        "echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18",
    )
    machine = detect(look=Look(10, path=str(tmp_path)), system="linux")
    assert outcome(machine, "nvidia") == "failed"
    assert "Driver/library version mismatch" in detail(machine, "nvidia")


@posix
def test_amd_sysfs_completes_what_rocm_smi_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """rocm-smi takes the APU's carve-out for its whole memory; sysfs knows the GTT pool."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    device = tmp_path / "sys/class/drm/card1/device"
    device.mkdir(parents=True)
    for name, content in {
        "vendor": "0x1002",
        "device": "0x1586",
        "mem_info_vram_total": str(512 * MIB),
        "mem_info_vram_used": str(112 * MIB),
        "mem_info_gtt_total": str(64000 * MIB),
        "mem_info_gtt_used": "0",
        "uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:c3:00.0",
    }.items():
        (device / name).write_text(content + "\n")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.14.0-1014-oem\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 131072000 kB\nMemAvailable: 30720000 kB\n")
    answer = '{"card0": {"Card Series": "AMD Radeon 8060S", "PCI Bus": "0000:C3:00.0", "VRAM Total Memory (B)": "536870912", "GFX Version": "gfx1151"}}'
    tool(tmp_path / "bin", "rocm-smi", f"echo '{answer}'")
    machine = detect(look=Look(10, root=tmp_path, path=str(tmp_path / "bin")), system="linux")
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.architecture) == ("AMD Radeon 8060S", "gfx1151")
    assert machine.gpu_capacity_bytes(gpu) == (512 + 64000) * MIB
    assert machine.gpu_free_bytes(gpu) == (400 + 30000) * MIB


def test_an_empty_machine_gives_an_answer_with_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing in /proc, nothing on the path: psutil stands in for RAM, the rest says what is missing."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = detect(look=Look(5, root=tmp_path, environ={}, path=str(tmp_path)), system="linux")
    assert machine.gpus == ()
    assert machine.memory.total_bytes == psutil.virtual_memory().total
    assert known_by(machine.memory, "total_bytes") == "psutil"
    assert [outcome(machine, name) for name in ("nvidia", "amd", "intel")] == ["absent"] * 3


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_another_systems_tools_missing_is_no_error(system: str, tmp_path: Path):
    machine = detect(look=Look(5, root=tmp_path, path=str(tmp_path)), system=system)  # type: ignore[arg-type]
    assert machine.memory.total_bytes == psutil.virtual_memory().total
    assert {probe.outcome for probe in machine.probes} <= {"ok", "absent"}


@posix
def test_macos_is_read_from_its_own_tools(tmp_path: Path):
    facts = (capture.ROOT / "apple-m4-max" / "sysctl.txt").read_text("utf-8")
    (tmp_path / "sysctl.txt").write_text(
        facts + "vm.swapusage: total = 2048.00M  used = 0.00M  free = 2048.00M\n"
    )
    shutil.copy(capture.ROOT / "mac-vm-stat" / "vm_stat.txt", tmp_path / "vm_stat.txt")
    tool(tmp_path, "sysctl", f"cat {tmp_path}/sysctl.txt; exit 1")
    tool(tmp_path, "vm_stat", f"cat {tmp_path}/vm_stat.txt")
    tool(
        tmp_path,
        "system_profiler",
        'echo \'{"SPDisplaysDataType": [{"sppci_model": "Apple M4 Max", "sppci_cores": "40"}]}\'',
    )
    machine = detect(look=Look(10, path=f"{tmp_path}:/bin:/usr/bin"), system="macos")
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.cores, gpu.bandwidth_bytes_per_second) == (
        "Apple M4 Max",
        40,
        546 * 10**9,
    )
    assert machine.memory.total_bytes == 64 * 1024 * MIB
    assert machine.memory.available_bytes == (1364873 + 1583485 + 1061442 + 207521) * 4096
    assert machine.memory.swap_total_bytes == 2048 * MIB
    assert machine.cpu.performance_cores == 12


def test_nvml_is_asked_value_by_value(monkeypatch: pytest.MonkeyPatch):
    """A part that refuses some questions (here: memory and links) still answers the others."""

    def refuse(*_: object) -> object:
        raise RuntimeError("Not Supported")

    fake = types.ModuleType("pynvml")
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA GB10",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (12, 1),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            types.SimpleNamespace(pid=77, usedGpuMemory=5 * MIB)
        ],
        "NVML_CLOCK_MEM": 2,
    }
    for name in [
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetPciInfo",
        "nvmlDeviceGetDriverModel",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetMaxClockInfo",
        "nvmlDeviceGetDisplayActive",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMaxPcieLinkGeneration",
        "nvmlDeviceGetMaxPcieLinkWidth",
        "nvmlSystemGetProcessName",
    ]:
        answers[name] = refuse
    for name, value in answers.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    (gpu,) = detect(look=Look(10), system="linux").gpus
    assert gpu.name == "NVIDIA GB10"
    assert gpu.compute_capability == (12, 1)
    assert gpu.unified is not None
    assert gpu.runtime_version == "13.0"
    assert [(process.pid, process.used_bytes) for process in gpu.processes] == [(77, 5 * MIB)]


@posix
def test_look_tells_missing_broken_and_slow_tools_apart(tmp_path: Path):
    tool(tmp_path, "broken", "echo no >&2; exit 3")
    tool(tmp_path, "slow", "sleep 600")
    tool(tmp_path, "partial", "echo half; exit 1")
    look = Look(0.3, path=f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ProbeAbsentError, match="missing is not installed"):
        look.run("missing")
    with pytest.raises(ProbeFailedError, match="exited with 3: no"):
        look.run("broken")
    assert look.run("partial") == "half\n"
    with pytest.raises(ProbeTimeoutError, match="slow"):
        look.run("slow")
    with pytest.raises(ProbeTimeoutError, match="no time left"):
        look.run("broken")


def test_a_busy_computer_is_told_apart_and_gets_no_faster_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy that took 0.04 s of the processor's time while 0.2 s passed on the wall."""
    wall, own = iter((0.0, 0.2)), iter((0.0, 0.04))
    clock = SimpleNamespace(perf_counter=lambda: next(wall), thread_time=lambda: next(own))
    monkeypatch.setattr(cpu, "time", clock)
    copied = cpu.measure_bandwidth(seconds=0.15, threads=1)
    assert copied is not None
    assert copied.bytes_per_second == round(2 * 64 * 2**20 / 0.2)
    assert copied.share == pytest.approx(0.2)


def test_threads_that_take_turns_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads on one core, each half of the time: what both copied, over the wall's time."""
    wall = [0.0]
    monkeypatch.setattr(
        cpu,
        "time",
        SimpleNamespace(perf_counter=lambda: wall[0], thread_time=lambda: wall[0] / 2),
    )
    turn = threading.Lock()

    def move(*_: object) -> None:
        with turn:
            wall[0] += 0.1

    monkeypatch.setattr(cpu.ctypes, "memmove", move)
    copied = cpu.measure_bandwidth(seconds=0.3, threads=2)
    assert copied is not None
    assert copied.bytes_per_second == pytest.approx(2 * 64 * 2**20 / 0.1)


def test_no_more_threads_copy_than_there_are_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(cpu, "measure_bandwidth", lambda **named: asked.append(named["threads"]))
    for cores in (0.5, 1.5, 2.0, 3.9):
        copied_now(Cpu(usable_cores=cores), Memory(total_bytes=2**34, available_bytes=2**34))
    assert asked == [1, 1, 2, 3]


def test_measured_bandwidth_is_a_plausible_rate():
    copied = cpu.measure_bandwidth(seconds=0.05, threads=1)
    assert copied is not None
    assert 10**8 < copied.bytes_per_second < 10**13
    assert 0 < copied.share <= 1


def test_a_module_of_the_package_does_not_take_the_place_of_a_function():
    """The first import of a submodule sets it as an attribute of its package."""
    code = (
        "import importlib, pkgutil, enginekit.hardware as h\n"
        "[importlib.import_module(f'enginekit.hardware.{m.name}') for m in pkgutil.iter_modules(h.__path__)]\n"
        "assert all(callable(getattr(h, name)) for name in h.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_even_proc_is_missing_the_c_library_is_asked(monkeypatch: pytest.MonkeyPatch):
    """A chroot without /proc: psutil fails as well."""

    def gone() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr("psutil.virtual_memory", gone)
    found = detection._from_psutil(Memory())
    pages = {
        "SC_PAGE_SIZE": os.sysconf("SC_PAGE_SIZE"),
        "SC_PHYS_PAGES": os.sysconf("SC_PHYS_PAGES"),
    }
    assert found.total_bytes == pages["SC_PAGE_SIZE"] * pages["SC_PHYS_PAGES"]
    assert found.available_bytes
    assert known_by(found, "total_bytes") == "sysconf"


def test_a_computer_whose_memory_cannot_be_read_is_not_planned_for_as_having_none(
    monkeypatch: pytest.MonkeyPatch,
):
    blind = Machine(cpu=Cpu(bandwidth_bytes_per_second=1))
    monkeypatch.setattr("enginekit.hardware.detect", lambda: blind)
    with pytest.raises(ConfigError, match="could not be read"):
        planning.plan("qwen3-8b")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own folders")
def test_a_process_with_nothing_in_its_path_and_no_environment_is_looked_at_all_the_same():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from enginekit.hardware import detect;"
        "m = detect(); print(m.memory.total_bytes, len(m.probes))"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], env={"PATH": ""}, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    total, probes = done.stdout.split()
    assert int(total) > 0
    assert int(probes) == 6
