"""Published sizes of files, and what loads took as seen from outside, beside our estimates."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from enginekit.facts.machine import Gpu, Machine, Memory
from enginekit.facts.model import ModelSpec
from enginekit.sizing.allocate import Allocation, Setting
from enginekit.sizing.budget import devices
from enginekit.sizing.compute import llamacpp_compute
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.policy import CONTEXT, GIB, MIB, Policy
from enginekit.sizing.tensors import blueprint, parameters
from enginekit.sizing.terms import allocated_devices
from enginekit.sizing.weights import weights
from tests.sizing.published import FOLDER, spec

METADATA = 12 * MIB
"""The most that keys and vocabulary of a file take beside its tensors."""


@dataclass(frozen=True, slots=True)
class File:
    """One row of gguf.csv, in bytes."""

    source: str
    model: str
    label: str
    mix: str
    measured: float
    step: float
    """Half of the last printed digit."""
    beside: int
    """Metadata that the published number may include."""
    ours: int
    low: int
    high: int
    note: str

    @property
    def error(self) -> float:
        """Relative to the nearest size that the published number can mean; below 0: too low."""
        least = self.measured - self.step - self.beside
        nearest = min(max(float(self.ours), least), self.measured + self.step)
        return (self.ours - nearest) / self.measured


@dataclass(frozen=True, slots=True)
class Total:
    """One row of totals.csv, in MiB."""

    source: str
    model: str
    label: str
    backend: str
    setting: str
    measured: float
    ours: float
    note: str

    @property
    def error(self) -> float:
        """Relative; below 0 where ours is too low."""
        return (self.ours - self.measured) / self.measured


def files() -> list[File]:
    """Sizes of GGUF files."""
    return [_file(line) for line in _lines("gguf.csv")]


def repositories() -> list[File]:
    """Sizes of whole checkpoints in other formats, towers in 16 bits."""
    return [_repository(line) for line in _lines("repositories.csv")]


def totals() -> list[Total]:
    """GPU memory of whole loads."""
    return [_total(line) for line in _lines("totals.csv")]


def _lines(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def mtp_block(model: ModelSpec) -> int:
    """Weights of a multi-token-prediction block: a layer with attention, and what joins two rows."""
    last = max(number for number, layer in enumerate(model.layers) if layer.kv_heads)
    layer = sum(shape.elements for shape in blueprint(model) if last in shape.layers)
    return layer + 2 * model.hidden * model.hidden


def _file(line: dict[str, str]) -> File:
    model = spec(line["model"])
    matrix = False if line["mix"] == "static" else None
    found = weights(model, line["quantization"], imatrix=matrix)
    # llama.cpp skips the block when it loads, and so do our weights; the file has it.
    share = 1 + mtp_block(model) / parameters(model) if line["mtp"] else 1.0
    return File(
        line["source"], line["model"], line["quantization"], line["mix"],
        float(line["bytes"]) / share, float(line["step"]),
        METADATA if line["kind"] == "file" else 0,
        found.total, found.low, found.high, line["note"],
    )  # fmt: skip


def _repository(line: dict[str, str]) -> File:
    model = spec(line["model"])
    found, tower = weights(model, line["quantization"]), 2 * model.tower_params
    return File(
        line["source"], line["model"], line["quantization"], line["mix"],
        float(line["bytes"]), 0.0, 0,
        found.total + tower, found.low + tower, found.high + tower, line["note"],
    )  # fmt: skip


def _total(line: dict[str, str]) -> Total:
    model, label = spec(line["model"]), line["quantization"]
    slots, context = int(line["slots"]), int(line["context"])
    setting = f"{context}, {line['cache_type']}" + (f", {slots} slots" if slots > 1 else "")
    size = _served(line, model) if line["backend"] == "cuda" else _benched(line, model)
    return Total(
        line["source"], line["model"], label, line["backend"], setting,
        float(line["measured"]), size / MIB, line["note"],
    )  # fmt: skip


def _served(line: dict[str, str], model: ModelSpec) -> int:
    """A server's load as `plan()` shows it, on one GPU that holds everything."""
    major, minor = (int(part) for part in line["capability"].split("."))
    gpu = Gpu(
        index=0,
        vendor="nvidia",
        name="GPU",
        total_bytes=96 * GIB,
        compute_capability=(major, minor),
    )
    machine = Machine(gpus=(gpu,), memory=Memory(total_bytes=256 * GIB))
    found, ubatch = devices(machine, CONTEXT), int(line["ubatch"])
    sizer = Allocation(model, CONTEXT, found, ubatch, images=False)
    slots = int(line["slots"])
    asked = Setting(line["quantization"], int(line["context"]) // slots, slots, line["cache_type"])
    shown = allocated_devices(sizer, asked, sizer.whole(1))
    return sum(term.expected for term in shown[0].terms.values())


def _benched(line: dict[str, str], model: ModelSpec) -> int:
    """llama-bench's load: logits of every token. A vendor's weights are those of its file."""
    found = weights(model, line["quantization"])
    # The output matrix of a tied table is a second copy; none of these models has one.
    table = 0 if line["host"] == "yes" else found.embedding
    size = (int(line["tensors"]) if line["mix"] == "vendor" else found.total) - table
    cached = llamacpp_cache(model, int(line["context"]), type_k=line["cache_type"])
    compute = llamacpp_compute(
        model,
        cached.context,
        ubatch=int(line["ubatch"]),
        outputs=int(line["outputs"]),
        sliding_cells=cached.sliding_cells,
        flash=line["flash"] == "yes",
    )
    policy: Policy = CONTEXT
    return size + cached.total + compute.total + policy.runtime[line["backend"]][1]
