"""From names to a plan: look up the model, the machine and the engine, then compute.

The only part of planning that touches files, devices or the network (`hf://` names and addresses).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from enginekit import registry
from enginekit.catalog import _hub, holds_gguf, only_gguf
from enginekit.catalog._hub_names import HubName, hub_name
from enginekit.errors import ConfigError, DownloadError, ModelFileError
from enginekit.facts.machine import Machine
from enginekit.facts.model import ModelSpec
from enginekit.kit import embedded
from enginekit.kit.bandwidth import with_bandwidth
from enginekit.kit.serving import SCHEMES, is_address, is_file_address, model_of_server
from enginekit.sizing.calibration import Calibration, Measurement, calibrate
from enginekit.sizing.outcome import Plan
from enginekit.sizing.plan import plan as compute
from enginekit.sizing.policy import Policy, policy_of

DEFAULT_ENGINE = "embedded"


def plan(
    model: str | os.PathLike[str] | ModelSpec,
    *,
    hardware: str | os.PathLike[str] | Machine | None = None,
    engine: str | None = None,
    engine_version: str = "",
    quantization: str | None = None,
    context: int | None = None,
    users: int | None = None,
    cache_type: str | None = None,
    ubatch: int | None = None,
    sequences: int | None = None,
    flash: bool = True,
    eager: bool = False,
    images: bool | None = None,
    calibrated: bool = True,
) -> Plan:
    """Say whether and how a model runs on a machine under an engine.

    Args:
        model: a catalog name, GGUF file, folder, `hf://owner/repo[:QUANT]` or a page of the Hub, the
            address of a GGUF file (`https://host/file.gguf`) or of a running server
            (`http://host:port[#NAME]`), or facts at hand.
        hardware: a preset (`4xrtx4090`), a JSON or TOML file, facts; None: this computer.
        engine: engine name; None: the one of that server, else the embedded llama.cpp.
        engine_version: the server's version; loads measured with exactly it correct the estimate.
            "": for the embedded engine on this computer the installed one, else no correction.
        quantization: label or format; None: the model's own, else the engine's usual one.
        context: tokens per user; None: those of that server, else what the engine would choose.
        users: concurrent requests of full length; None: 1, or those of that server.
        cache_type: element type of K and V (`q8_0`, `fp8`).
        ubatch: llama.cpp's micro-batch.
        sequences: `max_num_seqs` of pool engines.
        flash: whether flash attention is on.
        eager: without CUDA graphs.
        images: whether a model that sees or hears loads what it does so with; None: whether that
            server did, or the engine does by itself. The embedded one does not: it is started with
            the model's own file alone.
        calibrated: let loads measured on this computer (`enginekit plan --measure`) correct the plan.

    Raises:
        ConfigError: an unknown engine, preset, quantization or cache type, or a number below one.
        ModelNotFound: the catalog does not know the name.
        ModelFileError: a file is broken or no model.
        DownloadError: a repository cannot be read.
    """
    return answer(
        question(model, hardware=hardware, engine=engine, engine_version=engine_version),
        quantization=quantization,
        context=context,
        users=users,
        cache_type=cache_type,
        ubatch=ubatch,
        sequences=sequences,
        flash=flash,
        eager=eager,
        images=images,
        calibrated=calibrated,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A model, a machine and an engine that were looked up, for any number of plans."""

    spec: ModelSpec
    machine: Machine
    engine: str
    engine_version: str
    """"" where loads measured on this computer say nothing."""
    source: str
    """The local file or folder that commands name."""
    context: int | None = None
    users: int = 1
    """What is planned for where nobody asks for anything: of a running server, as it runs."""
    note: str = ""
    named: str = ""
    """A GGUF repository or file by name, of which only the model is known."""
    images: bool = True
    """Whether what sees or hears is loaded unless a plan is asked for otherwise."""


def question(
    model: str | os.PathLike[str] | ModelSpec,
    *,
    hardware: str | os.PathLike[str] | Machine | None = None,
    engine: str | None = None,
    engine_version: str = "",
) -> Question:
    """Look at model and machine once; arguments and errors are those of `plan`."""
    images: bool | None = None
    context, users, note = None, 1, ""
    if isinstance(model, str) and _is_server(model):
        served = model_of_server(model)
        spec, source = served.spec, served.path
        if engine in (None, served.engine):
            context, users, note = served.context, served.users, served.note
        engine, engine_version = engine or served.engine, engine_version or served.version
        images = served.images
        if images is False and engine == served.engine:
            # What a server does not see with it has not loaded, whatever the model could see with.
            spec = replace(spec, projector_bytes=0, projector_files=(), tower_params=0)
    else:
        spec = model if isinstance(model, ModelSpec) else model_of(model)
        source = "" if isinstance(model, ModelSpec) else _local(model)
    machine = hardware if isinstance(hardware, Machine) else machine_of(hardware)
    if hardware is None and machine.memory.limit_bytes is None:
        raise ConfigError(
            "how much memory this computer has could not be read (enginekit doctor shows why)",
            hint="enginekit plan MODEL --hardware FILE    (FILE: JSON or TOML; or a name from "
            "enginekit hardware)",
        )
    name = engine or DEFAULT_ENGINE
    if not engine_version and hardware is None and name in registry.LAUNCHED:
        engine_version = embedded.installed_version()
    return Question(
        spec=spec,
        machine=machine,
        engine=name,
        engine_version=engine_version,
        source=source,
        context=context,
        users=users,
        note=note,
        named="" if source else _gguf_name(model, spec),
        images=name not in registry.LAUNCHED if images is None else images,
    )


def answer(
    asked: Question,
    *,
    quantization: str | None = None,
    context: int | None = None,
    users: int | None = None,
    cache_type: str | None = None,
    ubatch: int | None = None,
    sequences: int | None = None,
    flash: bool = True,
    eager: bool = False,
    images: bool | None = None,
    calibrated: bool = True,
) -> Plan:
    """One plan; opens no file but that of measured loads. Arguments and errors are those of `plan`."""
    name, calibration = asked.engine, None
    if calibrated and asked.engine_version:
        calibration = _calibration(name, asked.engine_version, asked.spec, asked.machine)
    own = context is None and users is None
    try:
        made = compute(
            asked.spec,
            asked.machine,
            policy=engine_policy(name),
            quantization=quantization,
            context=asked.context if context is None else context,
            users=asked.users if users is None else users,
            cache_type=cache_type,
            ubatch=ubatch,
            sequences=sequences,
            flash=flash,
            eager=eager,
            images=asked.images if images is None else images,
            calibration=calibration,
            source=asked.source,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if own and asked.context is not None:
        notes = (asked.note, *made.notes) if asked.note else made.notes
        made = replace(made, context_reason="as the server runs", notes=notes)
    if asked.named and "gguf" not in engine_policy(name).formats:
        said = f"{asked.named} is not loaded: planned as the publisher's checkpoint"
        made = replace(made, notes=(*made.notes, said))
    return made


def _gguf_name(model: str | os.PathLike[str] | ModelSpec, spec: ModelSpec) -> str:
    if not isinstance(model, str) or _is_server(model):
        return ""
    return model if "gguf" in model.lower() and spec.format != "gguf" else ""


def model_of(model: str | os.PathLike[str]) -> ModelSpec:
    """Facts of a model by name, path, address of a GGUF file or of a server, or name on the Hub.

    A name on the Hub is `hf://owner/repo[:QUANT]`, `hf://owner/repo/file.gguf[@REVISION]` or an
    address of its site; it is read from `HF_ENDPOINT` with the user's token, and not at all under
    `HF_HUB_OFFLINE`. That variable is about the Hub: other hosts are asked in spite of it.
    """
    from enginekit import catalog

    name = os.fspath(model)
    if _is_server(name):
        return model_of_server(name).spec
    wanted = _on_hub(name)
    if wanted is None:
        return catalog.describe_url(name) if is_file_address(name) else catalog.describe(model)
    known = catalog.find(wanted.repo)
    try:
        _hub.check_online()
        return catalog.describe_repo(
            wanted.repo,
            quantization=wanted.quantization,
            file=wanted.file,
            revision=wanted.revision,
            endpoint=_hub.endpoint(),
            token=_hub.token(),
        )
    except DownloadError as error:
        if known is None or getattr(error, "status", None):
            raise
        raise DownloadError(
            error.message, hint=f"enginekit plan {known.name}    (the catalog knows that model)"
        ) from error


def _on_hub(name: str) -> HubName | None:
    """The repository that a name means; names that the catalog knows are its own."""
    from enginekit import catalog

    if not name.startswith(("hf://", *SCHEMES)) and catalog.find(name) is not None:
        return None
    try:
        endpoint = _hub.endpoint()
    except ConfigError:  # said when the Hub is asked: a file or a server needs no endpoint
        endpoint = ""
    return hub_name(name, endpoint)


def _is_server(name: str) -> bool:
    return is_address(name) and not is_file_address(name) and _on_hub(name) is None


def machine_of(hardware: str | os.PathLike[str] | None) -> Machine:
    """Facts of a machine: None is this one, a file is read, else a preset.

    Of this one the memory bandwidth is measured, once, where nothing else tells it.
    """
    from enginekit import hardware as looking

    if hardware is None:
        return with_bandwidth(looking.detect())
    name = os.fspath(hardware)
    # A pipe is a file too: --hardware <(ssh other enginekit doctor --json). os.path.exists takes
    # any text, where a Path raises for one that is too long.
    written = name.endswith((".json", ".toml", ".yaml", ".yml")) or os.sep in name
    if not isinstance(hardware, str) or written or os.path.exists(name):
        return looking.machine_from_file(name)
    return looking.preset(name)


def engine_policy(engine: str) -> Policy:
    """How an engine takes memory.

    Raises:
        ConfigError: no engine of that name.
    """
    return policy_of(registry.engine_class(engine).profile)


def _local(model: str | os.PathLike[str]) -> str:
    """The file or folder to name in a command; of an address the file that it would be saved as."""
    if isinstance(model, str) and _on_hub(model) is not None:
        return ""
    if isinstance(model, str) and is_file_address(model):
        return urlsplit(model).path.rpartition("/")[2]
    path = Path(os.fspath(model)).expanduser()
    if not os.path.exists(path):
        return ""
    if path.is_dir() and (holds_gguf(path) or not (path / "config.json").exists()):
        try:
            return str(only_gguf(path))
        except ModelFileError:  # a folder that only has the name of a model of the catalog
            return ""
    return os.fspath(model)


def calibration_file() -> Path:
    """Where measured loads are kept, one JSON object a line."""
    from enginekit.catalog.sources import cache_dir

    return cache_dir() / "measured.jsonl"


def measurements() -> list[Measurement]:
    """Loads measured on this computer; lines that cannot be read are passed over."""
    import json

    try:
        lines = calibration_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            one = Measurement(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        if type(one.estimated) is int and type(one.measured) is int:
            found.append(one)
    return found


def remember(measured: Measurement) -> None:
    """Keep one measured load for later plans."""
    import json

    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(measured.to_dict()) + "\n")


def _calibration(engine: str, version: str, spec: ModelSpec, machine: Machine) -> Calibration:
    from enginekit.sizing.budget import devices

    gpus = devices(machine, engine_policy(engine)).gpus
    return calibrate(
        measurements(),
        engine=registry.LAUNCHED.get(engine, engine),
        version=version,
        architecture=spec.architecture,
        backend=gpus[0].backend if gpus else "cpu",
    )
