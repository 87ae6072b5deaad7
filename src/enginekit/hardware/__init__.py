"""Looking at this computer, or at a description of another one.

    >>> from enginekit.hardware import preset
    >>> preset("4xrtx4090").gpus[0].name
    'NVIDIA GeForce RTX 4090'

`detect()` looks at this machine and never raises; `preset()` names a machine you plan for;
`machine_from_file()` reads one that you describe. All return the same `facts.machine.Machine`.
Names resolve on first use, so importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginekit.hardware.description import machine_from_dict, machine_from_file
    from enginekit.hardware.detection import detect
    from enginekit.hardware.presets import preset, preset_names

__all__ = ["detect", "machine_from_dict", "machine_from_file", "preset", "preset_names"]

_HOMES = {
    "detect": "detection",
    "machine_from_dict": "description",
    "machine_from_file": "description",
    "preset": "presets",
    "preset_names": "presets",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
