"""The process that holds the model: xllamacpp's llama.cpp server on loopback.

Run by path, by `_child.py` and by nothing else; imports nothing of enginekit, so that it starts
fast and in any environment. It reads one line of JSON from standard input, loads the model, writes
one line of JSON to standard output when the server listens, and lives until standard input ends.

llama.cpp holds the interpreter lock while it loads, so nothing here can watch the owner meanwhile:
that is why `_child.py` is a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def _die_with_parent() -> None:
    """Linux: have the kernel end us with `_child.py`, even in the middle of loading."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        os._exit(1)


def _apply(module: Any, params: Any, settings: list[list[Any]]) -> None:
    """Set `attribute.path` to a value; `enum` names a member of an xllamacpp enumeration."""
    for path, value, enum in settings:
        *parents, name = path.split(".")
        target = params
        for parent in parents:
            target = getattr(target, parent)
        if enum:
            value = getattr(getattr(module, enum), value)
        elif isinstance(value, list) and name == "model_alias":
            value = set(value)
        setattr(target, name, value)


def main() -> None:
    """Serve until standard input ends."""
    _die_with_parent()
    # llama.cpp may print to descriptor 1: keep the real one for our one line.
    report = os.dup(1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.buffer.readline())
    sys.path.extend(path for path in order["sys_path"] if path not in sys.path)
    import xllamacpp

    params = xllamacpp.CommonParams()
    _apply(xllamacpp, params, order["settings"])
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stderr.write(f"enginekit: llama.cpp did not start: {error}\n")
        sys.stderr.flush()
        os._exit(3)
    line = {"url": server.listening_address, "build": getattr(xllamacpp, "BUILD_INFO", None)}
    os.write(report, json.dumps(line, default=str).encode() + b"\n")
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
