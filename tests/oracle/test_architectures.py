"""Architectures that the catalog has no model of: what a person sees who names such a GGUF file.

tests/fixtures/oracle/architectures.json holds, for each, the keys (dimensions of a published
checkpoint, with fewer layers) and the tensors that llama.cpp's own loader demanded, one by one
(`tests/oracle/discover.py`). llama.cpp plans each file; our header reader must give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginekit.catalog import describe
from enginekit.catalog._families import KNOWN
from enginekit.sizing.compute import llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.weights import weights
from tests.oracle.conftest import needs_llamacpp
from tests.oracle.discover import write
from tests.oracle.log import MIB, Breakdown
from tests.oracle.models import specs
from tests.oracle.run import Order, ask
from tests.support.header_vectors import VECTORS
from tests.support.headers import Header, Tensor, header_of
from tests.support.headers import write as write_header
from tests.support.soak import SOAK

pytestmark = [needs_llamacpp, pytest.mark.embedded, pytest.mark.soak, pytest.mark.timeout(900)]

FOUND: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "oracle" / "architectures.json").read_text()
)
SETTINGS = ((32768, 4, False), (4096, 1, True), (32768, 4, True)) if SOAK else ((32768, 4, False),)
"""Context, slots, whether they share a cache."""
TABLE_TWICE = frozenset(("gemma3n",))
"""The output is made before the tied input table, so that the plan for a processor counts both."""
WIDE = frozenset(("minimax-01",))
"""Compute buffers without a law here: linear attention works on blocks of its own size."""


def header(name: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Keys and tensors of an architecture, written out."""
    kept = FOUND[name]
    keys: dict[str, Any] = {
        "general.architecture": name,
        "general.name": name,
        "general.file_type": 1,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.token_type_count": 2,
    }
    for key, value in kept["keys"].items():
        keys[key if key.startswith("xielu.") else f"{name}.{key}"] = value
    tensors: dict[str, list[int]] = {}
    for word, shape, *some in kept["tensors"]:
        layers = some[0] if some else range(kept["keys"]["block_count"])
        for layer in layers if "*" in word else (0,):
            tensors[word.replace("*", str(layer))] = shape
    return keys, tensors


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: write(folder / f"{name}.gguf", *header(name)) for name in FOUND}


@pytest.fixture(scope="module")
def asked(files: dict[str, Path]) -> dict[str, Breakdown]:
    return ask(
        [
            Order(f"{name} {context} {slots} {shared}", str(path), context, slots,
                  {"kv_unified": shared})
            for name, path in files.items()
            for context, slots, shared in SETTINGS
        ],
        timeout=900,
    )  # fmt: skip


def test_the_two_oracles_cover_nearly_all_that_we_call_known() -> None:
    """GPT-J has a name in llama.cpp and no loader; the rest
    die on what was tried as their tensors."""
    assert len(FOUND) >= 60
    assert KNOWN - set(VECTORS) - set(FOUND) <= {
        "gptj", "kimi-k3", "laguna", "plm", "rwkv6", "t5encoder"
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(FOUND))
def test_an_architecture_takes_what_llamacpp_plans(
    name: str, files: dict[str, Path], asked: dict[str, Breakdown]
) -> None:
    spec = describe(files[name])
    assert spec.known_layout
    found = weights(spec)
    for context, slots, shared in SETTINGS:
        plan = asked[f"{name} {context} {slots} {shared}"]
        assert plan.planned, plan.errors
        model = (found.total + (found.embedding if name in TABLE_TWICE else 0)) / MIB
        cache = llamacpp_cache(spec, context, slots=slots, unified=shared)
        compute = llamacpp_compute(
            spec,
            cache.context if shared else cache.context // slots,
            outputs=slots,
            slots=slots,
            sliding_cells=cache.sliding_cells,
        )
        theirs = plan.compute_exact
        assert abs(model - plan.model) <= max(0.002 * plan.model, 1)
        assert sum(mib for *_, mib in plan.caches) == pytest.approx(cache.total / MIB, abs=0.02)
        total = plan.model + cache.total / MIB + theirs
        assert abs(compute.total / MIB - theirs) <= 0.02 * total + 8
        if name not in WIDE:
            assert compute.total / MIB >= 0.84 * theirs - 1


def test_layers_for_several_tokens_are_loaded_only_if_asked_for(tmp_path: Path) -> None:
    """`mtp_bytes` beside the weights, with `--spec-type draft-mtp`; else the file has them in vain."""
    orders, ours = [], {}
    for name in ("qwen3.5-4b", "glm-4.5-air", "qwen3.5-35b-a3b"):
        path = write_header(tmp_path / f"{name}.gguf", _with_mtp(name))
        spec = describe(path)
        assert spec.mtp_layers == 1
        assert weights(spec).total == weights(specs()[name], "F16").total
        for load in (False, True):
            key = f"{name} {load}"
            orders.append(Order(key, str(path), 8192, 1, {"load_mtp": load}))
            ours[key] = weights(spec).total + (spec.mtp_bytes if load else 0)
    for key, plan in ask(orders).items():
        assert plan.planned, (key, plan.errors)
        assert plan.model == pytest.approx(ours[key] / MIB, abs=1.01), key


def _with_mtp(name: str) -> Header:
    """A model's header with one more block, like its last with attention, and what joins it."""
    spec = specs()[name]
    base, count, width = header_of(spec), spec.n_layers, spec.hidden
    last = max(index for index, layer in enumerate(spec.layers) if layer.attention == "full")
    more = [
        Tensor(tensor.name.replace(f"blk.{last}.", f"blk.{count}."), tensor.shape, tensor.type)
        for tensor in base.tensors
        if tensor.name.startswith(f"blk.{last}.")
    ]
    more.append(Tensor(f"blk.{count}.nextn.eh_proj.weight", (2 * width, width), "F16"))
    norms = ("enorm", "hnorm", "shared_head_norm")
    more += [Tensor(f"blk.{count}.nextn.{norm}.weight", (width,), "F32") for norm in norms]
    keys = {
        key: [*item, item[-1]] if isinstance(item, list) and len(item) == count else item
        for key, item in base.keys.items()
    }
    keys[f"{spec.architecture}.block_count"] = count + 1
    keys[f"{spec.architecture}.nextn_predict_layers"] = 1
    return Header(keys, base.tensors + more)
