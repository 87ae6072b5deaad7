"""The catalog's rows as `ModelSpec`s: one CSV, parsed once, one spec built at its first use.

The `layout` column holds what does not fit a number: `key=value` words.

* `window=W every=N`: sliding window W on all but each Nth layer; `chunk=` the same, chunked
* `kv_full=`, `dim_full=`: KV heads and head size of the full layers (`kv_heads`, `head_dim` are
  then those of the local ones)
* `shared_kv=N`: the last N layers reuse a cache; `wide_ffn=` their feed-forward width
* `ple=`: width of the per-layer embedding
* `mla=KV_LORA/ROPE/Q_LORA/NOPE/V`, `indexer=DIM`, `indexer_every=N` after the
  first `indexer_first=` layers, which all have one; `indexer_after=N`: the first N layers have none
* `experts=TOTAL/USED/WIDTH`, `shared=COUNT/WIDTH`, `dense_first=N`, `dense=1` (a dense part beside
  the experts), `latent=`, `ungated=1`
* `gdn=K_HEADS/V_HEADS/K_DIM/CONV full_every=N`: gated delta net on all but each Nth layer
* `mamba2=INNER/STATE/GROUPS/CONV/HEADS`, `pattern=`: a letter per layer, M mamba, E MoE, `*`
  attention
* `kda=HEADS/DIM/CONV`, `shortconv=CACHE`; with these or `mamba2=` and without a pattern,
  `attn_at=I/J/…` counts the layers that attend from 0, and all others are recurrent
* `moe_every=N`: experts in each Nth layer only
* `tower=PARAMS`: vision and audio part of the publisher's checkpoint, not in `params_total`
* `mmproj=LABEL:BYTES/…`: the projectors of the GGUF repository, tensor bytes by the rules of
  llama.cpp's converter; of several with 16 bits the first. `mmproj=none`: its converter makes none
* `labels=LABEL/…`: the files of a GGUF repository that has few, fewest bits first
* `tag=LABEL`: what the Ollama tag holds where it is not Q4_K_M
* `mtp=N`, `encoder=1`, `headless=1` (no output matrix), `rerank=1`, `unknown=1` (what its cache holds is not
  known: a plan gives a range)

Source codes in the last column: AIC ai-dynamo/aiconfigurator, OME sgl-project/ome, MLC
mlc-ai/mlc-llm presets, KTO kaito-project/kaito, MXT AI-Hypercomputer/maxtext, TFD transformers
defaults, GPS gpustack, LEM lemonade, EXO exo model cards, SLM THUDM/slime; PC: the parameter count computed from
these dimensions equals the published one. HUB: published parameter counts and GGUF repositories as AlexsJones/llmfit
read them from the Hub; tests/catalog/published.csv has the numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from enginekit.catalog import _layout
from enginekit.facts.model import (
    Capabilities,
    Confidence,
    Experts,
    Mla,
    ModelNames,
    ModelSpec,
    Origin,
    Recurrent,
)

Row = Mapping[str, str]

_FIELDS = (
    "layers",
    "hidden",
    "vocab",
    "context_length",
    "params_total",
    "params_active",
    "tied_embeddings",
    "capabilities",
    "names",
    "license",
)


@cache
def rows() -> Mapping[str, Row]:
    """The table by model name, in the order of the file."""
    text = files("enginekit.catalog").joinpath("models.csv").read_text(encoding="utf-8")
    return MappingProxyType(
        {row["name"]: MappingProxyType(row) for row in csv.DictReader(text.splitlines())}
    )


@cache
def spec(name: str) -> ModelSpec:
    """The spec of an exact catalog name.

    Raises:
        KeyError: no row has that name.
    """
    return _spec(rows()[name])


def _flag(word: str) -> bool | None:
    return {"yes": True, "no": False}.get(word)


def _ints(words: str) -> tuple[int, ...]:
    return tuple(int(part) for part in words.split("/"))


def _spec(row: Row) -> ModelSpec:
    layout = dict(word.split("=", 1) for word in row["layout"].split())
    count = int(row["layers"])
    mla = _mla(layout)
    experts = _experts(layout)
    origin = Origin(source="catalog", confidence=_confidence(row["confidence"]))
    return ModelSpec(
        name=row["name"],
        architecture=row["architecture"],
        family=row["family"],
        layers=_layout.build(_shape(row, layout, count, mla)),
        hidden=int(row["hidden"]),
        vocab=int(row["vocab"]),
        context_length=int(row["context"]),
        params_total=int(row["params_total"]),
        params_active=int(row["params_active"] or 0),
        experts=experts,
        mla=mla,
        recurrent=_recurrent(row, layout),
        per_layer_embedding=int(layout.get("ple", 0)),
        tied_embeddings=row["tied"] == "yes" or "headless" in layout,
        causal="encoder" not in layout,
        known_layout="unknown" not in layout,
        mtp_layers=int(layout.get("mtp", 0)),
        tower_params=int(layout.get("tower", 0)),
        projector_files=_projectors(layout.get("mmproj", "")),
        native_format=layout.get("native", ""),
        names=ModelNames(
            catalog=row["name"],
            hf=row["hf_repo"],
            gguf=row["gguf_repo"],
            gguf_labels=tuple(label for label in layout.get("labels", "").split("/") if label),
            ollama=row["ollama_tag"],
            ollama_quantization=layout.get("tag", ""),
            mlc=row["mlc_repo"],
        ),
        license=row["license"],
        capabilities=Capabilities(
            tools=_flag(row["tools"]),
            vision=_flag(row["vision"]),
            thinking=_flag(row["thinking"]),
            embedding=_flag(row["embedding"]),
            rerank=True if "rerank" in layout else None,
        ),
        vllm_tool_parser=row["vllm_tool_parser"],
        notes=(f"catalog: {row['source']}",) if origin.confidence == "guess" else (),
        provenance=MappingProxyType(dict.fromkeys(_FIELDS, origin)),
    )


def _projectors(words: str) -> tuple[tuple[str, int], ...]:
    pairs = (word.partition(":") for word in words.split("/") if word)
    return tuple((label, int(size or 0)) for label, _, size in pairs)


def _confidence(word: str) -> Confidence:
    return "guess" if word == "guess" else "catalog"


def _shape(row: Row, layout: Mapping[str, str], count: int, mla: Mla | None) -> _layout.Shape:
    heads = int(row["heads"])
    kv_heads: _layout.PerLayer = int(row["kv_heads"])
    head_dim = int(row["head_dim"] or 0)
    key_dim: _layout.PerLayer = head_dim
    ffn: _layout.PerLayer = int(row["ffn"] or 0)
    window = int(layout.get("window", layout.get("chunk", 0)))
    sliding = _layout.every(count, int(layout["every"])) if window else None
    if sliding is not None:
        local_kv, full_kv = int(row["kv_heads"]), int(layout.get("kv_full", row["kv_heads"]))
        full_dim = int(layout.get("dim_full", head_dim))
        kv_heads = tuple(local_kv if local else full_kv for local in sliding)
        key_dim = tuple(head_dim if local else full_dim for local in sliding)
    shared_kv = int(layout.get("shared_kv", 0))
    if "wide_ffn" in layout:
        wide = int(layout["wide_ffn"])
        narrow = int(row["ffn"])
        ffn = tuple(wide if index >= count - shared_kv else narrow for index in range(count))
    pattern = layout.get("pattern", "")
    attention = tuple(letter == "*" for letter in pattern) or None
    recurrent = tuple(letter == "M" for letter in pattern) or None
    moe: tuple[bool, ...] | None = None
    if "gdn" in layout:
        recurrent = _layout.every(count, int(layout["full_every"]))
        attention = tuple(not flag for flag in recurrent)
    if "attn_at" in layout:
        attending = _ints(layout["attn_at"])
        attention = tuple(index in attending for index in range(count))
        recurrent = tuple(not flag for flag in attention)
    if "experts" in layout:
        first, apart = int(layout.get("dense_first", 0)), int(layout.get("moe_every", 1))
        moe = tuple(letter == "E" for letter in pattern) or tuple(
            i >= first and i % apart == apart - 1 for i in range(count)
        )
    spacing, lead = int(layout.get("indexer_every", 1)), int(layout.get("indexer_first", 0))
    plain = int(layout.get("indexer_after", 0))
    indexed = tuple(
        index >= plain and (index < lead or (index - lead) % spacing == 0) for index in range(count)
    )
    return _layout.Shape(
        layers=count,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=key_dim,
        ffn=ffn,
        window=window,
        sliding=sliding,
        chunked="chunk" in layout,
        attention=attention,
        recurrent=recurrent,
        shared_kv=shared_kv,
        mla=mla,
        indexer_dim=int(layout.get("indexer", 0)),
        indexer=indexed,
        moe=moe,
        dense_beside_moe="dense" in layout,
        causal="encoder" not in layout,
    )


def _mla(layout: Mapping[str, str]) -> Mla | None:
    if "mla" not in layout:
        return None
    lora, rope, q_lora, nope, value = _ints(layout["mla"])
    return Mla(kv_lora_rank=lora, rope_dim=rope, q_lora_rank=q_lora, nope_dim=nope, value_dim=value)


def _experts(layout: Mapping[str, str]) -> Experts | None:
    if "experts" not in layout:
        return None
    total, used, ffn = _ints(layout["experts"])
    shared, shared_ffn = _ints(layout["shared"]) if "shared" in layout else (0, 0)
    return Experts(
        total=total,
        used=used,
        ffn=ffn,
        shared=shared,
        shared_ffn=shared_ffn,
        latent=int(layout.get("latent", 0)),
        gated="ungated" not in layout,
    )


def _recurrent(row: Row, layout: Mapping[str, str]) -> Recurrent | None:
    if "gdn" in layout:
        k_heads, v_heads, k_dim, conv = _ints(layout["gdn"])
        return _layout.ssm(
            "gdn", inner=v_heads * k_dim, state=k_dim, groups=k_heads, conv=conv, heads=v_heads
        )
    if "mamba2" in layout:
        inner, state, groups, conv, heads = _ints(layout["mamba2"])
        return _layout.ssm(
            "mamba2", inner=inner, state=state, groups=groups, conv=conv, heads=heads
        )
    if "kda" in layout:
        heads, dim, conv = _ints(layout["kda"])
        return _layout.kda(heads=heads, head_dim=dim, conv=conv)
    if "shortconv" in layout:
        return _layout.shortconv(hidden=int(row["hidden"]), cache=int(layout["shortconv"]))
    return None
