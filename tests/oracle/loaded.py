"""A small real model loaded by the real llama.cpp: its log, and what the process really took.

Run by path with a JSON object (`path`, `context`, `slots`, `settings`) as argument; imports nothing of
enginekit. llama.cpp's log goes to standard error; standard output gets one line of JSON with the
resident memory before and after the load and a warm-up, which touches every weight.
"""

from __future__ import annotations

import json
import os
import sys


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    report = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    order = json.loads(sys.argv[1])
    before = resident()
    params = xllamacpp.CommonParams()
    params.model.path = order["path"]
    params.n_ctx = order["context"]
    params.n_parallel = order["slots"]
    params.kv_unified = True
    params.verbosity = 5
    params.warmup = True
    params.port = 0
    params.cache_ram_mib = 0
    for name, setting in order.get("settings", {}).items():
        if isinstance(setting, list):  # an enumeration of xllamacpp and its member
            setting = getattr(getattr(xllamacpp, setting[0]), setting[1])
        setattr(params, name, setting)
    server = xllamacpp.Server(params)
    line = {"before": before, "after": resident(), "url": server.listening_address}
    os.write(report, json.dumps(line).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
