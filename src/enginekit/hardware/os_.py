"""The operating system, and whether a container, WSL or a hypervisor stands in between."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Any, Literal

from enginekit.facts.machine import Os, System
from enginekit.hardware._look import Look
from enginekit.hardware._text import loads, mapping, pairs, text
from enginekit.hardware.apple import read_sysctl, sysctl_facts

_FILES = {
    "os_release": ("/etc/os-release", "/usr/lib/os-release"),
    "kernel": ("/proc/sys/kernel/osrelease",),
    "cgroup": ("/proc/1/cgroup", "/proc/self/cgroup"),
    "mountinfo": ("/proc/self/mountinfo",),
    "product": ("/sys/class/dmi/id/product_name",),
    "vendor": ("/sys/class/dmi/id/sys_vendor",),
    "board": ("/proc/device-tree/model",),
    "container_env": ("/run/.containerenv",),
    "cpuinfo": ("/proc/cpuinfo",),
}
_HYPERVISORS = {
    "qemu": "kvm",
    "kvm": "kvm",
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "innotek": "virtualbox",
    "xen": "xen",
    "amazon ec2": "amazon",
    "google": "google",
    "microsoft corporation": "hyper-v",
    "parallels": "parallels",
    "bhyve": "bhyve",
}


def current_system() -> System:
    """The operating system this Python runs on."""
    found: dict[str, System] = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
    return found.get(platform.system(), "other")


def read(look: Look, system: System) -> Os:
    """Files on Linux; `sysctl` on macOS; what Python itself knows on Windows."""
    if system == "linux":
        sources = {
            key: next((content for path in paths if (content := look.read(path))), "")
            for key, paths in _FILES.items()
        }
        sources["kernel"] = sources["kernel"] or platform.release()
        sources["docker_env"] = "yes" if look.exists("/.dockerenv") else ""
        environ = {
            key: look.environ.get(key, "")
            for key in ("WSL_DISTRO_NAME", "WSL_INTEROP", "KUBERNETES_SERVICE_HOST", "container")
        }
        return parse(sources, environ, architecture=platform.machine())
    if system == "macos":
        return parse_macos(read_sysctl(look), platform.mac_ver()[0], platform.machine())
    return Os(
        system=system,
        name=f"Microsoft Windows {platform.release()}"
        if system == "windows"
        else platform.system(),
        version=platform.version(),
        kernel=platform.version(),
        architecture=platform.machine().lower(),
        how={"*": "Python's platform module"},
    )


def parse(
    sources: Mapping[str, str], environ: Mapping[str, str] | None = None, *, architecture: str = ""
) -> Os:
    """Linux, from file contents under the keys of `_FILES`; each may be missing. Never raises."""
    environ = environ or {}
    release = {key: value.strip("\"'") for key, value in pairs(sources.get("os_release", ""), "=")}
    kernel = sources.get("kernel", "").strip()
    return Os(
        system="linux",
        name=release.get("PRETTY_NAME", "") or release.get("NAME", ""),
        version=release.get("VERSION_ID", ""),
        kernel=kernel,
        architecture=architecture.lower(),
        container=_container(sources, environ),
        wsl=_wsl(kernel, environ),
        hypervisor=_hypervisor(sources, kernel),
        device_model=text(sources.get("board", "").strip("\x00\n "))
        or text(sources.get("product", "")),
        how={"*": "/etc/os-release, /proc, /sys and the environment"},
    )


def parse_macos(sysctl: str, version: str = "", architecture: str = "") -> Os:
    """macOS from `sysctl` output; `version` if `kern.osproductversion` is not in it."""
    facts = sysctl_facts(sysctl)
    return Os(
        system="macos",
        name="macOS",
        version=facts.get("kern.osproductversion", "") or version,
        kernel=facts.get("kern.osrelease", ""),
        architecture=architecture.lower(),
        rosetta=facts.get("sysctl.proc_translated") == "1",
        device_model=facts.get("hw.model", ""),
        how={"*": "sysctl"},
    )


def parse_cim(source: str | Mapping[str, Any]) -> Os:
    """`Get-CimInstance Win32_OperatingSystem | ConvertTo-Json`."""
    facts = mapping(loads(source))
    facts = mapping(facts.get("OperatingSystem", facts))
    return Os(
        system="windows",
        name=text(facts.get("Caption")),
        version=text(facts.get("Version")),
        kernel=text(facts.get("Version")),
        how={"*": "Win32_OperatingSystem"},
    )


def _wsl(kernel: str, environ: Mapping[str, str]) -> Literal[0, 1, 2]:
    lowered = kernel.lower()
    if "microsoft" in lowered:
        return 2 if "wsl2" in lowered or re.match(r"[5-9]\.|\d\d\.|4\.19", lowered) else 1
    return 2 if environ.get("WSL_DISTRO_NAME") or environ.get("WSL_INTEROP") else 0


def _container(sources: Mapping[str, str], environ: Mapping[str, str]) -> str:
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if sources.get("container_env"):
        return "podman"
    groups = sources.get("cgroup", "")
    for pattern, name in (
        ("kubepods", "kubernetes"),
        ("libpod", "podman"),
        ("docker|containerd", "docker"),
        ("lxc", "lxc"),
        ("garden", "garden"),
    ):
        if re.search(rf"/[^:\n]*(?:{pattern})", groups):
            return name
    if sources.get("docker_env") or "/docker/containers/" in sources.get("mountinfo", ""):
        return "docker"
    return environ.get("container", "")


def _hypervisor(sources: Mapping[str, str], kernel: str) -> str:
    if "microsoft" in kernel.lower():
        return "hyper-v"
    named = f"{sources.get('vendor', '')} {sources.get('product', '')}".lower()
    flagged = re.search(r"^flags\s*:.*\bhypervisor\b", sources.get("cpuinfo", ""), re.MULTILINE)
    if "surface" in named and not flagged:
        return ""
    for key, name in _HYPERVISORS.items():
        if key in named and (flagged or key != "google"):
            return name
    return "unknown" if flagged else ""
