"""How fast: memory and compute rooflines times efficiencies that were measured.

Decoding reads every active weight and the whole past once per token, so bandwidth decides; reading
a prompt is limited by matrix multiplication. The bands are those of published measurements; an
estimate without a known bandwidth is None, not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from enginekit.facts.model import ModelSpec
from enginekit.sizing.outcome import Rate, Speed

Band = tuple[float, float, float]

DECODE: Final[Mapping[str, Band]] = MappingProxyType(
    {
        "cuda": (0.60, 0.70, 0.85),
        "metal": (0.45, 0.60, 0.85),
        "rocm": (0.40, 0.50, 0.60),
        "vulkan": (0.40, 0.50, 0.60),
        "xpu": (0.35, 0.50, 0.65),
        "cpu": (0.50, 0.60, 0.70),
    }
)
"""Share of nominal bandwidth that decoding reaches, by backend. Sources: llama.cpp issue 27525,
normiebench 3 and 40, dmatora 10 and 12, geerlingguy 43 and 48, llmfit's benchmark cache."""

PREFILL: Final[Mapping[str, Band]] = MappingProxyType(
    {
        # Integer kernels on quantized weights: an RTX 3080 passes its FP16 rate, a 4090 reaches 45 %.
        "cuda": (0.25, 0.45, 1.05),
        "metal": (0.50, 0.75, 0.90),
        "rocm": (0.20, 0.28, 0.40),
        "vulkan": (0.15, 0.25, 0.40),
        "xpu": (0.15, 0.25, 0.40),
        "cpu": (0.20, 0.35, 0.60),
    }
)
"""Share of the dense FP16 rate that reading a prompt reaches with quantized weights."""

PREFILL_WIDE: Final[Band] = (0.35, 0.45, 0.55)
"""The same for 16- and 8-bit weights on matrix units (vLLM)."""

UBATCH: Final = 512
"""Prompt tokens that llama.cpp computes together."""

_SLOW_LINK: Final = 25_000_000_000
_STEP_SECONDS: Final[Mapping[str, Band]] = MappingProxyType(
    {"metal": (1.0, 2.2, 2.8), "cuda": (0.2, 0.45, 2.0), "cpu": (0.0, 0.2, 1.0)}
)
"""Milliseconds per token for launches and sampling of small models; fades out at 4 GB read."""

_MOE: Final[Band] = (0.5, 0.6, 0.7)
_FINE_QUANTIZATIONS: Final = ("IQ1", "IQ2", "IQ3", "Q2_K", "Q3_K")
_FADE: Final = 4_000_000_000
_SSD: Final[Band] = (0.5e9, 3e9, 7e9)
_PCIE: Final[Band] = (12e9, 25e9, 50e9)


class Stage(NamedTuple):
    """What one device does for each token; devices of a layer split take turns."""

    backend: str
    bandwidth: int | None
    flops: int | None
    weights: int
    """Weight bytes read per step of one stream."""
    weights_batch: int
    """The same for a step of all users."""
    cache_per_token: float
    """Cache bytes read per token of past."""
    state: int = 0
    """Recurrent state, read and written each step."""
    share: float = 1.0
    """Of the model's multiplications."""
    parallel: int = 1
    """Devices that share this stage's work."""
    link: int | None = None
    held: int = 0
    """Weight bytes that lie here; a prompt's micro-batch sends those of the host to the GPU."""


NO_SPEED: Final = Speed(
    decode=None,
    decode_full=None,
    decode_total=None,
    prefill=None,
    load_seconds=(0.0, 0.0, 0.0),
    reason="it does not fit",
)
"""Of what cannot run."""


def estimate(
    spec: ModelSpec,
    stages: Sequence[Stage],
    *,
    quantization: str,
    context: int,
    users: int,
    load_bytes: int,
    startup: Band,
    wide: bool,
) -> Speed:
    """Speed of one placement.

    Args:
        spec: the model.
        stages: what each device reads and computes.
        quantization: label; the finest ones decode slower than their size on CPU and Metal.
        context: tokens of one user when full.
        users: concurrent streams.
        load_bytes: weights to read at start.
        startup: seconds beside reading.
        wide: whether 16- or 8-bit matrix units do the prompt (pool engines).
    """
    reached = [efficiency(stage, spec, quantization) for stage in stages]
    decode = total = full = None
    if spec.causal:  # an encoder reads, and writes no tokens
        decode = total = _rate(spec, stages, reached, min(context, 512), 1)
        full = _rate(spec, stages, reached, context, 1)
        if users > 1:
            total = _rate(spec, stages, reached, context // 2, users)
    if not spec.known_layout and full is not None and decode is not None:
        # The cache may be nothing, or that of every query head.
        most = context * max(spec.heads, 1) // max(spec.kv_heads, 1)
        slowest = _rate(spec, stages, reached, most, 1) or full
        full = Rate(low=slowest.low, expected=full.expected, high=decode.high)
    seconds = tuple(
        load_bytes / _SSD[2 - i] + load_bytes / _PCIE[2 - i] + startup[i] for i in range(3)
    )
    return Speed(
        decode=decode,
        decode_full=full,
        decode_total=total,
        prefill=_prefill(spec, stages, min(context, 2048) // 2, wide),
        load_seconds=(seconds[0], seconds[1], seconds[2]),
        reason=_reason(stages),
    )


def efficiency(stage: Stage, spec: ModelSpec, quantization: str) -> Band:
    """Share of nominal bandwidth that decoding reaches on a device."""
    low, expected, high = DECODE[stage.backend]
    if stage.backend == "metal" and stage.bandwidth and stage.bandwidth <= 160_000_000_000:
        expected = 0.80  # An M4 reaches 0.86, an M1 Max 0.57.
    if spec.experts is not None and stage.backend != "cpu":
        low, expected, high = low * _MOE[0], expected * _MOE[1], high * _MOE[2]
    if stage.backend in ("cpu", "metal") and quantization.startswith(_FINE_QUANTIZATIONS):
        # 0.44 against 0.58 on an M1 Max: unpacking, not memory, is what waits.
        low, expected = low * 0.7, expected * 0.76
    return low, expected, high


def _rate(
    spec: ModelSpec, stages: Sequence[Stage], reached: Sequence[Band], depth: int, users: int
) -> Rate | None:
    active = spec.params_active or spec.params_total
    seconds = [0.0, 0.0, 0.0]
    for stage, reach in zip(stages, reached, strict=True):
        if not stage.bandwidth:
            return None
        read = stage.weights if users == 1 else stage.weights_batch
        read += int((stage.cache_per_token * depth + 2 * stage.state) * users)
        exchange = _exchange(spec, stage, users)
        bandwidth, parallel = stage.bandwidth, stage.parallel
        # Low, expected and high one by one: a plan asks twice or more.
        steps = [
            read / (reach[0] * bandwidth * parallel),
            read / (reach[1] * bandwidth * parallel),
            read / (reach[2] * bandwidth * parallel),
        ]
        if users > 1 and stage.flops:
            work = 2 * active * stage.share * users
            for which, share in enumerate((0.3, 0.4, 0.5)):
                steps[which] = max(steps[which], work / (stage.flops * parallel * share))
        seconds[0] += steps[0] + exchange
        seconds[1] += steps[1] + exchange
        seconds[2] += steps[2] + exchange
    fade = max(0.0, 1 - sum([stage.weights for stage in stages]) / _FADE)
    band = _STEP_SECONDS.get(stages[-1].backend, _STEP_SECONDS["cuda"])
    return Rate(
        low=users / (seconds[0] + band[2] / 1000 * fade),
        expected=users / (seconds[1] + band[1] / 1000 * fade),
        high=users / (seconds[2] + band[0] / 1000 * fade),
    )


def _exchange(spec: ModelSpec, stage: Stage, users: int) -> float:
    """Two reductions per layer between tensor-parallel devices."""
    if stage.parallel < 2:
        return 0.0
    link = stage.link or _SLOW_LINK
    latency = 8e-6 if link > _SLOW_LINK else 20e-6
    size = 2 * spec.hidden * users
    return 2 * spec.n_layers * stage.share * (latency + size / link)


@lru_cache(maxsize=1024)
def _attention(spec: ModelSpec) -> int:
    """Operations per token and token of depth."""
    return sum(2 * layer.heads * layer.key_dim for layer in spec.layers)


def _prefill(spec: ModelSpec, stages: Sequence[Stage], depth: int, wide: bool) -> Rate | None:
    active = spec.params_active or spec.params_total
    if not active:
        return None
    work = 2 * active + _attention(spec) * depth
    found = []
    for which in range(3):
        seconds = 0.0
        for stage in stages:
            if not stage.flops:
                return None
            doing = stage
            if stage.backend == "cpu" and stages[0].backend != "cpu":
                doing = stages[0]
                seconds += stage.held / (UBATCH * _PCIE[which])
            gpu_wide = wide and doing.backend != "cpu"
            reach = (PREFILL_WIDE if gpu_wide else PREFILL[doing.backend])[which]
            seconds += work * stage.share / ((doing.flops or 1) * doing.parallel * reach)
        found.append(1 / seconds)
    # At best a split over several GPUs works on as many micro-batches at once.
    found[2] *= sum(1 for stage in stages if stage.backend != "cpu") or 1
    return Rate(low=found[0], expected=found[1], high=found[2])


def _reason(stages: Sequence[Stage]) -> str:
    parts = []
    for stage in stages:
        if not stage.bandwidth:
            return f"memory bandwidth of the {stage.backend} device is not known"
        parts.append(_reached(stage.backend, stage.bandwidth))
    return "; ".join(dict.fromkeys(parts))


@lru_cache(maxsize=1024)
def _reached(backend: str, bandwidth: int) -> str:
    low, _, high = DECODE[backend]
    return f"{backend} {bandwidth / 1e9:.0f} GB/s, {low:.0%} to {high:.0%} reached"
