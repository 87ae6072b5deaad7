"""Machines by name, and machines from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.cli import main
from enginekit.errors import ConfigError
from enginekit.facts.machine import known_by
from enginekit.hardware import machine_from_dict, machine_from_file, preset, preset_names

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


def test_names_are_forgiving_about_case_and_spaces():
    assert preset(" RTX4090 ") == preset("rtx4090")
    assert preset("M3 Max 128") == preset("m3-max-128")


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
        ({"gpu": []}, "unknown field gpu; known here: name, gpus, cpu"),
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
