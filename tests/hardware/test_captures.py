"""What real machines printed, and what we make of it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from enginekit.facts.machine import Gpu, Machine, known_by
from enginekit.hardware import machine_from_dict
from tests.hardware import capture

MIB = 1024**2
GIB = 1024**3
FOLDERS = capture.folders()
RUN_OF_DIGITS = re.compile(
    r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I
)


def bare(value: Any) -> Any:
    """A document without its `how` tables: goldens hold facts, `how` has tests of its own."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if key != "how"}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return value


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_parsers_find_in_each_capture_what_its_golden_says(folder: Path):
    assert bare(capture.machine(folder).to_dict()) == capture.expected(folder)


def test_at_least_25_captures_are_of_real_machines_and_name_where_they_were_published():
    real = [folder for folder in FOLDERS if not capture.is_constructed(folder)]
    for folder in real:
        source = (folder / "SOURCE").read_text("utf-8")
        assert re.search(r"^repository: github\.com/[\w.-]+/[\w.-]+$", source, re.M), folder.name
        assert re.search(r"^tool: \S", source, re.M), folder.name
        exact = re.search(r"^file: \S+\ncommit: [0-9a-f]{40}$", source, re.M)
        issue = re.search(
            r"^issue: https://\S+/(issues|pull)/\d+\ndate: \d{4}-\d\d-\d\d$", source, re.M
        )
        assert exact or issue, folder.name
    assert len(real) >= 25


def test_no_capture_carries_a_serial_number_or_a_unique_id():
    for file in capture.ROOT.rglob("*"):
        if file.is_file():
            text = file.read_text("utf-8")
            ids = {found for found in RUN_OF_DIGITS.findall(text) if found.strip("0-")}
            if not capture.is_constructed(capture.ROOT / file.relative_to(capture.ROOT).parts[0]):
                assert ids == set(), file
            assert not re.search(r"^\s*Serial(?! Number +: N/A)", text, re.M), file


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_fact_says_how_it_is_known(folder: Path):
    machine = capture.machine(folder)
    for record in (*machine.gpus, machine.cpu, machine.memory, machine.os):
        blank = type(record)(
            **{
                name: getattr(record, name)
                for name in ("index", "vendor", "name")
                if isinstance(record, Gpu)
            }
        )
        for item in fields(record):
            if item.name != "how" and getattr(record, item.name) != getattr(blank, item.name):
                assert known_by(record, item.name), (folder.name, item.name)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_described_machine_is_the_machine(folder: Path):
    """Writing a detected machine to a file and reading it back changes nothing."""
    machine = capture.machine(folder)
    assert machine_from_dict(machine.to_dict()) == machine


# Written by hand from the captures and the data sheets, so that a regenerated golden cannot hide a mistake.
@pytest.mark.parametrize(
    ("name", "gpus", "total_mib", "free_mib", "gigabytes_per_second", "compute_capability"),
    [
        ("nvidia-rtx-3090", 1, 24576, 24258, 936.2, (8, 6)),
        ("nvidia-rtx-3080", 1, 10240, 660, 760.3, (8, 6)),
        ("nvidia-tesla-t4", 1, 15360, 13939, 320, (7, 5)),
        ("nvidia-8xh100", 8, 81559, 81558, 3350, (9, 0)),
        ("nvidia-2xh100-nvl", 2, 95830, 95830, 3938, (9, 0)),
        ("nvidia-8xrtx-6000-ada", 8, 49140, 49138, 960, (8, 9)),
        ("nvidia-rtx-4070-laptop-wsl", 1, 8188, 7948, 256, (8, 9)),
        ("nvidia-a100-80-mig", 4, 19968, 19955, 497.25, (8, 0)),
        ("nvidia-h200", 1, 143771, 143158, 4800, (9, 0)),
        ("nvidia-h100-r590-csv", 1, 81559, 81081, 3350, (9, 0)),
        ("nvidia-l40s-r595", 1, 46068, 45460, 864, (8, 9)),
        ("nvidia-rtx-2080-super", 1, 8192, 7373, 495.9, (7, 5)),
        ("nvidia-rtx-2080-super-r610", 1, 8192, 7582, 495.9, (7, 5)),
        ("nvidia-rtx-2080-super-windows-r591", 1, 8192, 7286, 495.9, (7, 5)),
        ("nvidia-rtx-2080-super-windows-r610", 1, 8192, 7191, 495.9, (7, 5)),
        ("nvidia-rtx-4080-super", 1, 16376, 14470, 736.3, (8, 9)),
        ("nvidia-rtx-4070", 1, 12282, 11852, 504.2, (8, 9)),
        ("nvidia-rtx-3060-raspberry-pi-cm5", 1, 12288, 12287, 360, (8, 6)),
        ("intel-battlemage-e211", 1, 24480, 24268, 456, None),
        ("amd-mi100", 4, 32752, 32745, 1229, None),
        ("amd-mi210", 1, 65520, 65520, 1638, None),
        ("amd-rx-6700-xt", 1, 12272, 10772, 384, None),
    ],
)
def test_cards(
    name: str,
    gpus: int,
    total_mib: int,
    free_mib: int,
    gigabytes_per_second: float,
    compute_capability: tuple[int, int] | None,
):
    machine = capture.machine(capture.ROOT / name)
    assert len(machine.gpus) == gpus
    for gpu in machine.gpus:
        assert gpu.total_bytes == total_mib * MIB
        free = machine.gpu_free_bytes(gpu)
        assert free is not None
        assert free // MIB == free_mib
        assert gpu.bandwidth_bytes_per_second == round(gigabytes_per_second * 10**9)
        assert gpu.compute_capability == compute_capability


def test_mig_slices_stand_for_their_card():
    machine = capture.machine(capture.ROOT / "nvidia-a100-80-mig")
    assert all(gpu.mig_enabled and gpu.parent_uuid for gpu in machine.gpus)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        # Two compute instances share the first slice: its memory counts once.
        ("nvidia-h200-mig", [71424, 33280, 16384, 16384]),
        ("nvidia-h100-mig-q", [40448, 20096, 9984, 9984]),
    ],
)
def test_a_slice_is_counted_once(name: str, sizes: list[int]):
    gpus = capture.machine(capture.ROOT / name).gpus
    assert [(gpu.total_bytes or 0) // MIB for gpu in gpus] == sizes
    assert all(gpu.mig_enabled for gpu in gpus)


def test_an_orin_of_the_old_driver_has_the_systems_memory():
    (gpu,) = capture.machine(capture.ROOT / "jetson-orin-nvgpu").gpus
    assert gpu.total_bytes is None
    assert gpu.unified is not None
    assert gpu.compute_capability == (8, 7)


def test_hardware_without_its_heading_is_a_mac_all_the_same():
    machine = capture.machine(capture.ROOT / "apple-m2-max-32")
    assert machine.cpu.model == "Apple M2 Max"
    assert machine.cpu.performance_cores == 8
    assert machine.gpus[0].bandwidth_bytes_per_second == 400 * 10**9


def test_wddm_hides_the_memory_of_processes_but_not_the_processes():
    (gpu,) = capture.machine(capture.ROOT / "nvidia-rtx-2080-windows").gpus
    assert gpu.driver_model == "WDDM"
    assert [process.used_bytes for process in gpu.processes] == [None, None, None, None]


@pytest.mark.parametrize("name", ["nvidia-dgx-spark", "nvidia-dgx-spark-csv", "jetson-agx-orin"])
def test_unified_nvidia_parts_have_the_systems_memory(name: str):
    (gpu,) = capture.machine(capture.ROOT / name).gpus
    assert gpu.total_bytes is None
    assert gpu.unified is not None
    assert gpu.unified.kind == "nvidia"
    host = capture.machine(capture.ROOT / "nvidia-dgx-gb10-cpu").memory
    machine = Machine(gpus=(gpu,), memory=host)
    assert machine.gpu_capacity_bytes(gpu) == 125508468 * 1024
    assert machine.gpu_free_bytes(gpu) == 121737812 * 1024


def test_strix_halo_counts_carve_out_and_gtt_from_kernel_6_10():
    machine = capture.machine(capture.ROOT / "strix-halo-128")
    (gpu,) = machine.gpus
    assert machine.gpu_capacity_bytes(gpu) == (4 + 96) * GIB
    old = capture.machine(capture.ROOT / "constructed-strix-halo-sysfs")
    assert old.gpu_capacity_bytes(old.gpus[0]) == 512 * MIB


@pytest.mark.parametrize(
    ("name", "gibibytes", "gigabytes_per_second", "performance_cores"),
    [
        ("apple-m1-air-8", 16 / 3, 68, 4),
        ("apple-m1-pro-16", 32 / 3, 200, 8),
        ("apple-m3-max-36", 24, 300, 10),
        ("apple-m4-max", 48, 546, 12),
    ],
)
def test_apple_working_set_and_bandwidth(
    name: str, gibibytes: float, gigabytes_per_second: int, performance_cores: int
):
    machine = capture.machine(capture.ROOT / name)
    (gpu,) = machine.gpus
    capacity = machine.gpu_capacity_bytes(gpu)
    assert capacity is not None
    assert capacity // MIB == int(gibibytes * 1024)
    assert gpu.bandwidth_bytes_per_second == gigabytes_per_second * 10**9
    assert machine.cpu.performance_cores == performance_cores


@pytest.mark.parametrize(
    ("name", "sockets", "physical", "performance", "logical"),
    [
        ("amd-2xepyc-7451", 2, 48, 48, 96),
        ("amd-opteron-6276", 4, 32, 32, 64),
        ("intel-i7-1370p", 1, 14, 6, 20),
        ("intel-8cpu", 1, 4, 4, 8),
        ("raspberry-pi-5", None, 4, 4, 4),
        ("nvidia-dgx-gb10-cpu", None, 20, 10, 20),
        ("arm-phone-x3-a715-a510", 1, 8, 5, 8),
        ("odroid-armv7-8cpu", None, 8, 4, 8),
        ("virtualbox-i5-3317u", 1, 2, 2, 2),
        ("apple-m2-pro-16", 1, 12, 8, 12),
    ],
)
def test_cores(name: str, sockets: int | None, physical: int, performance: int, logical: int):
    cpu = capture.machine(capture.ROOT / name).cpu
    assert cpu.sockets == sockets
    assert cpu.physical_cores == physical
    assert cpu.performance_cores == performance
    assert cpu.logical_cores == logical


def test_a_virtual_machine_is_not_promised_its_hosts_bandwidth():
    cpu = capture.machine(capture.ROOT / "virtualbox-i5-3317u").cpu
    assert cpu.virtual
    assert cpu.bandwidth_bytes_per_second is None


def test_memory_available_is_not_memory_free():
    """Without MemAvailable (kernels before 3.14) cache and buffers count as available."""
    memory = capture.machine(capture.ROOT / "linux-meminfo-no-available").memory
    assert memory.available_bytes is not None
    assert memory.total_bytes is not None
    assert memory.available_bytes > memory.total_bytes // 2
    assert "no MemAvailable" in memory.how["available_bytes"]


def test_windows_reads_the_registry_where_the_32_bit_field_saturates():
    (gpu,) = capture.machine(capture.ROOT / "constructed-windows-rx-7900-xtx").gpus
    assert gpu.total_bytes == 25753026560
    assert "qwMemorySize" in gpu.how["total_bytes"]
