"""Flags of a pool engine that say how many requests it takes and which GPUs it sees."""

from __future__ import annotations

from collections.abc import Iterator

from enginekit.sizing.allocate import Setting
from enginekit.sizing.pool import Pooling, Shards


def rows(sizer: Pooling, setting: Setting, place: Shards) -> Iterator[str]:
    """The flags of a batch that is not the engine's own."""
    flags = sizer.policy.flags
    usual = sizer.default_rows(place)
    tokens, sequences = sizer.rows(place, setting.users)
    many, admits = sizer.served(setting), "admitted" in flags
    if many:
        yield flags["serves_many"]
    if many or sizer.own_rows is not None or (sequences > usual[1] and not admits):
        yield flags.get("sequences", "").format(sequences)
    if setting.users > usual[1]:
        yield flags.get("admitted", "").format(setting.users)
    if tokens > usual[0]:
        yield flags.get("batched", "").format(tokens)


def visible(sizer: Pooling, place: Shards) -> str:
    """Which GPUs the engine is shown, where those are not the first ones; it would take these."""
    chosen = sorted(gpu.index for gpu in place.gpus)
    every = sizer.devices.gpus
    sliced = len({gpu.index for gpu in every}) < len(every)
    if place.gpus[0].host or sliced or chosen == list(range(len(chosen))):
        return ""
    spelling = sizer.policy.visible.get(place.gpus[0].backend, "")
    shown = spelling.format(",".join(map(str, chosen)))
    alike = len({gpu.name for gpu in every}) == 1
    # CUDA counts the fastest first, unless it is told to count as the driver does.
    counted = shown.startswith("CUDA") and not alike
    return f"CUDA_DEVICE_ORDER=PCI_BUS_ID {shown}" if counted else shown
