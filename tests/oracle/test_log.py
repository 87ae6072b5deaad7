"""The reader of llama.cpp's log, on lines that llama.cpp wrote."""

from __future__ import annotations

from tests.oracle.log import Breakdown, parse

HEAD = "0.00.0 I common_memory_breakdown_print: | memory breakdown [MiB] | total   free     self   model   context   compute    unaccounted |"
HOST = "0.00.1 I common_memory_breakdown_print: |   - Host               |                 16473 = 15317 +    1024 +     132                |"
SMALL = "0.00.1 I common_memory_breakdown_print: |   - Host               |                   379 =   239 +     128 +      11                |"
GPU = "0.00.1 I common_memory_breakdown_print: |   - CUDA0 (RTX 4090)   | 24080 = 23631 + (16473 = 15317 +    1024 +     132) + -16024 |"
REPACK = "0.00.1 I common_memory_breakdown_print: |   - CPU_REPACK         |                  4000 =  4000 +       0 +       0                |"
CACHE = "0.00.1 I llama_kv_cache: size = 1024.00 MiB (  8192 cells,  32 layers,  1/1 seqs), K (f16):  512.00 MiB, V (f16):  512.00 MiB"
STATE = "0.00.1 I llama_memory_recurrent: size =   50.25 MiB (     1 cells,  32 layers,  1 seqs), R (f32):    2.25 MiB, S (f32):   48.00 MiB"
COMPUTE = "0.00.1 I sched_reserve:        CPU compute buffer size =   132.02 MiB"
OUTPUT = "0.00.1 I llama_context:        CPU  output buffer size =     0.49 MiB"
FAILED = "0.00.1 E llama_model_load: error loading model: mmap failed: Cannot allocate memory"


BEGIN = "0.00.0 I srv    load_model: loading model '/tmp/folder/{}.gguf'"
END = "0.00.9 I srv          init: exiting due to model loading error"


def one(*lines: str) -> Breakdown:
    (found,) = parse([BEGIN.format("a-b"), *lines, END])
    return found


def test_a_breakdown_of_the_host() -> None:
    found = one(CACHE, OUTPUT, COMPUTE, HEAD, HOST)
    assert (found.id, found.model, found.context, found.compute) == ("a-b", 15317, 1024, 132)
    assert found.rows == ["Host"]
    assert found.caches == [("llama_kv_cache", 8192, 32, 1024.0)]
    assert (found.compute_exact, found.output) == (132.02, 0.49)


def test_columns_padded_with_blanks() -> None:
    assert (one(HEAD, SMALL).model, one(HEAD, SMALL).compute) == (239, 11)


def test_a_device_row_and_a_buffer_type_row_are_added() -> None:
    found = one(HEAD, GPU, REPACK)
    assert found.rows == ["CUDA0 (RTX 4090)", "CPU_REPACK"]
    assert (found.model, found.context, found.compute) == (19317, 1024, 132)


def test_several_caches_are_kept_apart() -> None:
    assert [kind for kind, *_ in one(CACHE, STATE, HEAD, HOST).caches] == [
        "llama_kv_cache",
        "llama_memory_recurrent",
    ]


def test_only_the_first_breakdown_counts() -> None:
    """The pass plans again when it shrinks the context, and logs once more after the real load."""
    found = one(CACHE, HEAD, HOST, "0.00.2 I something", CACHE, COMPUTE, HEAD, SMALL)
    assert (found.model, len(found.caches), found.compute_exact) == (15317, 1, 0.0)


def test_a_refused_file_has_its_reason_and_no_plan() -> None:
    found = one(FAILED)
    assert not found.planned
    assert found.errors == ["mmap failed: Cannot allocate memory"]


def test_a_child_that_died_leaves_its_last_model_open() -> None:
    first, second = parse([BEGIN.format("a"), HEAD, HOST, END, BEGIN.format("b"), CACHE])
    assert (first.id, first.ended, second.id, second.ended) == ("a", True, "b", False)
    assert (first.planned, second.planned) == (True, False)
    assert list(parse([])) == []


def test_lines_outside_a_run_are_ignored() -> None:
    assert list(parse([HEAD, HOST, CACHE])) == []
