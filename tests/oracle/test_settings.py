"""Settings that people give llama-server, against its own plan: our cache and compute buffer.

One model of each kind of layout in the usual run, one of each architecture under `ENGINEKIT_SOAK=1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from enginekit.catalog import describe
from enginekit.facts.model import ModelSpec
from enginekit.sizing.compute import llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache, llamacpp_refusal
from enginekit.sizing.weights import weights
from tests.oracle.conftest import needs_llamacpp
from tests.oracle.log import MIB, Breakdown
from tests.oracle.models import one_per_architecture, specs
from tests.oracle.run import Order, ask
from tests.support.headers import header_of, write
from tests.support.soak import SOAK

pytestmark = [needs_llamacpp, pytest.mark.embedded, pytest.mark.soak, pytest.mark.timeout(900)]

KINDS = {
    "dense": "llama3.2-1b",
    "windows": "gemma3-1b",
    "windows and heads of two widths": "gemma4-e2b",
    "latent": "deepseek-v2-lite",
    "experts": "qwen3-30b-a3b",
    "delta net": "qwen3.5-4b",
    "attention beside state": "falcon-h1-0.5b",
    "state alone": "mamba2-2.7b",
    "encoder": "nomic-embed-text-v1.5",
}
CHOSEN = sorted({*KINDS.values(), *(one_per_architecture() if SOAK else ())})
CONTEXT = 10000
"""No multiple of what llama.cpp rounds to."""

SETTINGS: dict[str, dict[str, Any]] = {
    "-fa off": {"flash": False},
    "-ctk q8_0 -ctv q8_0": {"cache": "q8_0"},
    "-ctk q4_0 -ctv q4_0": {"cache": "q4_0"},
    "-ub 256": {"ubatch": 256},
    "-ub 1024": {"ubatch": 1024},
    "-ub 2048": {"ubatch": 2048},
    "-np 4": {"slots": 4, "unified": False},
    "-np 4 --kv-unified": {"slots": 4},
    "-np 4 -ub 2048": {"slots": 4, "unified": False, "ubatch": 2048},
    "-np 4 -fa off": {"slots": 4, "unified": False, "flash": False},
    "--swa-full": {"swa_full": True},
    "--swa-full -np 4": {"slots": 4, "unified": False, "swa_full": True},
    "--embeddings --pooling mean": {"pooling": "MEAN"},
    "--embeddings --pooling none": {"pooling": "NONE"},
    "--reranking": {"pooling": "RANK"},
}


def sent(given: Mapping[str, Any]) -> dict[str, Any]:
    """The setting in xllamacpp's words."""
    found: dict[str, Any] = {
        "kv_unified": given.get("unified", True),
        "n_ubatch": given.get("ubatch", 512),
        "swa_full": given.get("swa_full", False),
    }
    if "cache" in given:
        found["cache_type_k"] = found["cache_type_v"] = [
            "ggml_type",
            f"GGML_TYPE_{given['cache'].upper()}",
        ]
    if not given.get("flash", True):
        found["flash_attn_type"] = ["llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_DISABLED"]
    if "pooling" in given:
        found["embedding"] = True
        found["pooling_type"] = ["llama_pooling_type", f"LLAMA_POOLING_TYPE_{given['pooling']}"]
    return found


def estimate(spec: ModelSpec, given: Mapping[str, Any], context: int = CONTEXT) -> tuple[int, int]:
    """Cache and compute buffer in bytes."""
    slots, unified = given.get("slots", 1), given.get("unified", True)
    ubatch, flash = given.get("ubatch", 512), given.get("flash", True)
    kind = given.get("cache", "f16")
    cache = llamacpp_cache(
        spec,
        context,
        slots=slots,
        unified=unified,
        type_k=kind,
        type_v=kind,
        ubatch=ubatch,
        swa_full=given.get("swa_full", False),
        flash=flash,
    )
    compute = llamacpp_compute(
        spec,
        cache.context if unified else cache.context // slots,
        ubatch=ubatch,
        outputs=ubatch if "pooling" in given else slots,
        slots=slots,
        sliding_cells=cache.sliding_cells,
        flash=flash,
    )
    return cache.total, compute.total


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Breakdown]:
    folder = tmp_path_factory.mktemp("settings")
    orders = []
    for name in CHOSEN:
        path = write(folder / f"{name}.gguf", header_of(specs()[name]))
        orders += [
            Order(f"{name} {words}", str(path), CONTEXT, given.get("slots", 1), sent(given))
            for words, given in SETTINGS.items()
        ]
    return ask(orders, timeout=900)


@pytest.mark.parametrize("words", SETTINGS)
def test_a_setting_takes_what_llamacpp_plans(words: str, asked: dict[str, Breakdown]) -> None:
    """The cache to two digits; the total within 2 per cent, and the buffer seldom below theirs."""
    given = SETTINGS[words]
    for name in CHOSEN:
        spec, plan = specs()[name], asked[f"{name} {words}"]
        refusal = llamacpp_refusal(spec, given.get("cache", "f16"), flash=given.get("flash", True))
        assert plan.planned != bool(refusal), (name, plan.errors)
        if refusal:
            continue
        cache, compute = estimate(spec, given)
        assert sum(mib for *_, mib in plan.caches) == pytest.approx(cache / MIB, abs=0.02), name
        theirs = plan.compute_exact
        assert compute / MIB >= 0.90 * theirs - 1, (name, compute / MIB, theirs)
        held = weights(spec, "F16").total / MIB + sum(mib for *_, mib in plan.caches)
        assert abs(compute / MIB - theirs) <= 0.02 * (held + theirs) + 3, (name, theirs)
        if name in KINDS.values():
            assert compute / MIB == pytest.approx(theirs, rel=0.12, abs=3), name


def test_what_no_cache_type_can_hold_is_refused_beforehand() -> None:
    """Heads of 80 elements are no blocks of 32: seen with Phi-2 and StableLM-3B."""
    spec = specs()["phi-2"]
    assert "heads of 80 elements" in llamacpp_refusal(spec, "q8_0")
    assert llamacpp_refusal(spec, "f16") == ""
    assert "flash attention" in llamacpp_refusal(describe("llama3.2-1b"), "q4_0", flash=False)
