"""What llama.cpp's log says of the memory it took, at verbosity 4 and above. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

VERBOSE = ("--log-verbosity", "4")
"""The least verbosity at which the sizes are in the log (seen at b11434)."""

_SIZE = re.compile(
    r"(?:load_tensors|llama_kv_cache\w*|llama_memory_\w+|sched_reserve): +"
    r"(?P<device>\S+) +(?P<what>model|KV|RS|compute) buffer size = +(?P<mib>[\d.]+) MiB"
)
_TERMS = {"model": "weights", "KV": "cache", "RS": "state", "compute": "compute"}
_MIB = 2**20


def buffers(log: Iterable[str]) -> Mapping[str, int]:
    """Bytes by term (`weights`, `cache`, `state`, `compute`), all devices together.

    Of several loads the last counts; a model has one cache or more on a device (a windowed one beside
    the full one) and one compute buffer, whose last size counts. Terms that the log does not name
    are left out.
    """
    sizes: dict[str, dict[str, int]] = {}
    for line in log:
        found = _SIZE.search(line)
        if found is None:
            continue
        term, device = _TERMS[found["what"]], found["device"]
        if term == "weights" and len(sizes) > 1:
            sizes = {}
        devices = sizes.setdefault(term, {})
        before = 0 if term == "compute" else devices.get(device, 0)
        devices[device] = before + int(float(found["mib"]) * _MIB)
    return {term: sum(devices.values()) for term, devices in sizes.items()}
