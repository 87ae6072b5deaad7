"""Parsers never raise, whatever they are given; and the rules that no capture shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.facts.machine import Cgroup, Gpu, Machine, Memory, UnifiedMemory
from enginekit.hardware import amd, apple, cpu, intel, memory, nvidia, os_, windows
from enginekit.hardware._text import integer, loads, number, size
from enginekit.hardware.tables import apple_row, board_row, cpu_row, gpu_row, gpu_rows, normalised
from tests.hardware import capture

GIB = 1024**3
TEXTS = [
    file.read_text("utf-8")
    for file in sorted(capture.ROOT.rglob("*"))
    if file.is_file()
    and file.name not in ("SOURCE", "expected.json")
    and file.stat().st_size < 6000
]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A real capture with a piece cut out and another put in."""
    text = draw(st.sampled_from(TEXTS))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, len(text)))
    return text[:start] + draw(st.text(max_size=40)) + text[end:]


anything = st.one_of(st.text(max_size=400), damaged())
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "gpus", "gpu", "gpu_data", "static", "metric", "cards", "kfd", "card0", "asic", "vram",
                    "size", "value", "unit", "mem_usage", "devices", "device_list", "device_name", "name",
                    "total", "free", "mig_devices", "mig_mode", "processes", "pid", "bus", "VideoController",
                    "Registry", "Processor", "Memory", "Name", "AdapterRAM", "NumberOfCores", "index",
                    "mem_info_vram_total", "mem_info_gtt_total", "memory_clock_mhz", "bus_bits", "nvlinks",
                ]
            )
            | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)  # fmt: skip

PARSERS: list[Callable[[str], object]] = [
    nvidia.parse,
    amd.parse,
    intel.parse,
    windows.parse,
    cpu.parse,
    cpu.parse_cpuinfo,
    cpu.parse_lscpu,
    cpu.parse_sysctl,
    cpu.parse_cim,
    memory.parse,
    memory.parse_meminfo,
    memory.parse_vm_stat,
    memory.parse_cim,
    os_.parse_cim,
    os_.parse_macos,
    lambda text: apple.parse({"displays": text, "hardware": text, "sysctl": text, "metal": text}),
    lambda text: os_.parse({"os_release": text, "kernel": text, "cgroup": text, "cpuinfo": text}),
    lambda text: memory.parse_cgroup(text, text, lambda path: text),
    lambda text: nvidia.parse_proc({"a": text}),
    lambda text: amd.parse({"cards": {"card0": {"mem_info_vram_total": text, "uevent": text}}}),
]


@settings(max_examples=150, deadline=None)
@given(text=anything)
def test_no_parser_raises_on_any_text(text: str):
    for parser in PARSERS:
        parser(text)


@settings(max_examples=150, deadline=None)
@given(document=st.dictionaries(st.text(max_size=8), plain, max_size=3) | plain)
def test_no_parser_raises_on_any_document(document: Any):
    for parse in (
        nvidia.parse,
        amd.parse,
        intel.parse,
        windows.parse,
        cpu.parse_cim,
        memory.parse_cim,
    ):
        if isinstance(document, dict):
            parse(document)
    try:
        text = json.dumps(document)
    except ValueError:
        return
    for parse in (amd.parse, intel.parse, windows.parse, cpu.parse_cim, memory.parse_cim):
        parse(text)


@settings(max_examples=100, deadline=None)
@given(value=plain)
def test_numbers_are_found_or_none(value: Any):
    for found in (integer(value), size(value), number(value)):
        assert found is None or abs(found) < 2**62


def test_deeply_nested_input_does_not_overflow_the_stack():
    deep_xml = "<nvidia_smi_log><gpu>" + "<a>" * 3000 + "</a>" * 3000 + "</gpu></nvidia_smi_log>"
    nvidia.parse(deep_xml)
    assert loads("[" * 100_000) is None
    nvidia.parse("NVSMI LOG\nGPU 0\n" + "\n".join(" " * n + "key" for n in range(1, 3000)))


def test_an_entity_bomb_in_the_doctype_is_not_expanded():
    bomb = (
        '<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
        "<nvidia_smi_log><gpu><product_name>&b;</product_name></gpu></nvidia_smi_log>"
    )
    assert nvidia.parse(bomb) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24564 MiB", 24564 * 1024**2),
        ("16 GB", 16 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("8589934592", 8 * GIB),
        ("[N/A]", None),
        ("Not Supported", None),
        ("24564 parsecs", None),
        ("-5 MiB", None),
        (True, None),
    ],
)
def test_sizes(text: object, expected: int | None):
    assert size(text) == expected


def test_nvml_bandwidth_is_twice_the_memory_clock_times_the_bus():
    """An RTX 3090 reports 9751 MHz and 384 bit: 936 GB/s, without a table."""
    card = {
        "name": "NVIDIA Unheard Of",
        "total": 24 * GIB,
        "memory_clock_mhz": 9751,
        "bus_bits": 384,
    }
    (gpu,) = nvidia.parse({"gpus": [card]})
    assert gpu.bandwidth_bytes_per_second == 936_096_000_000
    assert "9751 MHz x 384 bit" in gpu.how["bandwidth_bytes_per_second"]


def test_nvlinks_count_before_pcie():
    card = {"name": "X", "nvlinks": 18, "nvlink_version": 4, "pcie_generation": 5, "pcie_width": 16}
    (gpu,) = nvidia.parse({"gpus": [card]})
    assert gpu.interconnect is not None
    assert (gpu.interconnect.kind, gpu.interconnect.bytes_per_second) == ("nvlink", 450 * 10**9)


def test_ats_without_a_size_is_unified_but_grace_hopper_with_hbm_is_not():
    (shared,) = nvidia.parse(
        {"gpus": [{"name": "NVIDIA N1X", "total": 0, "addressing_mode": "ATS"}]}
    )
    (own,) = nvidia.parse(
        {
            "gpus": [
                {"name": "NVIDIA GH200 480GB", "total": 97871 * 1024**2, "addressing_mode": "ATS"}
            ]
        }
    )
    assert shared.unified is not None
    assert own.unified is None
    assert own.bandwidth_bytes_per_second == 4000 * 10**9


@pytest.mark.parametrize(
    ("board", "bandwidth"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", 205),
        ("NVIDIA Jetson Orin Nano Developer Kit", 68),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 102),
        ("NVIDIA Jetson AGX Thor Developer Kit", 273),
    ],
)
def test_a_jetsons_board_names_what_its_driver_does_not(board: str, bandwidth: int):
    text = (capture.ROOT / "jetson-agx-orin" / "nvidia-smi.txt").read_text("utf-8")
    (gpu,) = nvidia.parse(text, board=board)
    assert gpu.bandwidth_bytes_per_second == bandwidth * 10**9


def test_an_unnamed_orin_is_given_no_bandwidth():
    assert board_row("Some Carrier Board") is None
    row = gpu_row("nvidia", "Orin (nvgpu)")
    assert row is not None
    assert (row.bandwidth, row.architecture) == (None, "8.7")


def test_amd_gpu_names_the_gfx_version_of_kfd():
    files = {
        "cards": {"card1": {"device": "0x744c", "mem_info_vram_total": str(24560 * 1024**2)}},
        "kfd": {"1": "simd_count 192\nsimd_per_cu 2\ngfx_target_version 110000\ndevice_id 29772"},
    }
    (gpu,) = amd.parse(files)
    assert (gpu.name, gpu.architecture, gpu.cores) == ("AMD Radeon RX 7900 XTX", "gfx1100", 96)
    assert gpu.unified is None
    assert gpu.bandwidth_bytes_per_second == 960 * 10**9


def test_amd_smi_megabytes_are_mebibytes():
    static = {
        "gpu": 0,
        "asic": {"market_name": "AMD Instinct MI300X"},
        "vram": {"size": {"value": 196592, "unit": "MB"}},
    }
    metric = {
        "gpu": 0,
        "mem_usage": {
            "total_vram": {"value": 196592, "unit": "MB"},
            "used_vram": {"value": 592, "unit": "MB"},
        },
    }
    for wrap in (lambda rows: rows, lambda rows: {"gpu_data": rows}):
        (gpu,) = amd.parse({"static": wrap([static]), "metric": wrap([metric])})
        assert gpu.total_bytes == 196592 * 1024**2
        assert gpu.free_bytes == 196000 * 1024**2
        assert gpu.bandwidth_bytes_per_second == 5300 * 10**9


def test_wired_limit_beats_metals_working_set():
    (gpu,) = apple.parse(
        {
            "sysctl": "hw.memsize: 137438953472\nmachdep.cpu.brand_string: Apple M3 Max\niogpu.wired_limit_mb: 114688\n",
            "metal": "103079215104\n",
            "displays": json.dumps(
                {"SPDisplaysDataType": [{"sppci_model": "Apple M3 Max", "sppci_cores": "40"}]}
            ),
        }
    )
    assert gpu.bandwidth_bytes_per_second == 400 * 10**9
    assert gpu.unified is not None
    assert gpu.unified.working_set_bytes == 96 * GIB
    machine = Machine(gpus=(gpu,), memory=Memory(total_bytes=128 * GIB, available_bytes=120 * GIB))
    assert machine.gpu_capacity_bytes(gpu) == 112 * GIB


def test_an_apu_never_counts_more_than_the_ram_there_is():
    """Adding 96 GiB of GTT to a 96 GiB carve-out on a 128 GiB machine must not give 192."""
    shared = UnifiedMemory(kind="amd-apu", carve_out_bytes=96 * GIB, gtt_bytes=96 * GIB)
    gpu = Gpu(index=0, vendor="amd", name="x", unified=shared)
    machine = Machine(gpus=(gpu,), memory=Memory(total_bytes=31 * GIB, available_bytes=28 * GIB))
    assert machine.gpu_capacity_bytes(gpu) == 127 * GIB
    assert machine.gpu_free_bytes(gpu) == 124 * GIB


def test_integrated_and_discrete_intel_devices_are_told_apart():
    names = {
        "Intel(R) UHD Graphics 770": True,
        "Intel(R) Iris(R) Xe Graphics": True,
        "Intel(R) Arc(TM) Graphics": True,
        "Intel(R) Arc(TM) 140V GPU": True,
        "Intel(R) Arc(TM) A770 Graphics": False,
        "Intel(R) Arc(TM) Pro B60 Graphics": False,
        "Intel(R) Data Center GPU Max 1550": False,
    }
    for name, shared in names.items():
        (gpu,) = intel.parse({"devices": [{"device_name": name}]})
        assert (gpu.unified is not None) is shared, name


def test_intel_sysfs_sums_the_tiles_and_knows_an_igpu_by_their_absence():
    cards = {
        "card0": {"device": "0x0bd5", "physical_vram_size_bytes": f"{64 * GIB} {64 * GIB}"},
        "card1": {"device": "0x7d55"},
    }
    discrete, integrated = intel.parse({"cards": cards})
    assert discrete.total_bytes == 128 * GIB
    assert integrated.unified is not None
    assert integrated.total_bytes is None


def test_wsl_containers_and_hypervisors_are_recognised():
    wsl = os_.parse({"kernel": "5.15.167.4-microsoft-standard-WSL2"})
    assert (wsl.wsl, wsl.hypervisor) == (2, "hyper-v")
    assert os_.parse({"kernel": "4.4.0-19041-Microsoft"}).wsl == 1
    assert os_.parse({}, {"WSL_DISTRO_NAME": "Ubuntu"}).wsl == 2
    pod = os_.parse({"cgroup": "0::/kubepods.slice/kubepods-burstable.slice/x"})
    assert pod.container == "kubernetes"
    assert os_.parse({"docker_env": "yes"}).container == "docker"
    assert os_.parse({"container_env": 'engine="podman-4.3.1"'}).container == "podman"
    assert os_.parse({"cgroup": "0::/init.scope"}).container == ""
    kvm = os_.parse({"vendor": "QEMU", "cpuinfo": "flags\t\t: fpu hypervisor avx2"})
    assert kvm.hypervisor == "kvm"


def test_an_x86_python_on_apple_silicon_is_said():
    assert os_.parse_macos("sysctl.proc_translated: 1\nhw.model: Mac14,6").rosetta
    assert not os_.parse_macos("sysctl.proc_translated: 0").rosetta


def test_huge_pages_are_what_a_unified_part_can_use_where_they_are_reserved():
    meminfo = "MemTotal: 127600748 kB\nMemAvailable: 20000000 kB\nHugePages_Total: 50000\nHugePages_Free: 40000\nHugepagesize: 2048 kB"
    found = memory.parse_meminfo(meminfo)
    gpu = Gpu(index=0, vendor="nvidia", name="NVIDIA GB10", unified=UnifiedMemory(kind="nvidia"))
    assert Machine(gpus=(gpu,), memory=found).gpu_free_bytes(gpu) == 40000 * 2048 * 1024


def test_usable_memory_is_the_smaller_of_host_and_group():
    group = Cgroup(version=2, limit_bytes=8 * GIB, current_bytes=3 * GIB, inactive_file_bytes=GIB)
    tight = Memory(total_bytes=64 * GIB, available_bytes=50 * GIB, cgroup=group)
    assert tight.usable_bytes == 6 * GIB
    assert tight.limit_bytes == 8 * GIB
    assert Memory(total_bytes=64 * GIB, available_bytes=50 * GIB).usable_bytes == 50 * GIB


@pytest.mark.parametrize("row", gpu_rows(), ids=lambda row: row.name)
def test_every_row_of_the_card_table_is_found_by_its_names(row: Any):
    assert row.source
    assert row.memory_bytes is None or row.memory_bytes >= GIB
    assert row.bandwidth is None or 10 * 10**9 <= row.bandwidth <= 10_000 * 10**9
    for match in row.matches:
        assert normalised(match) == match
        found = gpu_row(row.vendor, match, row.visible_bytes or row.memory_bytes)
        assert found is not None
        assert found.bandwidth == row.bandwidth or found.memory_bytes != row.memory_bytes
    if row.visible_bytes is not None:
        assert 0.9 * row.memory_bytes <= row.visible_bytes <= 1.07 * row.memory_bytes


def test_a_namesake_of_another_size_is_not_taken():
    assert gpu_row("nvidia", "NVIDIA GeForce RTX 3080", 12 * GIB).bandwidth == 912_400_000_000  # type: ignore[union-attr]
    assert gpu_row("nvidia", "NVIDIA GeForce RTX 4090", 40 * GIB) is None


def test_a_card_with_its_memory_doubled_keeps_its_bus():
    doubled = gpu_row("nvidia", "NVIDIA GeForce RTX 4090", 49140 * 2**20)
    assert doubled is not None
    assert doubled.bandwidth == 1_010_000_000_000
    assert gpu_row("nvidia", "NVIDIA GeForce RTX 4090 ...", 49140 * 2**20) is None


# The head as driver 610 writes it; NVIDIA's change log of nvidia-smi names the fields.
R610 = (
    "Driver Version : 610.57.04 [Deprecated; will be removed in CUDA 14.0. Use KMD Version instead]\n"
    "CUDA Version   : 13.3 [Deprecated; will be removed in CUDA 14.0. Use CUDA UMD Version instead]\n"
    "KMD Version    : 610.57.04\n"
    "CUDA UMD Version : 13.3\n"
)


@pytest.mark.parametrize("lines", [slice(0, 4), slice(0, 2), slice(2, 4)])
def test_the_versions_under_the_names_of_driver_610(lines: slice):
    head = R610.splitlines()[lines]
    log = "==============NVSMI LOG==============\n\n" + "\n".join(head)
    log += (
        "\n\nAttached GPUs : 1\nGPU 00000000:01:00.0\n    Product Name : NVIDIA GeForce RTX 5090\n"
    )
    tags = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in (
            (name.strip().lower().replace(" ", "_"), text.strip())
            for name, text in (line.split(" : ", 1) for line in head)
        )
    )
    xml = f"<nvidia_smi_log>{tags}<gpu id='1'><product_name>B200</product_name></gpu></nvidia_smi_log>"
    for source in (log, xml):
        (card,) = nvidia.parse(source)
        assert (card.driver_version, card.runtime_version) == ("610.57.04", "13.3")


def test_chip_and_processor_tables():
    assert apple_row("Apple M3 Max", 40).bandwidth == 400 * 10**9  # type: ignore[union-attr]
    assert apple_row("Apple M3 Max", None, 36 * GIB).bandwidth == 300 * 10**9  # type: ignore[union-attr]
    assert apple_row("Apple M9") is None
    bandwidths = {
        "AMD EPYC 9654 96-Core Processor": 460.8,
        "AMD EPYC 7742 64-Core Processor": 204.8,
        "Intel(R) Xeon(R) Platinum 8480+": 307.2,
        "13th Gen Intel(R) Core(TM) i9-13900K": 89.6,
        "AMD Ryzen 7 5800X 8-Core Processor": 51.2,
        "AMD RYZEN AI MAX+ 395 w/ Radeon 8060S": 256.0,
    }
    for model, expected in bandwidths.items():
        row = cpu_row(model)
        assert row is not None, model
        assert row.bandwidth == round(expected * 10**9), model
    assert cpu_row("") is None
