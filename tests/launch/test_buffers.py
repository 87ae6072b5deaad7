"""What the server's log says of its memory. Lines as llama.cpp b11434 writes them."""

from __future__ import annotations

from enginekit.launch._buffers import buffers

ONE_LOAD = """\
0.00.366.967 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.00.369.992 I llama_context:        CPU  output buffer size =     0.38 MiB
0.00.370.092 I llama_kv_cache:        CPU KV buffer size =    90.00 MiB
0.00.425.044 I llama_kv_cache: size =   90.00 MiB (  2048 cells,  30 layers,  2/2 seqs)
0.00.428.802 I sched_reserve:        CPU compute buffer size =    16.64 MiB
"""
MIB = 2**20


def mib(log: str) -> dict[str, float]:
    return {term: round(size / MIB, 2) for term, size in buffers(log.splitlines()).items()}


def test_each_term_is_read_and_the_summary_line_is_not():
    assert mib(ONE_LOAD) == {"weights": 92.1, "cache": 90.0, "compute": 16.64}


def test_two_caches_of_one_model_add_up():
    windowed = "llama_kv_cache:        CPU KV buffer size =    12.50 MiB\n"
    assert mib(ONE_LOAD + windowed)["cache"] == 102.5


def test_devices_add_up_and_a_state_is_a_term_of_its_own():
    more = (
        "llama_memory_recurrent:      CUDA0 RS buffer size =     3.00 MiB\n"
        "sched_reserve:      CUDA0 compute buffer size =   100.00 MiB\n"
    )
    assert mib(ONE_LOAD + more)["state"] == 3.0
    assert mib(ONE_LOAD + more)["compute"] == 116.64


def test_a_buffer_that_is_reserved_again_counts_once():
    again = "sched_reserve:        CPU compute buffer size =    20.00 MiB\n"
    assert mib(ONE_LOAD + again)["compute"] == 20.0


def test_of_two_loads_the_last_counts():
    second = ONE_LOAD.replace("92.10", "50.00").replace("90.00", "30.00").replace("16.64", "8.00")
    assert mib(ONE_LOAD + second) == {"weights": 50.0, "cache": 30.0, "compute": 8.0}


def test_a_log_without_sizes_gives_nothing():
    assert mib("srv  init: model loaded\n") == {}
