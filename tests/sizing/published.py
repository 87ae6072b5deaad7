"""Published measurements beside our estimates: tests/fixtures/published read and computed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from enginekit.catalog import describe, hf_config
from enginekit.facts.machine import Gpu, Machine, Memory
from enginekit.facts.model import ModelSpec
from enginekit.sizing.allocate import Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.compute import (
    compiled_compute,
    compiled_planned,
    compiled_workspace,
    llamacpp_compute,
)
from enginekit.sizing.kv_cache import Cache, llamacpp_cache, mlc_cache, vllm_pool
from enginekit.sizing.offload import copied
from enginekit.sizing.policy import CONTEXT, GIB, MIB, PAGED
from enginekit.sizing.pool import Pooling, Shards
from enginekit.sizing.projector import ENCODERS, projector
from enginekit.sizing.split import layered
from enginekit.sizing.tables import weight_table
from enginekit.sizing.weights import weights
from tests.catalog.configs import OTHERS
from tests.oracle.models import CONFIGS, _config

FOLDER = Path(__file__).parents[1] / "fixtures" / "published"

CONFIGURED: dict[str, dict[str, Any]] = {
    "pythia-1.4b": _config("gpt_neox", 2048, 24, 16, 16, 8192, 50304),
    "llama2-13b": _config("llama", 5120, 40, 40, 40, 13824, 32000),
    "glm-4-32b-0414": _config("glm4", 6144, 61, 48, 2, 23040, 151552, head_dim=128),
    "bge-small-en": _config("bert", 384, 12, 12, 12, 1536, 30522)
    | {"max_position_embeddings": 512, "type_vocab_size": 2},
    "glm-z1-rumination-32b": _config("glm4", 6144, 61, 48, 8, 23040, 151552, head_dim=128),
    "llama2-7b": _config("llama", 4096, 32, 32, 32, 11008, 32000),
    "qwen1.5-72b": _config("qwen2", 8192, 80, 64, 64, 24576, 152064),
    "olmo2-7b": _config("olmo2", 4096, 32, 32, 32, 11008, 100352),
    "olmoe-1b-7b": CONFIGS["olmoe-1b-7b"],
    "minimax-m2": CONFIGS["minimax-m2"],
    "deepseek-v2-lite": OTHERS["deepseek-v2-lite"][0],
}
"""Models that the catalog does not have: the dimensions that the logs print."""


@cache
def spec(name: str) -> ModelSpec:
    """The model of a row."""
    config = CONFIGURED.get(name)
    return hf_config.to_spec(config, name=name) if config else describe(name)


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure: what was published and what we say, in the same unit."""

    what: str
    measured: float
    ours: float
    low: float
    high: float
    step: float = 0.0
    """Half of the last printed digit."""

    @property
    def error(self) -> float:
        """Relative; below 0 where ours is too low."""
        return (self.ours - self.measured) / self.measured


@dataclass(frozen=True, slots=True)
class Row:
    """A row of either table with its figures."""

    engine: str
    source: str
    version: str
    model: str
    quantization: str
    setting: str
    mix: str
    pairs: tuple[Pair, ...]
    note: str
    line: dict[str, str]

    @property
    def id(self) -> str:
        """For test names."""
        return f"{self.model}-{self.quantization}-{self.source.split('/')[-1]}"

    def find(self, what: str) -> Pair | None:
        """The figure of that name."""
        return next((pair for pair in self.pairs if pair.what == what), None)


def llamacpp() -> list[Row]:
    """llama.cpp and what starts it; MiB."""
    return [_llamacpp(line) for line in _lines("llamacpp.csv")]


def mlc() -> list[Row]:
    """MLC LLM and web-llm; MiB."""
    return [_mlc(line) for line in _lines("mlc.csv")]


def vllm() -> list[Row]:
    """vLLM; GiB on one GPU, tokens, requests."""
    return [_vllm(line) for line in _lines("vllm.csv")]


def projectors() -> list[Row]:
    """llama.cpp's projectors: their files and what they take at the start; MiB."""
    return [_projector(line) for line in _lines("projectors.csv")]


def _projector(line: dict[str, str]) -> Row:
    model, label = spec(line["model"]), line["label"]
    sizes = dict(model.projector_files)
    pairs: list[Pair] = []
    # A label that the model's repository has not got is another publisher's.
    size = sizes.get(label, 0) / MIB
    found = ENCODERS[model.architecture]
    if line["file"] and size:
        step = 0.5e6 / MIB if "rounded" in line["note"] else 0.0
        pairs.append(Pair("file", int(line["file"]) / MIB, size, size, size, step))
    if line["weights"] and size:
        pairs.append(Pair("weights", float(line["weights"]), size, size, size, 0.005))
    if line["encoder"]:
        pairs.append(
            Pair("encoder", float(line["encoder"]), found.start, found.least, found.start, 0.5)
        )
    together = re.search(r"together (\d+) MiB", line["note"])
    measured = float(together[1]) if together else sum(
        pair.measured for pair in pairs if pair.what in ("weights", "encoder")
    )  # fmt: skip
    if together or len([pair for pair in pairs if pair.what in ("weights", "encoder")]) == 2:
        low, ours, high = (part / MIB for part in projector(model, CONTEXT, label))
        pairs.append(Pair("together", measured, ours, low, high, 0.5))
    return Row(
        "llama.cpp", line["source"], line["build"], model.name, label, line["backend"], "",
        tuple(pairs), line["note"], line,
    )  # fmt: skip


def _lines(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _llamacpp(line: dict[str, str]) -> Row:
    model, label = spec(line["model"]), line["quantization"]
    pairs, setting = list(_llamacpp_weights(line, model, label)), ""
    if line["context"]:
        slots, ubatch = int(line["slots"]), int(line["ubatch"])
        flash = line["flash"] == "yes"
        kinds = " / ".join(dict.fromkeys((line["type_k"], line["type_v"])))
        setting = f"{line['context']}, {kinds}, fa {'on' if flash else 'off'}"
        if slots > 1:
            setting += f", {slots} slots"
        cached = llamacpp_cache(
            model,
            int(line["context"]),
            slots=slots,
            unified=line["unified"] == "yes",
            type_k=line["type_k"],
            type_v=line["type_v"],
            ubatch=ubatch,
            swa_full="--swa-full" in line["note"],
        )
        if line["cache"]:
            size = cached.total / MIB
            pairs.append(Pair("cache", float(line["cache"]), size, size, size, 0.005))
        if line["compute"]:
            pairs.append(_llamacpp_compute(line, model, cached))
    if line["weights"] and line["compute"]:
        parts = [pair for pair in pairs if pair.what in ("weights", "cache", "compute")]
        # A publisher's own mixture is known from the file's header, not from its label.
        ours = [
            replace(part, ours=part.measured, low=part.measured, high=part.measured)
            if part.what == "weights" and line["mix"] == "vendor"
            else part
            for part in parts
        ]
        pairs.append(
            Pair(
                "total",
                sum(part.measured for part in parts),
                sum(part.ours for part in ours),
                sum(part.low for part in ours),
                sum(part.high for part in ours),
                float(line["step"]),
            )
        )
    return Row(
        "llama.cpp", line["source"], line["build"], model.name, label, setting,
        line["mix"], tuple(pairs), line["note"], line,
    )  # fmt: skip


def _llamacpp_compute(line: dict[str, str], model: ModelSpec, cached: Cache) -> Pair:
    ubatch, slots = int(line["ubatch"]), int(line["slots"])
    each = cached.context if line["unified"] == "yes" else cached.context // slots
    size = llamacpp_compute(
        model,
        each,
        ubatch=ubatch,
        outputs=int(line["outputs"]),
        slots=slots,
        sliding_cells=cached.sliding_cells,
        flash=line["flash"] == "yes",
        copies=4 if "pipelined" in line["note"] else 1,
    ).total
    if "experts in host memory" in line["note"]:
        gpu = Gpu(index=0, vendor="nvidia", name="GPU", total_bytes=80 * GIB)
        gpus = devices(Machine(gpus=(gpu,), memory=Memory(total_bytes=512 * GIB)), CONTEXT).gpus
        place = layered(model.n_layers, gpus, host_experts=model.n_layers)
        size += copied(weight_table(model, line["quantization"]), place, model)
    older = 2 * ubatch * each if "masks in F32" in line["note"] else 0
    return Pair(
        "compute", float(line["compute"]), size / MIB, 0.75 * size / MIB,
        (size + older) / MIB, 0.005,
    )  # fmt: skip


def _llamacpp_weights(line: dict[str, str], model: ModelSpec, label: str) -> Iterator[Pair]:
    if line["weights"]:
        found = weights(model, label)
        yield Pair(
            "weights", float(line["weights"]), found.total / MIB, found.low / MIB,
            found.high / MIB, float(line["step"]),
        )  # fmt: skip


def _mlc(line: dict[str, str]) -> Row:
    model, label = spec(line["model"]), line["quantization"]
    web = line["note"] == "web"
    pairs: list[Pair] = []

    def add(what: str, size: float) -> None:
        if line[what]:
            pairs.append(Pair(what, float(line[what]), size / MIB, size / MIB, size / MIB, 0.005))

    prefill, tokens = int(line["prefill"] or 0), int(line["tokens"] or 0)
    params, cells = weights(model, label).total, mlc_cache(model, tokens)
    add("parameters", params)
    planned = compiled_planned(model, prefill)
    if web:
        add("total", params + planned + cells)
    elif line["sequences"]:
        # The log counts the cache's auxiliary buffers with it, and planned buffers elsewhere.
        sequences = int(line["sequences"])
        rest = compiled_compute(model, prefill, sequences)
        auxiliary = rest - compiled_workspace(model, prefill, sequences) - 2 * planned
        once = planned if "counted once" in line["note"] else 2 * planned
        add("cache", cells + auxiliary)
        add("workspace", rest - auxiliary - 2 * planned + once)
        add("total", params + cells + rest - 2 * planned + once)
    elif line["workspace"]:
        add("workspace", planned)
    return Row(
        "MLC LLM", line["source"], line["version"], model.name, label,
        f"chunks of {prefill}, {tokens} tokens" if tokens else "", "", tuple(pairs),
        "" if web else line["note"], line,
    )  # fmt: skip


def _vllm(line: dict[str, str]) -> Row:
    model, label = spec(line["model"]), line["quantization"]
    tensor, length = int(line["tensor"]), int(line["length"] or 4096)
    pairs: list[Pair] = []
    images = "text only" not in line["note"]  # --language-model-only
    sizer, place = _pooling(line, model, tensor, images=images)
    fixed = sizer.fixed(Setting(label, length, 1, line["cache_type"]), place)
    if line["loaded"]:
        low, expected, high = (
            (size + tower // tensor) / GIB
            for size, tower in zip(fixed.weights, sizer.projector(label), strict=True)
        )
        pairs.append(Pair("weights", float(line["loaded"]), expected, low, high, 0.005))
    if line["activation"]:
        low, expected, high = (size / GIB for size in fixed.compute)
        pairs.append(Pair("activation", float(line["activation"]), expected, low, high, 0.005))
    if line["available"]:
        available = float(line["available"])
        pool = vllm_pool(
            model,
            length,
            dtype=line["cache_type"],
            tensor_parallel=tensor,
            batched_tokens=int(line["batched"] or 2048),
        )
        room, step = int(available * GIB), 0.005 / available
        if line["tokens"]:
            tokens = float(pool.tokens(room))
            measured = float(line["tokens"])
            pairs.append(Pair("tokens", measured, tokens, tokens, tokens, step * measured))
        if line["concurrency"]:
            users, measured = pool.requests(room), float(line["concurrency"])
            pairs.append(Pair("requests", measured, users, users, users, 0.005 + step * measured))
        if line["utilization"] and line["activation"] and line["loaded"]:
            used = float(line["total"]) * float(line["utilization"]) - available
            pairs.append(
                Pair("total", used, *(fixed.total(which) / GIB for which in (1, 0, 2)), 0.01)
            )
    setting = f"{line['device']}, {length}" + (f", tp {tensor}" if tensor > 1 else "")
    return Row(
        "vLLM", line["source"], line["version"], model.name, label, setting, "",
        tuple(pairs), line["note"], line,
    )  # fmt: skip


def _pooling(
    line: dict[str, str], model: ModelSpec, tensor: int, *, images: bool
) -> tuple[Pooling, Shards]:
    total = int(float(line["total"] or 80) * GIB)
    machine = Machine(
        gpus=tuple(
            Gpu(
                index=number,
                vendor="nvidia",
                name=line["device"],
                total_bytes=total,
                compute_capability=(9, 0) if line["device"] == "H100" else None,
            )
            for number in range(tensor)
        ),
        memory=Memory(total_bytes=512 * GIB, available_bytes=500 * GIB),
    )
    rows = int(line["sequences"]) if line["sequences"] else None
    sizer = Pooling(model, PAGED, devices(machine, PAGED), sequences=rows, images=images)
    return sizer, Shards(sizer.devices.gpus[:tensor], tensor, 1)
