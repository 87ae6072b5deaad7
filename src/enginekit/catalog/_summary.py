"""Joins a config's dimensions with what the weight files' headers say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from enginekit.catalog.safetensors import StoredTensor, group
from enginekit.facts.model import ModelSpec, Origin


def with_weights(spec: ModelSpec, tensors: Iterable[StoredTensor], on_disk: int) -> ModelSpec:
    """The spec with exact weights: text model, MTP blocks and projector counted apart."""
    groups = group(tensors, spec.n_layers)
    parts = {"mtp": 0, "projector": 0, "text": 0}
    for each in groups:
        parts[each.role if each.role in parts else "text"] += each.bytes
    exact = Origin(source="safetensors headers", confidence="exact")
    tied = not any(each.role == "output" for each in groups)
    return replace(
        spec,
        weights=groups,
        weight_bytes=parts["text"],
        mtp_bytes=parts["mtp"],
        projector_bytes=parts["projector"],
        # Counted: what the config tells of a tower that is not there is of no account.
        tower_params=0,
        file_bytes=on_disk,
        tied_embeddings=tied,
        provenance=MappingProxyType(
            {**spec.provenance, **dict.fromkeys(("weights", "weight_bytes"), exact)}
        ),
    )
