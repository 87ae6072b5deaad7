"""Control groups, as the kernel lays them out: version 1, version 2, both, nested, in containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginekit.facts.machine import Cgroup
from enginekit.hardware import memory
from enginekit.hardware._look import Look

GIB = 1024**3
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, files: dict[str, str]) -> Look:
    for path, content in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return Look(root=root)


def read(root: Path, files: dict[str, str]) -> Cgroup:
    found = memory.read_cgroup(tree(root, files))
    assert found is not None
    return found


def test_version_2_the_tightest_ancestor_counts(tmp_path: Path):
    """A service without a limit inside a slice of 8 GiB has 8 GiB, less what the slice uses."""
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "0::/batch.slice/job.service\n",
            "/proc/self/mountinfo": V2_MOUNT,
            "/sys/fs/cgroup/cgroup.controllers": "cpu memory",
            "/sys/fs/cgroup/batch.slice/memory.max": str(8 * GIB),
            "/sys/fs/cgroup/batch.slice/memory.high": "max",
            "/sys/fs/cgroup/batch.slice/memory.current": str(5 * GIB),
            "/sys/fs/cgroup/batch.slice/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 3\n",
            "/sys/fs/cgroup/batch.slice/job.service/memory.max": "max",
            "/sys/fs/cgroup/batch.slice/job.service/memory.current": str(GIB),
            "/sys/fs/cgroup/batch.slice/job.service/memory.swap.max": "0",
            "/sys/fs/cgroup/batch.slice/job.service/cpu.max": "150000 100000",
            "/sys/fs/cgroup/batch.slice/cpu.max": "max 100000",
        },
    )
    assert found == Cgroup(
        version=2,
        path="/batch.slice",
        limit_bytes=8 * GIB,
        current_bytes=5 * GIB,
        inactive_file_bytes=2 * GIB,
        swap_limit_bytes=0,
        cpu_quota=1.5,
    )
    assert found.free_bytes == 5 * GIB


def test_version_2_memory_high_throttles_before_memory_max_kills(tmp_path: Path):
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "0::/a\n",
            "/sys/fs/cgroup/a/memory.max": str(8 * GIB),
            "/sys/fs/cgroup/a/memory.high": str(6 * GIB),
            "/sys/fs/cgroup/a/memory.current": "0",
        },
    )
    assert found.limit_bytes == 6 * GIB


def test_version_2_in_a_container_the_group_is_the_mounts_root(tmp_path: Path):
    """With its own cgroup namespace a container sees `0::/`, and the limit in the root's files."""
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": V2_MOUNT,
            "/sys/fs/cgroup/memory.max": str(2 * GIB),
            "/sys/fs/cgroup/memory.current": str(GIB),
        },
    )
    assert (found.limit_bytes, found.free_bytes) == (2 * GIB, GIB)


def test_version_2_a_path_outside_of_the_mount_falls_back_to_its_root(tmp_path: Path):
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "0::/../../other\n",
            "/sys/fs/cgroup/memory.max": str(3 * GIB),
            "/sys/fs/cgroup/memory.current": "0",
        },
    )
    assert found.limit_bytes == 3 * GIB


def test_no_limit_anywhere_is_none_and_not_a_number(tmp_path: Path):
    found = read(
        tmp_path,
        {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cgroup.controllers": "memory"},
    )
    assert found.limit_bytes is None
    assert found.free_bytes is None


def test_version_1_in_docker_without_a_cgroup_namespace(tmp_path: Path):
    """The path names the host's tree, the mount shows only the container's part of it."""
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/system.slice\n",
            "/proc/self/mountinfo": (
                "40 33 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
                "41 33 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
            ),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
            "/sys/fs/cgroup/memory/memory.stat": f"cache 9\ninactive_file 7\ntotal_inactive_file {GIB}\n",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert found.version == 1
    assert found.limit_bytes == 4 * GIB
    assert found.free_bytes == 2 * GIB
    assert found.cpu_quota == 0.5


@pytest.mark.parametrize("unlimited", [2**63 - 4096, 2**62, 9223372036854771712])
def test_version_1_writes_no_limit_as_an_enormous_number(tmp_path: Path, unlimited: int):
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "4:memory:/\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(unlimited),
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": "100",
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert found.limit_bytes is None
    assert found.cpu_quota is None


def test_version_1_the_parents_limit_counts(tmp_path: Path):
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "4:memory:/parent/child\n",
            "/sys/fs/cgroup/memory/parent/child/memory.limit_in_bytes": str(9 * GIB),
            "/sys/fs/cgroup/memory/parent/child/memory.usage_in_bytes": str(GIB),
            "/sys/fs/cgroup/memory/parent/memory.limit_in_bytes": str(4 * GIB),
            "/sys/fs/cgroup/memory/parent/memory.usage_in_bytes": str(2 * GIB),
        },
    )
    assert (found.path, found.free_bytes) == ("/parent", 2 * GIB)


def test_no_control_group_at_all_is_none(tmp_path: Path):
    assert memory.read_cgroup(Look(root=tmp_path)) is None


def test_usage_above_the_limit_leaves_nothing_and_not_less(tmp_path: Path):
    found = read(
        tmp_path,
        {
            "/proc/self/cgroup": "0::/\n",
            "/sys/fs/cgroup/memory.max": "1000",
            "/sys/fs/cgroup/memory.current": "5000",
        },
    )
    assert found.free_bytes == 0
