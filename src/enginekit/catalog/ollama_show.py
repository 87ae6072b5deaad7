"""Ollama's `/api/show` answer to `ModelSpec`.

The answer carries the GGUF's own metadata, so the same rules apply. What it leaves out (the
tokenizer's arrays, and without `verbose` the tensors) is taken from the catalog where the model is
there with the same dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from enginekit.catalog import _gguf_spec
from enginekit.catalog.gguf import GgufHeader, TensorInfo, Value
from enginekit.errors import ModelFileError
from enginekit.facts.model import Capabilities, ModelNames, ModelSpec, Origin
from enginekit.sizing.quantization import BLOCKS, gguf_label

_PARAMETERS = re.compile(r"^\s*([\d.]+)\s*([KMBT])\s*$", re.IGNORECASE)
_SCALE = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def to_spec(
    show: Mapping[str, Any], *, name: str, size: int = 0, known: ModelSpec | None = None
) -> ModelSpec:
    """Describe the model of an `/api/show` answer.

    Args:
        show: the answer, plain or with `verbose`.
        name: the model's name on that server.
        size: bytes of the model as `/api/tags` lists it, if known.
        known: the catalog's spec of the same model, to fill what the answer leaves out.

    Raises:
        ModelFileError: the answer has no `model_info`, or its values are absurd.
    """
    source = f"ollama show {name}"
    info = show.get("model_info")
    if not isinstance(info, Mapping):
        raise ModelFileError(
            f"{source}: no model_info; the server is older than 0.3.13 or the model is remote",
            field="model_info",
        )
    metadata, counts = _metadata(info)
    tensors = _tensors(show.get("tensors"), source)
    header = GgufHeader(
        source=source,
        version=3,
        little_endian=True,
        metadata=MappingProxyType(metadata),
        counts=MappingProxyType(counts),
        tensors=tensors,
        data_offset=0,
        data_bytes=sum(tensor.bytes for tensor in tensors),
        end=size,
        size=size or None,
    )
    spec = _gguf_spec.to_spec(header, name=name)
    details = show.get("details")
    details = details if isinstance(details, Mapping) else {}
    label = gguf_label(str(details.get("quantization_level") or "")) or spec.quantization
    params = spec.params_total or _parameters(info, details)
    spec = replace(
        spec,
        quantization=label,
        params_total=params,
        params_active=spec.params_active if tensors else 0,
        # Without tensors the file's size is all there is: a tokenizer's few MiB too high.
        weight_bytes=spec.weight_bytes or size,
        file_bytes=size,
        names=ModelNames(ollama=name),
        family=str(details.get("family") or ""),
        capabilities=_capabilities(show, spec.capabilities),
        chat_template=bool(show.get("template")),
    )
    if not tensors and known is not None:
        spec = _filled(spec, known)
    return spec if spec.projector_bytes else _seeing(spec, show, known, listed=not tensors)


def _seeing(
    spec: ModelSpec, show: Mapping[str, Any], known: ModelSpec | None, *, listed: bool
) -> ModelSpec:
    """The spec with its projector, a layer of its own or inside the file, apart from the weights.

    Args:
        spec: the text model; with `listed` its weights are all that `/api/tags` lists.
        show: the answer.
        known: the catalog's spec, if it has the model.
        listed: whether the answer had no tensors.
    """
    info = show.get("projector_info")
    count = info.get("general.parameter_count") if isinstance(info, Mapping) else None
    if not isinstance(count, int | float) or not 0 < count < 1 << 40:
        same = known is not None and _same(known, spec) and spec.capabilities.vision
        count = known.tower_params if known is not None and same else 0
    size = 2 * int(count)
    apart = listed and size < spec.weight_bytes
    return replace(
        spec,
        projector_bytes=size,
        weight_bytes=spec.weight_bytes - size if apart else spec.weight_bytes,
    )


def _metadata(info: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, int]]:
    metadata: dict[str, Value] = {}
    counts: dict[str, int] = {}
    for key, value in info.items():
        if isinstance(value, bool | int | float | str):
            metadata[key] = value
        elif isinstance(value, list):
            counts[key] = len(value)
            if len(value) <= 8192 and all(isinstance(x, bool | int | float) for x in value):
                metadata[key] = tuple(value)
    return metadata, counts


def _tensors(listed: object, source: str) -> tuple[TensorInfo, ...]:
    if not isinstance(listed, list):
        return ()
    found: list[TensorInfo] = []
    for row in listed:
        shape = row.get("shape") if isinstance(row, Mapping) else None
        block = BLOCKS.get(str(row.get("type")).upper()) if isinstance(row, Mapping) else None
        sizes = shape if isinstance(shape, list) and shape else [0]
        if block is None or not all(isinstance(x, int) and 0 < x < 1 << 40 for x in sizes):
            raise ModelFileError(f"{source}: tensor {row!r:.80} is malformed", field="tensors")
        elements = 1
        for each in sizes:
            elements *= each
        found.append(
            TensorInfo(
                name=str(row.get("name")),
                shape=tuple(sizes),
                type=block.name,
                offset=0,
                elements=elements,
                bytes=block.size(elements),
            )
        )
    return tuple(found)


def _parameters(info: Mapping[str, Any], details: Mapping[str, Any]) -> int:
    count = info.get("general.parameter_count")
    if isinstance(count, int) and 0 < count < 1 << 50:
        return count
    match = _PARAMETERS.match(str(details.get("parameter_size") or ""))
    return round(float(match[1]) * _SCALE[match[2].upper()]) if match else 0


def _capabilities(show: Mapping[str, Any], found: Capabilities) -> Capabilities:
    listed = show.get("capabilities")
    if not isinstance(listed, list):
        return found
    return Capabilities(
        tools="tools" in listed,
        vision="vision" in listed,
        audio="audio" in listed or None,
        thinking="thinking" in listed,
        embedding="embedding" in listed,
        rerank=found.rerank,
    )


def _filled(spec: ModelSpec, known: ModelSpec) -> ModelSpec:
    """Vocabulary, tying and active parameters from the catalog, if it is the same model."""
    if not _same(known, spec):
        return spec
    origin = Origin(source="catalog", confidence="catalog")
    added = dict.fromkeys(("vocab", "tied_embeddings", "params_active"), origin)
    return replace(
        spec,
        vocab=spec.vocab or known.vocab,
        tied_embeddings=known.tied_embeddings,
        params_active=known.params_active,
        experts=spec.experts or known.experts,
        names=replace(known.names, ollama=spec.name),
        provenance=MappingProxyType({**spec.provenance, **added}),
    )


def _same(known: ModelSpec, spec: ModelSpec) -> bool:
    ours, theirs = ((each.n_layers, each.hidden, each.kv_heads) for each in (known, spec))
    return ours == theirs
