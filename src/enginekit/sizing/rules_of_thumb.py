"""Rules of thumb about model sizes and hardware, beside what the arithmetic says.

The figures on the left are those that guides repeat (decimal GB). A model of the catalog stands for
each size, so that the exact number is one of a real file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from enginekit.facts.machine import Machine
from enginekit.facts.model import ModelSpec
from enginekit.sizing.kv_cache import pad
from enginekit.sizing.outcome import Plan
from enginekit.sizing.plan import plan
from enginekit.sizing.policy import CONTEXT, PAGED, Policy
from enginekit.sizing.tables import cache_table, weight_table

GB: Final = 10**9
BITS: Final[Mapping[int, str]] = {16: "F16", 8: "Q8_0", 4: "Q4_K_M", 2: "Q2_K"}
"""What each column means in a real file."""

SIZES: Final[tuple[tuple[str, str, Mapping[int, float]], ...]] = (
    ("1B", "llama3.2-1b", {16: 2, 8: 1}),
    ("1.5B", "qwen2.5-1.5b", {16: 3, 8: 1.5, 4: 0.8}),
    ("3B", "llama3.2-3b", {16: 6, 8: 3, 2: 1}),
    ("8B", "llama3.1-8b", {16: 16, 8: 8, 4: 4.5, 2: 2.5}),
    ("14B", "phi4", {16: 28, 8: 14, 4: 8, 2: 4.5}),
    ("30B", "qwen3-32b", {16: 60, 8: 30, 4: 18, 2: 10}),
    ("70B", "llama3.1-70b", {16: 140, 8: 70, 4: 40, 2: 20}),
    ("120B", "mistral-large-123b", {16: 240, 8: 120, 4: 70, 2: 35}),
    ("405B", "llama3.1-405b", {16: 810, 8: 405}),
    ("671B", "deepseek-v3", {16: 1342, 8: 671}),
    ("1T+", "kimi-k2", {16: 2000, 8: 1000, 4: 500, 2: 250}),
)
"""Size class, catalog model, and the rule's GB by bits; a missing one has no common rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One size at one width, in bytes."""

    rule: int | None
    exact: int

    @property
    def error(self) -> float | None:
        """How far the rule is from the truth, as a fraction; negative: too low."""
        return self.rule / self.exact - 1 if self.rule is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size class."""

    size: str
    model: str
    params: int
    context: int
    """What the model was trained for, in tokens."""
    cells: Mapping[int, Cell]
    overhead: Mapping[int, float]
    """Context to cache and compute as a fraction of the 4-bit weights, one slot."""
    smallest: str
    """The first machine of the list that holds the 4-bit file with 8192 tokens on its GPUs."""


LADDER: Final = (
    "rtx3060-12", "rtx4080", "rtx4090", "rtx5090", "m3-pro-36", "2xrtx3090", "l40s", "h100",
    "rtx-pro-6000", "m3-max-128", "4xrtx4090", "mi300x", "m3-ultra-512", "8xh100", "8xh200",
    "8xmi300x", "8xb300",
)  # fmt: skip
"""Machines in about the order of what they cost."""


def matrix(
    describe: Callable[[str], ModelSpec], machine: Callable[[str], Machine]
) -> tuple[Row, ...]:
    """The whole table; `describe` and `machine` look up names."""
    machines = [(name, machine(name)) for name in LADDER]
    rows = []
    for size, name, rules in SIZES:
        spec = describe(name)
        cells = {
            bits: Cell(
                rule=round(rules[bits] * GB) if bits in rules else None,
                exact=weight_table(spec, label).found.total,
            )
            for bits, label in BITS.items()
        }
        rows.append(
            Row(
                size=size,
                model=name,
                params=spec.params_total,
                context=spec.context_length,
                cells=cells,
                overhead={context: overhead(spec, context) for context in (8192, 32768, 131072)},
                smallest=_smallest(spec, machines),
            )
        )
    return tuple(rows)


def overhead(spec: ModelSpec, context: int) -> float:
    """Cache and compute of one slot as a fraction of the Q4_K_M weights."""
    from enginekit.sizing.compute import llamacpp_compute

    cache = cache_table(spec, "f16")
    context = pad(context)
    spans = cache.spans(context, 1, 512)
    bytes_ = sum(sums[-1] * cells for _, sums, cells in spans) + cache.state[-1]
    sliding = max((cells for window, _, cells in spans if window), default=0)
    bytes_ += llamacpp_compute(spec, context, sliding_cells=sliding).total
    return bytes_ / weight_table(spec, "Q4_K_M").found.total


def _smallest(spec: ModelSpec, machines: list[tuple[str, Machine]]) -> str:
    for name, machine in machines:
        made = plan(spec, machine, quantization="Q4_K_M", context=8192, images=False)
        if made.fits and made.where in ("one GPU", "several GPUs"):
            return name
    return "none of the list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence that guides repeat, and the plan that tests it."""

    sentence: str
    model: str
    quantization: str
    hardware: str
    policy: Policy = CONTEXT
    context: int | None = None


CLAIMS: Final = (
    Claim(sentence="a Mac with 8 GB runs an 8B model at 4 bits", model="llama3.1-8b",
          quantization="Q4_K_M", hardware="m1-8", context=4096),
    Claim(sentence="an RTX 4070 is for 14B models", model="qwen2.5-14b",
          quantization="Q4_K_M", hardware="rtx4070"),
    Claim(sentence="an RTX 4080 is for 14B models", model="qwen2.5-14b",
          quantization="Q4_K_M", hardware="rtx4080"),
    Claim(sentence="an RTX 3090 or 4090 is for 30B models", model="qwen3-32b",
          quantization="Q4_K_M", hardware="rtx4090"),
    Claim(sentence="the same for a 35B model without grouped heads", model="command-r-35b",
          quantization="Q4_K_M", hardware="rtx4090"),
    Claim(sentence="two RTX 3090 run 70B at 4 bits", model="llama3.1-70b",
          quantization="Q4_K_M", hardware="2xrtx3090"),
    Claim(sentence="four RTX 4090 run 123B at 4 bits", model="mistral-large-123b",
          quantization="Q4_K_M", hardware="4xrtx4090"),
    Claim(sentence="two A100 80 GB run 123B at 4 bits", model="mistral-large-123b",
          quantization="Q4_K_M", hardware="2xa100-80"),
    Claim(sentence="eight 80 GB GPUs hold DeepSeek-V3 in FP8", model="deepseek-v3",
          quantization="fp8-block", hardware="8xh100", policy=PAGED, context=4096),
)  # fmt: skip


def check(
    claim: Claim, describe: Callable[[str], ModelSpec], machine: Callable[[str], Machine]
) -> Plan:
    """The plan behind a claim."""
    return plan(
        describe(claim.model),
        machine(claim.hardware),
        policy=claim.policy,
        quantization=claim.quantization,
        context=claim.context,
    )


def to_dict(row: Row) -> dict[str, Any]:
    """Plain JSON types, sizes in bytes."""
    return {
        "size": row.size,
        "model": row.model,
        "params": row.params,
        "context": row.context,
        "bits": {
            str(bits): {"rule": cell.rule, "exact": cell.exact, "error": cell.error}
            for bits, cell in row.cells.items()
        },
        "overhead": {str(context): share for context, share in row.overhead.items()},
        "smallest": row.smallest,
    }
