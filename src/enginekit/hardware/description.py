"""A machine described in a file: JSON or TOML, the layout of `Machine.to_dict()`.

    name = "my next server"

    [[gpus]]
    index = 0
    vendor = "nvidia"
    name = "NVIDIA L40S"
    total_bytes = "46068 MiB"

    [cpu]
    physical_cores = 32

    [memory]
    total_bytes = "256 GiB"

A file must say how much memory the computer has, and `vendor` and `name` of each GPU; all else is
optional. A field that counts bytes takes a whole number or a text with a binary unit (`KiB`, `MiB`,
`GiB`, `TiB`) or a decimal one (`MB`, `GB`, `TB`, powers of 1000); a rate takes `GB/s`. What a data
sheet knows (bandwidth, compute capability, FP16 rate, and a size that all cards of the name have) is
filled in from the table if the file leaves it out. `count = 4` in a `[[gpus]]` table repeats it.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from enginekit.errors import ConfigError, describe_choices
from enginekit.facts.machine import Gpu, Machine
from enginekit.hardware._sound import of_doctor, sound, unique
from enginekit.hardware.tables import apple_row, gpu_row

_LARGEST_FILE = 4 * 1024 * 1024
_MOST_GPUS = 1024
_UNITS = {
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "mb/s": 10**6, "gb/s": 10**9, "tb/s": 10**12, "gflops": 10**9, "tflops": 10**12, "pflops": 10**15,
}  # fmt: skip


def machine_from_file(path: str | Path) -> Machine:
    """The machine that a JSON or TOML file describes (`--hardware FILE`).

    What `enginekit doctor --json` printed is such a file. A machine without a name gets the file's.

    Raises:
        ConfigError: the file cannot be read, is malformed, or leaves out a size that a plan needs;
            names the file and the field.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            raw = opened.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(raw) > _LARGEST_FILE:
        raise ConfigError(f"{file}: larger than 4 MiB; that is no description of a machine")
    if not raw.strip():
        raise ConfigError(
            f"{file}: is empty",
            hint="enginekit doctor --json > FILE    (writes the computer that it runs on)",
        )
    try:
        if file.suffix == ".toml":
            document = tomllib.loads(raw.decode("utf-8-sig"))
        else:
            # Any UTF, with its mark: PowerShell redirects in UTF-16.
            document = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON (a TOML file must end in .toml)"
        yaml = "; YAML is not read" if file.suffix in (".yaml", ".yml") else ""
        raise ConfigError(f"{file}: not valid {kind}{yaml}: {error}") from error
    machine = machine_from_dict(of_doctor(document), origin=str(file))
    if not machine.name:
        # `<(…)` is /dev/fd/63, which names nothing.
        unnamed = str(file).startswith(("/dev/", "/proc/"))
        machine = replace(machine, name="the machine described" if unnamed else file.name)
    return sound(machine, str(file))


def machine_from_dict(document: object, *, origin: str = "description") -> Machine:
    """The machine that plain JSON types describe; reads back what `Machine.to_dict()` wrote.

    Args:
        document: a mapping in the layout of this module's docstring.
        origin: what error messages call it.

    Raises:
        ConfigError: names the origin and the field, and what it should have been.
    """
    if not isinstance(document, Mapping):
        raise _wrong(origin, "", "a table of machine facts", document)
    plain = dict(document)
    plain["gpus"] = _repeated(plain.get("gpus", []), origin)
    machine = _build(Machine, plain, origin, "")
    assert isinstance(machine, Machine)
    return replace(machine, gpus=tuple(_filled(gpu, machine) for gpu in machine.gpus))


def _repeated(gpus: object, origin: str) -> list[object]:
    if not isinstance(gpus, (list, tuple)):
        raise _wrong(origin, "gpus", "a list of tables", gpus)
    found: list[object] = []
    for position, entry in enumerate(gpus):
        if not isinstance(entry, Mapping):
            raise _wrong(origin, f"gpus[{position}]", "a table", entry)
        count = entry.get("count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_GPUS:
            raise _wrong(
                origin, f"gpus[{position}].count", f"a number from 1 to {_MOST_GPUS}", count
            )
        if len(found) + count > _MOST_GPUS:
            raise _wrong(origin, "gpus", f"at most {_MOST_GPUS} devices", len(found) + count)
        one = {key: value for key, value in entry.items() if key != "count"}
        found.extend(
            {**one, "index": one.get("index", len(found)) if count == 1 else len(found)}
            for _ in range(count)
        )
    return found


def _filled(gpu: Gpu, machine: Machine) -> Gpu:
    """The device with what the tables know of its name and the file did not say."""
    changes: dict[str, Any] = {}
    how = dict(gpu.how)
    if gpu.vendor == "apple":
        chip = apple_row(gpu.name, gpu.cores, machine.memory.total_bytes)
        known: tuple[str, int | None, int | None, str] | None = (
            (chip.chip, chip.bandwidth, chip.fp16_flops, "") if chip else None
        )
    else:
        size = gpu.total_bytes if gpu.unified is None else None
        row = gpu_row(gpu.vendor, gpu.name, size)
        known = (row.name, row.bandwidth, row.fp16_flops, row.architecture) if row else None
    if known is None:
        return gpu
    name, bandwidth, flops, architecture = known
    for key, value in (("bandwidth_bytes_per_second", bandwidth), ("fp16_flops_per_second", flops)):
        if getattr(gpu, key) is None and value is not None and not gpu.mig_profile:
            changes[key] = value
            how[key] = f"table: {name}"
    capability = re.fullmatch(r"(\d+)\.(\d+)", architecture)
    if gpu.vendor == "nvidia" and gpu.compute_capability is None and capability:
        changes["compute_capability"] = (int(capability[1]), int(capability[2]))
        how["compute_capability"] = f"table: {name}"
    return replace(gpu, **changes, how=how) if changes else gpu


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _build(cls: Any, document: object, origin: str, where: str) -> Any:
    if not isinstance(document, Mapping):
        raise _wrong(origin, where, "a table", document)
    known = {item.name: item for item in fields(cls)}
    for key in document:
        if key not in known:
            near = _meant(str(key), tuple(known))
            raise ConfigError(
                f"{origin}: unknown field {_path(where, str(key))}; "
                + (f"did you mean {near}? Known" if near else "known")
                + f" here: {', '.join(known)}"
            )
    hints = _hints(cls)
    values = {
        key: _value(hints[key], value, origin, _path(where, key)) for key, value in document.items()
    }
    if "how" in known and "how" not in values and values:
        values["how"] = {"*": origin}
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{origin}: {_path(where, name)} is missing")
    return cls(**values)


_OTHER_WORDS = {"vram": "total_bytes", "ram": "memory", "size": "total_bytes", "total": "total_bytes",
                "free": "free_bytes", "bandwidth": "bandwidth_bytes_per_second",
                "cores": "physical_cores", "threads": "logical_cores"}  # fmt: skip


def _meant(key: str, known: tuple[str, ...]) -> str:
    """The field that an unknown key most likely stands for, or ""."""
    bare = re.sub(r"_?(bytes|gi?b|mi?b)$", "", key.lower())
    if _OTHER_WORDS.get(bare) in known:
        return _OTHER_WORDS[bare]
    near = describe_choices(known, key, 1)
    return near[0] if near and difflib.SequenceMatcher(None, near[0], key).ratio() > 0.6 else ""


def _value(hint: Any, value: object, origin: str, where: str) -> Any:
    origin_type = get_origin(hint)
    if origin_type in (Union, types.UnionType):
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        return None if value is None else _value(choices[0], value, origin, where)
    if origin_type is Literal:
        if value in get_args(hint) and not isinstance(value, bool):
            return value
        raise _wrong(origin, where, "one of " + ", ".join(map(str, get_args(hint))), value)
    if origin_type is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(origin, where, "a list", value)
        inner = get_args(hint)
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            raise _wrong(origin, where, f"a list of {len(inner)}", value)
        return tuple(
            _value(inner[0], item, origin, f"{where}[{n}]") for n, item in enumerate(value)
        )
    if is_dataclass(hint):
        return _build(hint, value, origin, where)
    if origin_type is not None:
        if not isinstance(value, Mapping):
            raise _wrong(origin, where, "a table of texts", value)
        return {str(key): str(item) for key, item in value.items()}
    return _scalar(hint, value, origin, where)


def _scalar(hint: Any, value: object, origin: str, where: str) -> Any:
    if hint is str:
        if isinstance(value, str):
            return value
        raise _wrong(origin, where, "a text", value)
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise _wrong(origin, where, "true or false", value)
    if hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9:
            return float(value)
        raise _wrong(origin, where, "a number", value)
    return _whole(value, origin, where)


def _whole(value: object, origin: str, where: str) -> int:
    if isinstance(value, str) and where.endswith(("_bytes", "_per_second")):
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z/]*)\s*", value)
        unit = _UNITS.get(match.group(2).lower(), 0) if match and match.group(2) else 1
        if match and unit:
            value = (
                round(float(match.group(1)) * unit)
                if "." in match.group(1)
                else int(match.group(1)) * unit
            )
    expected = (
        "a whole number of bytes or a text like 24 GiB"
        if where.endswith("_bytes")
        else "a whole number"
    )
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise _wrong(origin, where, expected, value)
    return value


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _wrong(origin: str, where: str, expected: str, value: object) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    place = f"{where} must be" if where else "the document must be"
    return ConfigError(f"{origin}: {place} {expected}, not {shown}")
