"""Machines by name, and machines from a file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.cli import main
from enginekit.errors import ConfigError
from enginekit.facts.machine import known_by
from enginekit.hardware import (
    machine_from_dict,
    machine_from_file,
    preset,
    preset_names,
    presets,
)
from enginekit.kit import planning

GIB = 1024**3
NAMES = preset_names()
ASKED_FOR = [
    "rtx4090",
    "4xrtx4090",
    "rtx3060-12",
    "rtx5090",
    "m1-8",
    "m3-max-128",
    "m4-pro-48",
    "m2-ultra-192",
    "8xh100",
    "h200",
    "8xb200",
    "mi300x",
    "8xmi300x",
    "raspberry-pi-5",
    "raspberry-pi-4",
    "jetson-orin-nano",
    "gb10",
    "strix-halo-128",
    "laptop-16",
    "cpu-64",
]


def test_there_are_at_least_30():
    assert len(NAMES) >= 30


@pytest.mark.parametrize("name", [*NAMES, *ASKED_FOR, "16xh200", "2x8xh100"])
def test_each_preset_is_complete_and_survives_a_file(name: str):
    machine = preset(name)
    assert machine.memory.total_bytes
    assert known_by(machine.memory, "total_bytes").startswith("preset ")
    assert machine.cpu.physical_cores
    for gpu in machine.gpus:
        free, capacity = machine.gpu_free_bytes(gpu), machine.gpu_capacity_bytes(gpu)
        assert free is not None
        assert capacity is not None
        assert GIB <= free <= capacity <= 600 * GIB
        assert gpu.bandwidth_bytes_per_second
        assert known_by(gpu, "bandwidth_bytes_per_second").startswith("table: ")
        if gpu.vendor == "nvidia":
            assert gpu.compute_capability is not None
    assert [gpu.index for gpu in machine.gpus] == list(range(len(machine.gpus)))
    assert machine_from_dict(json.loads(json.dumps(machine.to_dict()))) == machine


@pytest.mark.parametrize(
    ("name", "count", "gibibytes", "gigabytes_per_second"),
    [
        ("rtx4090", 1, 24564 / 1024, 1010),
        ("4xrtx4090", 4, 24564 / 1024, 1010),
        ("8xh100", 8, 81559 / 1024, 3350),
        ("2x8xh100", 16, 81559 / 1024, 3350),
        ("m1-8", 1, 16 / 3, 68),
        ("m3-max-128", 1, 96, 400),
        ("m2-ultra-192", 1, 144, 800),
        ("8xmi300x", 8, 196592 / 1024, 5300),
        ("gb10", 1, 121.69, 273),
        ("strix-halo-128", 1, 63.05, 256),
        ("raspberry-pi-5", 0, None, None),
    ],
)
def test_what_a_preset_offers(
    name: str, count: int, gibibytes: float | None, gigabytes_per_second: int | None
):
    machine = preset(name)
    assert len(machine.gpus) == count
    for gpu in machine.gpus:
        capacity = machine.gpu_capacity_bytes(gpu)
        assert capacity is not None
        assert capacity / GIB == pytest.approx(gibibytes, abs=0.01)
        assert gpu.bandwidth_bytes_per_second == (gigabytes_per_second or 0) * 10**9


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (" RTX4090 ", "rtx4090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("rtx_5060_ti_16", "rtx5060ti-16"),
        ("RTX 3060", "rtx3060-12"),
        ("RTX PRO 6000", "rtx-pro-6000"),
        ("Radeon RX 7900 XTX", "rx7900xtx"),
        ("2x RTX 3090", "2xrtx3090"),
        ("8 x H100", "8xh100"),
        ("v100", "v100-16"),
        ("A100 80GB", "a100-80"),
        ("MI250", "mi250x"),
        ("DGX Spark", "gb10"),
        ("dgx-h100", "8xh100"),
        ("Strix Halo", "strix-halo-128"),
        ("Arc B580", "arc-b580"),
        ("M3 Max 128", "m3-max-128"),
        ("Apple M4 Pro 48", "m4-pro-48"),
        ("Mac Studio", "m3-ultra-96"),
        ("Raspberry Pi 5 8", "raspberry-pi-5"),
        ("Jetson AGX Orin", "jetson-agx-orin-64"),
        ("Standard_NC24ads_A100_v4", "standard_nc24ads_a100_v4"),
    ],
)
def test_names_are_forgiving(written: str, meant: str):
    assert preset(written) == preset(meant)


def test_every_spelling_means_one_machine():
    rows = presets._rows()
    spellings = [presets._squeezed(name) for name in rows]
    spellings += [
        presets._squeezed(other)
        for row in rows.values()
        for other in row["aliases"].split(";")
        if other
    ]
    assert len(spellings) == len(set(spellings))


# From the vendors' data sheets, not from our table: GB as marketed, GB/s, compute capability.
@pytest.mark.parametrize(
    ("name", "gigabytes", "bandwidth", "capability"),
    [
        ("rtx3060-12", 12, 360, (8, 6)),
        ("rtx3090", 24, 936, (8, 6)),
        ("rtx4060ti-16", 16, 288, (8, 9)),
        ("rtx4090", 24, 1008, (8, 9)),
        ("rtx5060ti-16", 16, 448, (12, 0)),
        ("rtx5070ti", 16, 896, (12, 0)),
        ("rtx5080", 16, 960, (12, 0)),
        ("rtx5090", 32, 1792, (12, 0)),
        ("rtx-pro-6000", 96, 1792, (12, 0)),
        ("t4", 16, 320, (7, 5)),
        ("v100-16", 16, 900, (7, 0)),
        ("a10g", 24, 600, (8, 6)),
        ("l4", 24, 300, (8, 9)),
        ("l40s", 48, 864, (8, 9)),
        ("a100-40", 40, 1555, (8, 0)),
        ("a100-80", 80, 2039, (8, 0)),
        ("h100", 80, 3350, (9, 0)),
        ("h100-nvl", 94, 3938, (9, 0)),
        ("h200", 141, 4800, (9, 0)),
        ("b200", 180, 7700, (10, 0)),
        ("b300", 268, 7750, (10, 3)),
        ("mi210", 64, 1638, None),
        ("mi300x", 192, 5300, None),
        ("mi325x", 256, 6000, None),
        ("mi355x", 288, 8000, None),
        ("rx7900xtx", 24, 960, None),
        ("rx9070xt", 16, 640, None),
        ("arc-b580", 12, 456, None),
        ("arc-a770-16", 16, 560, None),
    ],
)
def test_cards_are_those_of_the_data_sheets(
    name: str, gigabytes: int, bandwidth: int, capability: tuple[int, int] | None
):
    (gpu,) = preset(name).gpus
    assert gpu.total_bytes is not None
    assert gpu.bandwidth_bytes_per_second is not None
    # Drivers keep up to 7 per cent of GDDR with ECC on; HBM sheets count GB, drivers GiB.
    assert 0.93 * gigabytes * GIB <= gpu.total_bytes <= 1.003 * gigabytes * GIB
    assert gpu.bandwidth_bytes_per_second == pytest.approx(bandwidth * 10**9, rel=0.01)
    assert gpu.compute_capability == capability


@pytest.mark.parametrize(
    ("name", "count", "card", "ram", "threads"),
    [
        ("g5.xlarge", 1, "A10G", 16, 4),
        ("g6.12xlarge", 4, "L4", 192, 48),
        ("p4d.24xlarge", 8, "A100", 1152, 96),
        ("p5.48xlarge", 8, "H100", 2048, 192),
        ("Standard_NC24ads_A100_v4", 1, "A100", 220, 24),
        ("a2-highgpu-1g", 1, "A100", 85, 12),
        ("g2-standard-4", 1, "L4", 16, 4),
    ],
)
def test_machines_of_the_clouds(name: str, count: int, card: str, ram: int, threads: int):
    machine = preset(name)
    assert len(machine.gpus) == count
    assert all(card in gpu.name for gpu in machine.gpus)
    assert machine.memory.total_bytes == ram * GIB
    assert machine.cpu.logical_cores == threads
    # A part of a processor has a part of its bandwidth.
    assert (machine.cpu.bandwidth_bytes_per_second or 0) <= threads * 5 * 10**9
    assert "of it" in known_by(machine.cpu, "bandwidth_bytes_per_second")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtx409", "near: rtx4090"),
        ("4xrtx409", "near: rtx4090"),
        ("2xm3-max-128", "shares its memory"),
        ("2xraspberry-pi-5", "has no GPU"),
        ("0xrtx4090", "from 1 to 1024"),
        ("999999xrtx4090", "from 1 to 1024"),
        ("", "no hardware preset"),
        ("x" * 500, "no hardware preset"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name: str, said: str):
    with pytest.raises(ConfigError, match=said):
        preset(name)


def test_a_toml_file_in_plain_units(tmp_path: Path):
    file = tmp_path / "server.toml"
    file.write_text(
        """
        name = "my next server"

        [[gpus]]
        vendor = "nvidia"
        name = "NVIDIA L40S"
        total_bytes = "46068 MiB"
        count = 2

        [cpu]
        physical_cores = 32
        bandwidth_bytes_per_second = "460.8 GB/s"

        [memory]
        total_bytes = "256 GiB"

        [memory.cgroup]
        version = 2
        limit_bytes = 64_000_000_000
        """
    )
    machine = machine_from_file(file)
    assert machine.name == "my next server"
    assert [gpu.index for gpu in machine.gpus] == [0, 1]
    assert machine.gpus[1].total_bytes == 46068 * 1024**2
    assert machine.gpus[1].bandwidth_bytes_per_second == 864 * 10**9
    assert machine.gpus[1].compute_capability == (8, 9)
    assert machine.gpus[1].how["bandwidth_bytes_per_second"] == "table: L40S"
    assert known_by(machine.gpus[1], "total_bytes") == str(file)
    assert machine.cpu.bandwidth_bytes_per_second == 460_800_000_000
    assert machine.memory.usable_bytes == 64 * 10**9


def test_a_json_file_written_by_to_dict_is_read_back(tmp_path: Path):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(preset("8xmi300x").to_dict()))
    assert machine_from_file(file) == preset("8xmi300x")


def test_gib_and_gb_are_not_the_same():
    machine = machine_from_dict({"memory": {"total_bytes": "64 GB", "swap_total_bytes": "64 GiB"}})
    assert machine.memory.total_bytes == 64 * 10**9
    assert machine.memory.swap_total_bytes == 64 * 2**30


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "must be a table of machine facts"),
        ({"gpu": []}, "unknown field gpu; did you mean gpus. Known here: name, gpus, cpu"),
        ({"gpus": {}}, "gpus must be a list of tables"),
        ({"gpus": ["rtx4090"]}, r"gpus\[0\] must be a table"),
        ({"gpus": [{"name": "x"}]}, r"gpus\[0\].vendor is missing"),
        ({"gpus": [{"vendor": "amd", "name": "x"}, {"vendor": "voodoo", "name": "x"}]}, r"gpus\[1\].vendor must be one of nvidia, amd"),
        ({"gpus": [{"vendor": "amd", "name": 5}]}, r"gpus\[0\].name must be a text, not 5"),
        ({"gpus": [{"vendor": "amd", "name": "x", "total_bytes": -1}]}, r"gpus\[0\].total_bytes must be a whole number of bytes or a text like 24 GiB, not -1"),
        ({"gpus": [{"vendor": "amd", "name": "x", "total_bytes": "24 parsecs"}]}, r"gpus\[0\].total_bytes"),
        ({"gpus": [{"vendor": "amd", "name": "x", "total_bytes": True}]}, r"gpus\[0\].total_bytes"),
        ({"gpus": [{"vendor": "amd", "name": "x", "total_bytes": 2**80}]}, r"gpus\[0\].total_bytes"),
        ({"gpus": [{"vendor": "nvidia", "name": "x", "compute_capability": [8]}]}, r"compute_capability must be a list of 2"),
        ({"gpus": [{"vendor": "amd", "name": "x", "count": 0}]}, r"gpus\[0\].count must be a number from 1 to 1024"),
        ({"gpus": [{"vendor": "amd", "name": "x", "count": 1024}] * 2}, "at most 1024 devices"),
        ({"gpus": [{"vendor": "amd", "name": "x", "unified": {"kind": "apple", "gtt": 1}}]}, r"unknown field gpus\[0\].unified.gtt"),
        ({"cpu": {"isa": "avx2"}}, "cpu.isa must be a list"),
        ({"cpu": {"usable_cores": "4"}}, "cpu.usable_cores must be a number"),
        ({"cpu": {"virtual": 1}}, "cpu.virtual must be true or false"),
        ({"memory": {"cgroup": {"version": 3}}}, "memory.cgroup.version must be one of 1, 2"),
        ({"memory": {"how": 3}}, "memory.how must be a table of texts"),
        ({"os": {"wsl": True}}, "os.wsl must be one of 0, 1, 2"),
    ],
)  # fmt: skip
def test_bad_input_names_the_field(document: Any, said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        machine_from_dict(document, origin="server.toml")
    assert str(caught.value).startswith("server.toml: ")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", b"gpus = [", "not valid TOML"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"\xff\xfe", "not valid JSON"),
        ("a.json", b"[" * 50_000, "not valid JSON"),
        ("a.json", b" " * (5 * 1024 * 1024), "larger than 4 MiB"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, said: str):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        machine_from_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd here")
def test_a_description_from_a_pipe_is_not_named_by_its_number() -> None:
    """`--hardware <(enginekit doctor --json)` is read from /dev/fd/63."""
    document = preset("rtx4090").to_dict() | {"name": ""}
    reading, writing = os.pipe()
    try:
        os.write(writing, json.dumps(document).encode())
        os.close(writing)
        assert machine_from_file(f"/dev/fd/{reading}").name == "the machine described"
    finally:
        os.close(reading)


@pytest.mark.parametrize(("name", "tflops"), [("rtx3070ti", 43.5), ("rtx3080ti", 68.2)])
def test_cards_of_the_ampere_refresh_have_a_rate(name: str, tflops: float) -> None:
    """Tensor cores x 128 x boost clock x 2: 192 at 1770 MHz, 320 at 1665."""
    assert preset(name).gpus[0].fp16_flops_per_second == pytest.approx(tflops * 10**12)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        machine_from_file(tmp_path / "none.json")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["gpus", "cpu", "memory", "os", "vendor", "name", "total_bytes", "unified", "cgroup", "how", "isa", "kind", "version"])
        | st.text(max_size=5),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(document=documents)
def test_any_document_gives_a_machine_or_a_config_error(document: Any):
    try:
        machine = machine_from_dict(document)
    except ConfigError:
        return
    assert machine_from_dict(machine.to_dict()) == machine


def test_a_file_without_any_memory_is_no_machine(tmp_path: Path) -> None:
    """Else every model "does not fit" on a computer that nobody described."""
    file = tmp_path / "box.toml"
    file.write_text('name = "mybox"')
    with pytest.raises(ConfigError, match="total_bytes is missing"):
        machine_from_file(file)


def test_what_doctor_printed_on_one_computer_is_planned_for_on_another(tmp_path, capsys) -> None:
    assert main(["doctor", "--hardware", "2xrtx3090", "--json"]) == 0
    file = tmp_path / "box.json"
    file.write_text(capsys.readouterr().out)
    assert machine_from_file(file) == preset("2xrtx3090")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_file_that_windows_redirected_is_read(tmp_path: Path, encoding: str):
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(preset("rtx4090").to_dict()), encoding=encoding)
    assert machine_from_file(file) == preset("rtx4090")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"gpus": [{"vendor": "nvidia", "name": "RTX 4090"}]}', "memory.total_bytes is missing"),
        ('{"memory": {}}', "memory.total_bytes is missing"),
        ('{"gpus": [{"vendor": "nvidia", "name": "Voodoo 3"}], "memory": {"total_bytes": "64 GiB"}}', r"gpus\[0\].total_bytes is missing, and of 'Voodoo 3' no table knows"),
        ('{"gpus": [{"vendor": "nvidia", "name": "A100 PCIe"}], "memory": {"total_bytes": "64 GiB"}}', r"gpus\[0\].total_bytes is missing.*have 40 or 80 GiB"),
        ('{"gpus": [{"vendor": "nvidia", "name": "x", "total_bytes": 0}], "memory": {"total_bytes": "64 GiB"}}', r"gpus\[0\].total_bytes is 0 bytes"),
        ('{"memory": {"total_bytes": 64}}', "memory.total_bytes is 64 bytes, which no device has"),
        ('{"memory": {"total_bytes": "64 GiB", "available_bytes": "65 GiB"}}', "memory.available_bytes is 65.00 GiB, more than"),
        ('{"gpus": [{"vendor": "amd", "name": "x", "total_bytes": "8 GiB", "free_bytes": "9 GiB"}], "memory": {"total_bytes": "64 GiB"}}', r"gpus\[0\].free_bytes is 9.00 GiB"),
        ('{"gpus": [{"vendor": "amd", "name": "x", "index": 0, "total_bytes": "8 GiB"}, {"vendor": "amd", "name": "x", "index": 0, "total_bytes": "8 GiB"}], "memory": {"total_bytes": "64 GiB"}}', r"gpus\[1\].index is 0, which an earlier amd GPU has"),
        ('{"memory": {"total_bytes": "64 GiB"}, "memory": {}}', "the key 'memory' occurs twice"),
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"memory": {"ram": "64 GiB"}}', "unknown field memory.ram"),
        ('{"gpus": [{"vendor": "amd", "name": "x", "indx": 0}]}', "did you mean index"),
        ('{"gpus": [{"vendor": "amd", "name": "x", "vram": "8 GiB"}]}', "did you mean total_bytes"),
        ('{"gpu": []}', "did you mean gpus"),
    ],
)  # fmt: skip
def test_a_file_that_leaves_out_or_mistakes_a_size_is_no_machine(
    tmp_path: Path, content: str, said: str
):
    """A plan for "0 bytes", or without the GPU that was meant, would look like an answer."""
    file = tmp_path / "box.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        machine_from_file(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_yaml_is_said_not_to_be_read(tmp_path: Path):
    file = tmp_path / "box.yaml"
    file.write_text("gpus: []")
    with pytest.raises(ConfigError, match="YAML is not read"):
        machine_from_file(file)


@pytest.mark.parametrize(
    ("gpu", "expected", "how"),
    [
        (
            {"vendor": "nvidia", "name": "RTX 4090"},
            preset("rtx4090").gpus[0].total_bytes,
            "table: GeForce RTX 4090",
        ),
        (
            {"vendor": "nvidia", "name": "NVIDIA A100 80GB PCIe"},
            81920 * 2**20,
            "table: A100 PCIe 80 GB",
        ),
    ],
)
def test_a_card_of_one_size_needs_none(
    tmp_path: Path, gpu: dict[str, str], expected: int, how: str
):
    file = tmp_path / "box.json"
    file.write_text(json.dumps({"gpus": [gpu], "memory": {"total_bytes": "64 GiB"}}))
    machine = machine_from_file(file)
    assert machine.gpus[0].total_bytes == expected
    assert machine.gpus[0].how["total_bytes"].startswith(how)
    assert machine.name == "box.json"


def test_parts_that_share_memory_get_what_their_system_lends_by_default(tmp_path: Path):
    file = tmp_path / "box.json"
    for gpu, share in (
        ({"vendor": "apple", "name": "Apple M3 Max"}, 3 / 4),
        ({"vendor": "amd", "name": "Radeon 8060S", "unified": {"kind": "amd-apu"}}, 1 / 2),
    ):
        file.write_text(json.dumps({"gpus": [gpu], "memory": {"total_bytes": "128 GiB"}}))
        machine = machine_from_file(file)
        assert machine.gpu_capacity_bytes(machine.gpus[0]) == int(share * 128 * 2**30)


def test_what_probes_could_not_read_is_left_out_of_plans_with_that_reason(tmp_path: Path):
    """Another computer's `doctor --json` is taken as it is, a GPU without a size too."""
    document = {
        "machine": {
            "gpus": [{"index": 0, "vendor": "nvidia", "name": "Voodoo 3"}],
            "memory": {"total_bytes": 64 * 2**30},
            "probes": [{"name": "nvidia", "outcome": "ok", "detail": "1 device"}],
        },
        "engines": [],
    }
    file = tmp_path / "box.json"
    file.write_text(json.dumps(document))
    machine = machine_from_file(file)
    assert machine.gpus[0].total_bytes is None
    made = planning.plan("qwen3-8b", hardware=machine)
    assert made.where == "CPU"
    assert "Voodoo 3: how much memory it has is not known" in made.notes


@pytest.mark.parametrize(
    ("name", "said"),
    [("/no/such/box", "No such file"), (".", "no hardware preset|Is a directory"), ("x" * 5000, "no hardware preset"), ("a\0b", "no hardware preset")],
)  # fmt: skip
def test_any_text_as_hardware_is_a_machine_or_an_error_of_ours(name: str, said: str):
    with pytest.raises(ConfigError, match=said):
        planning.machine_of(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_machine_may_come_through_a_pipe(tmp_path: Path):
    """`--hardware <(ssh box enginekit doctor --json)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = json.dumps({"machine": preset("rtx4090").to_dict()})
    writer = threading.Thread(target=pipe.write_text, args=(content,), daemon=True)
    writer.start()
    assert planning.machine_of(str(pipe)) == preset("rtx4090")
    writer.join()
