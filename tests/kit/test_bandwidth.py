"""The memory bandwidth that no table knows is measured, remembered, and never stands in the way."""

from __future__ import annotations

import json
import threading

import pytest

from enginekit.facts.machine import Cpu, Machine, Memory
from enginekit.hardware import cpu as processors
from enginekit.hardware.detection import measured
from enginekit.kit import bandwidth
from enginekit.kit.bandwidth import MOST_ROUNDS, ROUNDS, with_bandwidth
from enginekit.kit.planning import plan

GIB = 2**30
VIRTUAL = Machine(
    cpu=Cpu(model="AMD EPYC", usable_cores=2.0, physical_cores=2, isa=("avx2",)),
    memory=Memory(total_bytes=16 * GIB, available_bytes=8 * GIB),
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINEKIT_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def rates(monkeypatch):
    """What measuring will say, in turn."""
    coming = [9_000_000_000, 20_000_000_000, 14_000_000_000, 99_000_000_000]
    monkeypatch.setattr(
        processors, "measure_bandwidth", lambda **_: processors.Copied(coming.pop(0))
    )
    return coming


def test_the_best_of_the_first_measurements_is_kept(rates, folder):
    found = [with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second for _ in range(ROUNDS + 2)]
    assert [rate // 10**9 for rate in found] == [9, 20, 20, 20, 20]
    assert len(rates) == 1  # the last was never asked for
    assert json.loads((folder / "bandwidth.json").read_text("utf-8"))
    how = with_bandwidth(VIRTUAL).cpu.how
    assert how["bandwidth_bytes_per_second"] == "measured by copying; best of 3"


def _shares(monkeypatch, *shares):
    coming = [processors.Copied(10**9 * (n + 1), share) for n, share in enumerate(shares)]
    monkeypatch.setattr(processors, "measure_bandwidth", lambda **_: coming.pop(0))
    return coming


def test_what_other_programs_disturbed_is_used_but_measured_again(monkeypatch):
    left = _shares(monkeypatch, 0.5, 0.89, 0.95, 1.0, 0.9, 1.0)
    found = [with_bandwidth(VIRTUAL).cpu for _ in range(5)]
    assert [cpu.bandwidth_bytes_per_second // 10**9 for cpu in found] == [1, 2, 3, 4, 5]
    said = [cpu.how["bandwidth_bytes_per_second"] for cpu in found]
    assert said[1] == "measured by copying; best of 2, all while other programs computed"
    assert said[2] == "measured by copying; best of 3"
    assert with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second == 5 * 10**9
    assert len(left) == 1  # three were undisturbed


def test_a_computer_that_is_always_busy_is_not_measured_for_ever(monkeypatch):
    left = _shares(monkeypatch, *[0.5] * (MOST_ROUNDS + 1))
    for _ in range(MOST_ROUNDS + 2):
        found = with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second
    assert found == MOST_ROUNDS * 10**9
    assert len(left) == 1


def test_rates_per_processor_second_of_earlier_versions_are_forgotten(rates, folder):
    (folder / "bandwidth.json").write_text('{"AMD EPYC, 2.0 threads": [65700000000]}', "utf-8")
    assert with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second == 9_000_000_000


def test_a_plan_for_such_a_computer_says_how_fast(rates):
    told = plan("smollm2-135m", hardware=VIRTUAL, context=2048).speed.decode
    known = plan("smollm2-135m", hardware=with_bandwidth(VIRTUAL), context=2048).speed.decode
    assert told is None
    assert known is not None
    assert known.low < known.expected < known.high


def test_what_is_known_is_not_measured(monkeypatch):
    monkeypatch.setattr(processors, "measure_bandwidth", lambda **_: pytest.fail("measured"))
    told = Machine(cpu=Cpu(model="x", bandwidth_bytes_per_second=5), memory=VIRTUAL.memory)
    assert with_bandwidth(told) is told


@pytest.mark.parametrize("text", ["", "[]", "{", '{"AMD EPYC, 2.0 threads": "fast"}', "[" * 9999])
def test_a_damaged_file_counts_as_none(rates, folder, text):
    (folder / "bandwidth.json").write_text(text, "utf-8")
    assert with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second == 9_000_000_000
    assert with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second == 20_000_000_000


def test_a_folder_that_cannot_be_written_only_means_that_nothing_is_kept(rates, folder):
    (folder / "file").write_text("", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEKIT_CACHE_DIR", str(folder / "file" / "below"))
        assert with_bandwidth(VIRTUAL).cpu.bandwidth_bytes_per_second == 9_000_000_000
        assert bandwidth._remembered() == {}


def test_measuring_takes_a_quarter_of_what_is_free_at_most():
    little = Memory(total_bytes=GIB, available_bytes=GIB // 4)
    assert measured(VIRTUAL.cpu, little).bandwidth_bytes_per_second is None
    assert measured(VIRTUAL.cpu, Memory()).bandwidth_bytes_per_second is None
    assert processors.measure_bandwidth(room=127 * 2**20) is None


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_computer_without_memory_or_threads_is_left_unmeasured(monkeypatch, error):
    def refuse(*_args, **_named):
        raise error

    where = (threading.Thread, "start") if error is RuntimeError else (
        processors.ctypes, "create_string_buffer"
    )  # fmt: skip
    monkeypatch.setattr(*where, refuse)
    assert measured(VIRTUAL.cpu, VIRTUAL.memory) == VIRTUAL.cpu
