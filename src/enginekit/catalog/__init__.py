"""Looking at a model, from a name to a file header, and saying what it is as a `ModelSpec`.

`describe()` takes what a user typed. The modules beneath it read one kind of source each: `gguf`,
`safetensors`, `hf_config`, `ollama_show`, `hub`, `names`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from enginekit.catalog.names import Match, catalog_names, find, get, suggestions
from enginekit.errors import ModelFileError
from enginekit.facts.model import ModelSpec
from enginekit.sizing.quantization import is_gguf

__all__ = [
    "Match",
    "catalog_names",
    "describe",
    "describe_file",
    "describe_folder",
    "describe_ollama",
    "describe_repo",
    "describe_url",
    "find",
    "get",
    "holds_gguf",
    "only_gguf",
    "suggestions",
]


def describe(model: str | os.PathLike[str]) -> ModelSpec:
    """Describe a model by catalog name or local path; no network is used.

    Args:
        model: a catalog name or alias (`llama3.1`, `qwen3:8b`, `Qwen/Qwen3-8B`), a GGUF file, a
            folder with config.json, or a config.json. A quantization in the name (`qwen3:8b-q8_0`)
            is kept in the spec.

    Raises:
        ModelNotFound: neither a path nor a name that the catalog knows; lists the nearest.
        ModelFileError: the file is broken, or is not a model.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if not isinstance(model, str) or _is_path(name, path):
        return describe_folder(path) if path.is_dir() else describe_file(path)
    if find(name, loosely=False) is None and not name.startswith(("hf://", "http")):
        if name.lower().endswith(".gguf"):
            return describe_file(path)
        if name and os.path.isfile(path / "config.json"):
            # A folder beside us, named without ./; the catalog's own names come first. Path.is_file
            # would raise for a name that is too long.
            return describe_folder(path)
    found = get(name)
    if not found.quantization:
        return found.spec
    names = found.spec.names
    wide = found.quantization in ("BF16", "F16", "F32") and "gguf" not in name.lower()
    if name.count("/") == 1 and ":" not in name and (wide or not is_gguf(found.quantization)):
        # Another repository of the same model: Qwen/Qwen3-8B-FP8, unsloth/gpt-oss-20b-BF16.
        held = "bf16" if wide else found.quantization
        names = replace(names, hf=name, hf_quantization=held)
    return replace(found.spec, quantization=found.quantization, names=names)


def _is_path(name: str, path: Path) -> bool:
    if name.startswith(("hf://", "http")):
        return False
    if name in (".", "..") or name.startswith(("/", "./", "../", "~")) or path.is_absolute():
        return True
    looks = name.lower().endswith((".gguf", ".json", ".safetensors")) or os.sep in name
    return looks and path.exists()


def describe_file(path: str | os.PathLike[str]) -> ModelSpec:
    """Describe a GGUF file (all parts of a split one), or a config.json with what lies beside it.

    A projector beside it (`mmproj` in its name) counts if the folder holds no other model; of
    several the one that `llama-server -hf` would take.

    Raises:
        ModelFileError: missing, broken, or of another kind.
    """
    place = Path(path)
    if place.name == "config.json" or place.suffix == ".safetensors":
        return describe_folder(place.parent)
    from enginekit.catalog import _gguf_spec, gguf
    from enginekit.catalog._projector import projector_beside

    spec = _gguf_spec.to_spec(gguf.read_file(place))
    beside = sorted(place.parent.glob("*.gguf"))
    projector = projector_beside(place.name, [other.name for other in beside])
    parts = set(gguf.split_names(place.name))
    if any("mmproj" not in other.name.lower() and other.name not in parts for other in beside):
        # A folder of several models: nobody can say whose projector it is.
        return spec
    if not projector:
        return spec
    found = place.parent / projector
    return replace(
        spec,
        projector_bytes=found.stat().st_size,
        projector_file=str(found),
        capabilities=replace(spec.capabilities, vision=True),
    )


def describe_folder(folder: str | os.PathLike[str]) -> ModelSpec:
    """Describe a checkpoint folder: config.json, and safetensors headers if they are there.

    Raises:
        ModelFileError: there is no config.json, or a file is broken.
    """
    from enginekit.catalog import hf_config, safetensors
    from enginekit.catalog._summary import with_weights

    place = Path(folder)
    config_path = place / "config.json"
    if not config_path.exists():
        if (place / "adapter_config.json").exists():
            base = _json(place / "adapter_config.json").get("base_model_name_or_path")
            raise ModelFileError(
                f"{place}: is an adapter (LoRA), no model",
                field="config.json",
                hint=f"enginekit plan {base}" if isinstance(base, str) and base else None,
            )
        return describe_file(only_gguf(place))
    if holds_gguf(place):
        return describe_file(only_gguf(place))
    config = _json(config_path)
    quant_path = place / "hf_quant_config.json"
    spec = hf_config.to_spec(
        config,
        name=place.name,
        source=str(config_path),
        quant_config=_json(quant_path) if quant_path.exists() else None,
        chat_template=_template(place),
    )
    if not any(place.rglob("*.safetensors")):
        return spec
    return with_weights(spec, *safetensors.read_folder(place))


def holds_gguf(place: Path) -> bool:
    """Whether the model of a folder is a GGUF file, whatever configuration lies beside it."""
    return any(place.glob("*.gguf")) and not any(place.rglob("*.safetensors"))


def only_gguf(place: Path) -> Path:
    """The one model of a folder of GGUF files; a projector beside it and further parts are no other.

    Raises:
        ModelFileError: there is none, or more than one.
    """
    from enginekit.catalog.gguf import split_names

    names = sorted(file.name for file in place.glob("*.gguf") if "mmproj" not in file.name.lower())
    found = [name for name in names if split_names(name)[0] == name]
    if len(found) == 1:
        return place / found[0]
    listed = f", and {len(found)} GGUF files: {', '.join(found)[:200]}" if found else ""
    raise ModelFileError(
        f"{place}: no config.json{listed}",
        field="config.json",
        hint=f"enginekit plan {place / found[0]}"
        if found
        else "name a GGUF file, or a folder with config.json",
    )


def _template(place: Path) -> str | None:
    jinja, tokenizer = place / "chat_template.jinja", place / "tokenizer_config.json"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8", errors="replace")[: 1 << 20]
    if not tokenizer.exists():
        return None
    found = _json(tokenizer).get("chat_template")
    return found if isinstance(found, str) else "[]" if found else ""


def _json(path: Path) -> dict[str, Any]:
    import json

    from enginekit.catalog._keys import MAX_JSON

    try:
        if not path.is_file():
            raise ModelFileError(f"{path}: is no regular file", field=path.name)
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(
                f"{path}: larger than {MAX_JSON >> 20} MiB, which no such file is", field=path.name
            )
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: {error}", field=path.name) from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: a JSON object was expected", field=path.name)
    return found


def describe_ollama(show: Mapping[str, Any], name: str, *, size: int = 0) -> ModelSpec:
    """Describe what Ollama's `/api/show` said of a model, filled up from the catalog.

    Args:
        show: the answer.
        name: the model's name on the server.
        size: bytes, as `/api/tags` lists it.

    Raises:
        ModelFileError: the answer has no `model_info`, or its values are absurd.
    """
    from enginekit.catalog import ollama_show

    found = find(name)
    known = found.spec if found else None
    return ollama_show.to_spec(show, name=name, size=size, known=known)


def describe_repo(
    repo: str,
    *,
    quantization: str = "",
    file: str = "",
    revision: str = "main",
    endpoint: str = "https://huggingface.co",
    token: str | None = None,
) -> ModelSpec:
    """Describe a Hugging Face repository by reading headers over the network, never the weights.

    Args:
        repo: `owner/name`.
        quantization: which GGUF of many.
        file: a file by name, instead.
        revision: branch, tag or commit.
        endpoint: the hub or a mirror.
        token: sent to `endpoint` only; nothing is taken from the environment.

    Raises:
        ModelNotFound: no such repository or file.
        ModelFileError: a header is broken.
        DownloadError: the hub cannot be reached or refuses.
    """
    from enginekit.catalog.hub import Hub

    hub = Hub(endpoint=endpoint, token=token)
    return hub.describe(repo, revision=revision, quantization=quantization, file=file)


def describe_url(url: str) -> ModelSpec:
    """Describe a GGUF file at an address (`https://…/model.gguf`) by its header, read by range.

    Raises:
        ModelNotFound: there is no such file.
        ModelFileError: it is broken or no GGUF.
        DownloadError: the host cannot be reached or refuses.
    """
    from enginekit.catalog import hub

    return hub.describe_url(url)
