"""`CUDA_VISIBLE_DEVICES` and its cousins, as the runtimes read them."""

from __future__ import annotations

import pytest

from enginekit.facts.machine import Gpu, Vendor
from enginekit.hardware.visibility import marked


def cards(*names: str, vendor: Vendor = "nvidia") -> tuple[Gpu, ...]:
    return tuple(
        Gpu(index=n, vendor=vendor, name=name, uuid=f"GPU-{n}abc") for n, name in enumerate(names)
    )


def seen(gpus: tuple[Gpu, ...]) -> list[int]:
    return [gpu.index for gpu in gpus if gpu.visible]


FOUR = cards("A", "A", "A", "A")
MIXED = cards("A", "B")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("2", [2]),
        ("0, 3", [0, 3]),
        ("GPU-1", [1]),
        ("gpu-3abc,0", [0, 3]),
        ("1,9,0", [1]),
        ("1,1,0", [1]),
        ("nonsense", []),
        ("99999999999999999999", []),
        ("\u0662", []),
    ],
)
def test_a_list_ends_at_the_first_entry_that_names_nothing(value: str | None, expected: list[int]):
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert seen(marked(FOUR, environ)) == expected


def test_indices_of_different_cards_mean_nothing_without_the_bus_order():
    """CUDA counts the fastest card first, NVML does not: 0 may be either."""
    assert seen(marked(MIXED, {"CUDA_VISIBLE_DEVICES": "0"})) == [0, 1]
    ordered = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert seen(marked(MIXED, ordered)) == [0]
    assert seen(marked(MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-1abc"})) == [1]


def test_amd_applies_both_variables_one_after_the_other():
    """HIP counts within what ROCR left."""
    both = {"ROCR_VISIBLE_DEVICES": "1,2,3", "HIP_VISIBLE_DEVICES": "0,2"}
    assert seen(marked(cards("A", "A", "A", "A", vendor="amd"), both)) == [1, 3]


def test_other_vendors_are_left_alone_and_the_reason_is_kept():
    mixed = (*cards("A"), *cards("B", vendor="amd"))
    nvidia, amd = marked(mixed, {"CUDA_VISIBLE_DEVICES": "-1"})
    assert not nvidia.visible
    assert nvidia.how["visible"] == "CUDA_VISIBLE_DEVICES=-1"
    assert amd.visible


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("NoDevFiles", []),
        ("MIG-3abc", []),
        ("GPU-2abc,GPU-2abc", [2]),
        (",0", []),
        ("0,", [0]),
        ("0 ", [0]),
        ("+1", []),
        ("0x1", []),
    ],
)
def test_odd_lists_of_cuda(value: str, expected: list[int]):
    assert seen(marked(FOUR, {"CUDA_VISIBLE_DEVICES": value})) == expected


def test_a_mig_slice_is_named_by_its_own_uuid():
    slices = tuple(
        Gpu(index=0, vendor="nvidia", name="A100", uuid=f"MIG-{n}-ef", mig_profile="3g.40gb")
        for n in range(2)
    )
    found = marked(slices, {"CUDA_VISIBLE_DEVICES": "MIG-1-ef"})
    assert [gpu.visible for gpu in found] == [False, True]


def test_hip_reads_the_variable_of_cuda_where_it_has_none_of_its_own():
    amd = cards("A", "A", vendor="amd")
    assert seen(marked(amd, {"CUDA_VISIBLE_DEVICES": "1"})) == [1]
    assert seen(marked(amd, {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"})) == [0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("level_zero:1", [1]),
        ("level_zero:0,2", [0, 2]),
        ("LEVEL_ZERO:GPU", [0, 1, 2]),
        ("*:gpu", [0, 1, 2]),
        ("*:*", [0, 1, 2]),
        ("level_zero:0.1", [0]),
        ("level_zero:*;!level_zero:0", [1, 2]),
        ("!level_zero:0", [1, 2]),
        ("*:cpu", []),
        ("opencl:0", []),
        ("opencl:*;level_zero:2", [2]),
        ("level_zero:9", []),
        # What cannot be read hides nothing.
        ("", [0, 1, 2]),
        ("nonsense", [0, 1, 2]),
        ("level_zero:first", [0, 1, 2]),
    ],
)
def test_what_a_selector_of_oneapi_leaves(value: str, expected: list[int]):
    arcs = cards("Arc", "Arc", "Arc", vendor="intel")
    assert seen(marked(arcs, {"ONEAPI_DEVICE_SELECTOR": value})) == expected
