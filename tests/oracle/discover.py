"""Let the real llama.cpp say which tensors an architecture has, and what it plans for them.

Run by path; imports nothing of enginekit. Reads one JSON object per line (`name`, `keys`, `tensors`)
and writes one per line: `tensors`, name to shape, as llama.cpp's loader demanded them one by one;
`error` where it wants a key, not a tensor. Every file is a header with a hole behind it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["GGML_NO_BACKTRACE"] = "1"
_MISSING = re.compile(r"tensor '([^']+)' not found")
_SHAPE = re.compile(r"tensor '([^']+)' has wrong shape; expected\s+([\d, ]+), got")
_WHY = re.compile(r"error loading model(?:[^:]*): (?P<why>.+)$", re.M)
_TRIES = 4000


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        inner = [_value(item) for item in value]
        return struct.pack("<IIQ", 9, *struct.unpack("<I", inner[0][:4]), len(inner)) + b"".join(
            item[4:] for item in inner
        )
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii" if value < 0 else "<II", 5 if value < 0 else 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _text(str(value))


def kind(name: str, shape: list[int]) -> int:
    """F32 for vectors and norms, else F16, as the converter writes them."""
    return 0 if len(shape) < 2 or "norm" in name or "ssm_conv1d" in name else 1


def write(
    path: Path, keys: dict[str, Any], tensors: dict[str, list[int]], hole: int = 6 << 30
) -> Path:
    """A GGUF without weights: keys, the tensor table, and a hole that no limited mapping holds."""
    out = bytearray(b"GGUF") + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, item in keys.items():
        out += _text(key) + _value(item)
    offset = 0
    for name, shape in tensors.items():
        out += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", kind(name, shape), offset)
        size = math.prod(shape) * (4 if kind(name, shape) == 0 else 2)
        offset += -(-size // 32) * 32
    out += bytes(-len(out) % 32)
    with path.open("wb") as file:
        file.write(out)
        file.truncate(max(len(out) + offset, hole))
    return path


def _attempt(path: Path, log: Path) -> str:
    import xllamacpp

    log.write_bytes(b"")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 4096
    params.n_parallel = 1
    params.fit_params = False
    params.warmup = False
    params.verbosity = 3
    params.port = 0
    params.cpuparams.n_threads = 1
    with contextlib.suppress(RuntimeError):
        xllamacpp.Server(params)
    text = ""
    for _ in range(200):  # the log has a thread of its own
        text = log.read_text(errors="replace")
        if "exiting due to" in text:
            break
        time.sleep(0.002)
    return text


def discover(keys: dict[str, Any], tensors: dict[str, list[int]], log: Path) -> dict[str, Any]:
    """Ask until nothing is missing."""
    found = dict(tensors)
    shapes: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for _ in range(_TRIES):
            write(path, keys, found)
            text = _attempt(path, log)
            if match := _SHAPE.search(text):
                shape = [int(number) for number in match[2].split(",")]
                while len(shape) > 1 and shape[-1] == 1:
                    shape.pop()
                found[match[1]] = shapes[re.sub(r"\d+", "N", match[1], count=1)] = shape
            elif match := _MISSING.search(text):
                found[match[1]] = shapes.get(re.sub(r"\d+", "N", match[1], count=1), [1])
            else:
                why = _WHY.search(text)
                said = why["why"] if why else text[-300:]
                fine = "mmap failed" in said
                return {"tensors": found, "error": "" if fine else said}
    return {"tensors": found, "error": "it asked too often"}


def main() -> None:
    import resource

    log = Path(tempfile.mkstemp()[1])
    kept = os.dup(1)
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    import xllamacpp  # noqa: F401

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        order = json.loads(line)
        answer = {"name": order["name"]} | discover(order["keys"], order["tensors"], log)
        os.write(kept, json.dumps(answer).encode() + b"\n")
    log.unlink()


if __name__ == "__main__":
    main()
