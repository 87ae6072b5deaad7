"""Our arithmetic against llama.cpp's own plan: over fifty architectures at three contexts.

The plan is that of the real llama.cpp (its fit pass, in a child process) for files that have every
key and tensor of a model but no weights. `ENGINEKIT_SOAK=1` takes every model instead of one per
architecture.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from enginekit.catalog import describe
from enginekit.facts.model import ModelSpec
from enginekit.sizing.compute import llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.weights import weights
from tests.oracle.conftest import CHOSEN, CONTEXTS, needs_llamacpp
from tests.oracle.log import MIB, Breakdown
from tests.oracle.models import specs
from tests.oracle.run import Order, ask
from tests.support.headers import Header, Tensor, header_of, write

pytestmark = [needs_llamacpp, pytest.mark.embedded, pytest.mark.timeout(400)]

TABLE_TWICE = frozenset(("gemma4",))
"""llama.cpp b11549 makes Gemma 4's output before its input table, so that the plan counts the tied
table twice on the CPU. The load maps both onto the same pages of the file."""

Headers = dict[str, tuple[Path, Header]]
Plans = dict[tuple[str, int], Breakdown]


def estimate(spec: ModelSpec, context: int, slots: int) -> tuple[int, int, int]:
    """Weights, cache and compute buffer, in bytes."""
    found = weights(spec, "F16")
    cache = llamacpp_cache(spec, context, slots=slots)
    compute = llamacpp_compute(
        spec, cache.context, outputs=slots, slots=slots, sliding_cells=cache.sliding_cells
    )
    total = found.total + (found.embedding if spec.architecture in TABLE_TWICE else 0)
    return total, cache.total, compute.total


def test_the_oracle_covers_at_least_fifty_architectures() -> None:
    assert len({spec.architecture for spec in CHOSEN.values()}) >= 50


@pytest.mark.parametrize("name", sorted(CHOSEN))
def test_weights_cache_and_total_are_llamacpps_own(name: str, plans: Plans) -> None:
    spec = CHOSEN[name]
    for context, slots in CONTEXTS:
        plan = plans[name, context]
        assert plan.planned, (context, plan.errors)
        model, cache, compute = estimate(spec, context, slots)
        # Columns of the breakdown are whole MiB, cut off.
        assert abs(model / MIB - plan.model) <= max(0.002 * plan.model, 1), context
        assert cache // MIB == plan.context, context
        assert sum(mib for *_, mib in plan.caches) == pytest.approx(cache / MIB, abs=0.02)
        ours, theirs = (model + cache + compute) / MIB, plan.total
        # Promised: 5 per cent or 300 MiB, and 2 per cent below. Reached: 1.6 per cent either way.
        assert abs(ours - theirs) <= 0.02 * theirs + 3, context


@pytest.mark.parametrize("name", sorted(CHOSEN))
def test_the_header_reader_sees_the_same_model(name: str, headers: Headers) -> None:
    """The file that llama.cpp accepted, read by us: every tensor's bytes, and the same cache."""
    path, header = headers[name]
    seen, spec = describe(path), CHOSEN[name]
    assert seen.known_layout
    assert weights(seen).total == header.tensor_bytes
    for context, slots in CONTEXTS:
        assert llamacpp_cache(seen, context, slots=slots).total == (
            llamacpp_cache(spec, context, slots=slots).total
        )


LABELLED = [
    (name, label)
    for name in ("qwen2.5-0.5b", "gemma3-4b", "qwen3-30b-a3b", "deepseek-v2-lite", "qwen3.5-4b")
    for label in ("Q8_0", "Q4_K_M", "Q5_K_S", "IQ2_XXS", "Q4_0")
] + [("gpt-oss-20b", "MXFP4_MOE")]


def test_a_quantization_takes_what_llamacpp_says(tmp_path: Path) -> None:
    """Mixtures of block types, also where llama.cpp repacks them for the processor."""
    orders = []
    for name, label in LABELLED:
        path = write(tmp_path / f"{name}-{label}.gguf", header_of(specs()[name], label))
        orders.append(Order(f"{name} {label}", str(path), 4096))
    plans = ask(orders)
    for name, label in LABELLED:
        found = weights(specs()[name], label, imatrix=False)
        plan, ours = plans[f"{name} {label}"], found.total / MIB
        rows = len(plan.rows)
        assert plan.planned, (name, label, plan.errors)
        assert abs(ours - plan.model) <= max(0.002 * plan.model, rows), (name, label)


SETTINGS = [
    ("llama3.1-8b", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    ("gemma3-12b", {"cache_type_k": "q8_0", "cache_type_v": "q4_0"}),
    ("deepseek-v3", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    ("qwen3-8b", {"n_ubatch": 2048}),
    ("gemma3-12b", {"n_ubatch": 2048}),
    ("gemma3-12b", {"swa_full": True}),
    ("llama3.1-8b", {"kv_unified": False}),
    ("gemma2-9b", {"kv_unified": False}),
    ("qwen3.5-9b", {"kv_unified": False}),
]


def test_cache_types_batches_and_slots(tmp_path: Path) -> None:
    """Settings that change the cache or the buffer, four slots each."""
    orders, wanted = [], {}
    for number, (name, settings) in enumerate(SETTINGS):
        path = write(tmp_path / f"{number}.gguf", header_of(specs()[name]))
        sent = {
            key: ["ggml_type", f"GGML_TYPE_{value.upper()}"] if isinstance(value, str) else value
            for key, value in settings.items()
        }
        orders.append(Order(str(number), str(path), 10000, 4, sent))
        cache = llamacpp_cache(
            specs()[name],
            10000,
            slots=4,
            unified=bool(settings.get("kv_unified", True)),
            type_k=str(settings.get("cache_type_k", "f16")),
            type_v=str(settings.get("cache_type_v", "f16")),
            ubatch=int(settings.get("n_ubatch", 512)),
            swa_full=bool(settings.get("swa_full")),
        )
        compute = llamacpp_compute(
            specs()[name],
            cache.context,
            ubatch=int(settings.get("n_ubatch", 512)),
            outputs=4,
            slots=4,
            sliding_cells=cache.sliding_cells,
        )
        wanted[str(number)] = (name, settings, cache.total / MIB, compute.total / MIB)
    for key, plan in ask(orders).items():
        name, settings, cache, compute = wanted[key]
        assert plan.planned, (name, settings, plan.errors)
        assert int(cache) == plan.context, (name, settings)
        assert abs(compute - plan.compute) <= max(0.15 * plan.compute, 8), (name, settings)


MANY_SLOTS = {
    "qwen3.5-4b": 32,
    "qwen3.5-35b-a3b": 16,
    "nemotron3-nano-30b-a3b": 16,
    "falcon-h1-0.5b": 32,
    "mamba2-2.7b": 16,
    "mamba-2.8b": 16,
    "llama3.2-1b": 16,
    "gemma3-1b": 16,
}


def test_many_slots_with_a_cache_each(tmp_path: Path) -> None:
    """What `-np N` gives: masks as wide as one slot's cache, and a state for every slot at once."""
    orders, wanted = [], {}
    for name, slots in MANY_SLOTS.items():
        spec = specs()[name]
        path = write(tmp_path / f"{name}.gguf", header_of(spec))
        context = 1024 * slots
        orders.append(Order(name, str(path), context, slots, {"kv_unified": False}))
        cache = llamacpp_cache(spec, context, slots=slots, unified=False)
        compute = llamacpp_compute(
            spec,
            cache.context // slots,
            outputs=slots,
            slots=slots,
            sliding_cells=cache.sliding_cells,
        )
        wanted[name] = (cache.total / MIB, compute.total / MIB)
    for name, plan in ask(orders).items():
        cached, size = wanted[name]
        assert plan.planned, (name, plan.errors)
        assert int(cached) == plan.context, name
        assert -0.04 <= size / plan.compute_exact - 1 <= 0.06, (name, size, plan.compute_exact)


def _with_block(spec: ModelSpec) -> Header:
    """The file with a block for multi-token prediction behind the others."""
    plain, count, hidden = header_of(spec), spec.n_layers, spec.hidden
    last = max(number for number, layer in enumerate(spec.layers) if layer.kv_heads)
    more = [
        replace(tensor, name=tensor.name.replace(f"blk.{last}.", f"blk.{count}."))
        for tensor in plain.tensors
        if tensor.name.startswith(f"blk.{last}.")
    ]
    more.append(Tensor(f"blk.{count}.nextn.eh_proj.weight", (2 * hidden, hidden), "F16"))
    more += [
        Tensor(f"blk.{count}.nextn.{name}.weight", (hidden,), "F32")
        for name in ("enorm", "hnorm", "shared_head_norm")
    ]
    # What is listed by layer has an entry for it, too.
    keys = {
        key: [*item, item[last]] if isinstance(item, list) and len(item) == count else item
        for key, item in plain.keys.items()
    }
    keys |= {
        f"{spec.architecture}.block_count": count + 1,
        f"{spec.architecture}.nextn_predict_layers": 1,
    }
    return Header(keys, plain.tensors + more)


@pytest.mark.parametrize("name", ["qwen3.5-0.8b", "qwen3.5-35b-a3b", "glm-4.5-air", "deepseek-v3"])
def test_a_block_for_multi_token_prediction_takes_no_memory(name: str, tmp_path: Path) -> None:
    """It is in the file, and loaded only by what drafts with it."""
    spec = specs()[name]
    header = _with_block(spec)
    path = write(tmp_path / f"{name}.gguf", header)
    plan = ask([Order(name, str(path), 4096)])[name]
    assert plan.planned, plan.errors
    seen = describe(path)
    assert seen.mtp_layers == 1
    assert seen.mtp_bytes > 0.01 * weights(seen).total
    assert seen.mtp_bytes + weights(seen).total == header.tensor_bytes
    assert abs(weights(seen).total / MIB - plan.model) <= max(0.002 * plan.model, 1)
