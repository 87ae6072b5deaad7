"""A process that lets the real llama.cpp plan the memory of header-only models.

Run by path; imports nothing of enginekit. Reads one JSON object per line (`path`, `context`,
`slots`, `settings`) and leaves llama.cpp's own log on standard error. With fit on, llama.cpp first
plans without allocating and logs a memory breakdown; the real load that follows then fails on
purpose: the address space is limited, so that mapping the file is refused and no weight is ever
touched. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys

ROOM = 4 << 30
os.environ["GGML_NO_BACKTRACE"] = "1"


def main() -> None:
    import xllamacpp

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        order = json.loads(line)
        params = xllamacpp.CommonParams()
        params.model.path = order["path"]
        params.n_ctx = order["context"]
        params.n_parallel = order["slots"]
        params.kv_unified = True
        params.fit_params = True
        params.verbosity = 5
        params.warmup = False
        params.port = 0
        params.cpuparams.n_threads = 1
        for name, setting in order.get("settings", {}).items():
            if isinstance(setting, list):  # an enumeration of xllamacpp and its member
                setting = getattr(getattr(xllamacpp, setting[0]), setting[1])
            setattr(params, name, setting)
        # The error says only that the log has the reason.
        with contextlib.suppress(RuntimeError):
            xllamacpp.Server(params)


if __name__ == "__main__":
    main()
