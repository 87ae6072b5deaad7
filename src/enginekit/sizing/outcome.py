"""What a plan says: per device and term, low, expected and high, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from enginekit.sizing.policy import Backend

Verdict = Literal["fits", "tight", "no"]
"""`fits`: the expected size leaves the margin free, and the high end can still be had. `tight`: it
should load, but into the margin, or only if the estimate is not low. `no`: it should not load."""

Where = Literal["one GPU", "several GPUs", "experts in RAM", "partly on GPU", "CPU", "nowhere"]

TERMS = ("weights", "cache", "state", "compute", "projector", "runtime")
"""The order in which terms are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Bytes with a range. `reason` says why the range is as wide as it is."""

    low: int
    expected: int
    high: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One device, what goes there and what it has. All sizes in bytes."""

    name: str
    index: int
    """GPU index, -1 for host memory."""
    backend: Backend
    terms: Mapping[str, Amount]
    total: int
    free: int
    limit: int
    """The most the engine can take: free now, or its own cap."""
    margin: int
    budget_reason: str
    layers: tuple[int, int] | None = None
    """First layer and the one after the last that the device holds."""
    pool: int = 0
    """Bytes of cache blocks that a pool engine sets aside here; the plan needs `cache` of them."""

    @property
    def used(self) -> Amount:
        """All terms together."""
        return Amount(
            low=sum(term.low for term in self.terms.values()),
            expected=sum(term.expected for term in self.terms.values()),
            high=sum(term.high for term in self.terms.values()),
        )

    @property
    def spare(self) -> int:
        """What the expected size leaves of the limit less margin; negative: so much is missing."""
        return self.limit - self.margin - sum([term.expected for term in self.terms.values()])


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationFit:
    """One quantization of the ladder with the plan's context and users."""

    name: str
    weight_bytes: int
    verdict: Verdict
    """Wholly on the GPUs (or on the CPU where there are none)."""
    with_host: bool
    """Whether it would fit with a part in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """One change that makes the model fit, cheapest loss first."""

    change: str
    """`context 16384`, `q8_0 cache`, `Q3_K_M`, …"""
    cost: str
    """What is lost, in a few words."""
    flags: str = ""
    where: Where = "one GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second with a band."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Rooflines times measured efficiency; None where a bandwidth or rate is unknown, and for what an
    encoder does not do."""

    decode: Rate | None
    """Tokens per second of one stream with a short past."""
    decode_full: Rate | None
    """The same with the context full."""
    decode_total: Rate | None
    """All `users` together at half-full contexts; equals one stream for one user."""
    prefill: Rate | None
    """Prompt tokens per second."""
    load_seconds: tuple[float, float, float]
    """Reading the weights from an SSD and starting: low, expected, high."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Whether and how a model runs on a machine under one engine's rules."""

    model: str
    machine: str
    policy: str
    quantization: str
    context: int
    """Tokens per user."""
    context_reason: str
    users: int
    cache_type: str
    verdict: Verdict
    where: Where
    split: str
    """Which layers or shards go where, in words."""
    devices: tuple[DevicePlan, ...]
    binding: str
    """The device and term that decide."""
    largest_context: int
    """Per user, with these users and this quantization and the margins left free; 0: none does."""
    most_users: int
    """At this context and with the margins left free; with this very split where it fits and a part
    is in host memory."""
    quantizations: tuple[QuantizationFit, ...]
    fixes: tuple[Fix, ...]
    speed: Speed
    command: str
    notes: tuple[str, ...]
    weights_method: str
    host_layers: int = 0
    host_expert_layers: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    pool_tokens: int = 0
    """Pool engines: tokens the cache holds, all GPUs of one replica together."""

    @property
    def room(self) -> str:
        """Largest context and most users in words; a nought is told as what it means."""
        among = f" for {self.users} users" if self.users > 1 else ""
        context = (
            f"context {self.largest_context} tokens"
            if self.largest_context
            else f"no context{among}"
        )
        users = f"{self.most_users or 'no'} user{'' if self.most_users == 1 else 's'}"
        shown = f"{context}; {users} at {self.context} tokens"
        if not self.devices:
            return "nothing: there is no device to run it on"
        if self.verdict == "tight":
            return f"with the margin left free: {shown}"
        if self.verdict == "no" and not self.largest_context:
            fewer = f"; {users} at {self.context} tokens" if self.most_users else ""
            return f"no context fits{among} beside the weights and the margin{fewer}"
        return shown

    @property
    def fits(self) -> bool:
        """Whether it runs with its margins."""
        return self.verdict == "fits"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: every field, sizes in bytes, plus `fits` and the sums per device."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        plain["fits"] = self.fits
        for shown, device in zip(plain["devices"], self.devices, strict=True):
            shown["used"] = _plain(device.used)
            shown["spare"] = device.spare
        return plain


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
