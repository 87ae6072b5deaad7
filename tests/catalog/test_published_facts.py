"""The table beside what publishers' repositories say: parameter counts and file sizes.

`published.csv`: the Hub's own count over a repository's safetensors, and which project read it;
`files.csv`: the size of a published GGUF file. Neither went into the table's figures.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from enginekit.catalog import catalog_names, describe
from enginekit.facts.model import ModelSpec
from enginekit.sizing.tensors import blueprint, parameters
from enginekit.sizing.weights import weights

FOLDER = Path(__file__).parent


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


COUNTS, FILES = rows("published.csv"), rows("files.csv")


def beside(spec: ModelSpec, what: str) -> tuple[int, int]:
    """Bounds of what a repository counts and the table does not."""
    table, routed = (
        spec.vocab * spec.hidden,
        sum(
            shape.elements * len(shape.layers)
            for shape in blueprint(spec)
            if shape.role == "experts"
        ),
    )
    if what == "table":  # The tied table is stored twice.
        return table, table
    if what == "rows":  # Gemma 3 has 64 rows that converters cut off.
        return 64 * spec.hidden, 64 * spec.hidden
    if what == "pooler":  # And BERT's position numbers.
        pooler = spec.hidden * (spec.hidden + 1) + spec.context_length
        return pooler, pooler
    if what == "scales":  # A scale per 32 weights of the routed experts.
        return routed // 32, round(1.001 * routed / 32)
    if what == "blocks":  # A scale per 128 x 128 weights.
        return routed // 128**2, round(1.02 * parameters(spec) / 128**2)
    if what == "mtp":
        # One more layer, like the last one; its projection and norms; perhaps tables of its own.
        last = sum(shape.elements for shape in blueprint(spec) if spec.n_layers - 1 in shape.layers)
        scales = parameters(spec) // 128**2
        return last, round(1.05 * last) + 2 * table + 3 * spec.hidden**2 + scales
    if what == "shared":  # Layers that reuse a cache keep projections of K and V and a norm of K.
        unused = sum(
            (2 * spec.hidden * heads + 1) * width
            for layer in spec.layers
            if layer.attention == "shared"
            for heads, width in [(spec.kv_heads, layer.key_dim)]
        )
        return unused, unused + 512
    # Llama 4 counts its rotary frequencies.
    return 0, 5632 if spec.architecture == "llama4" else 0


@pytest.mark.parametrize("row", COUNTS, ids=[row["model"] for row in COUNTS])
def test_parameters_add_up_to_the_published_count(row: dict[str, str]) -> None:
    spec, published = describe(row["model"]), int(row["parameters"])
    low, high = beside(spec, row["beside"])
    assert low <= published - spec.params_total - spec.tower_params <= high
    assert parameters(spec) == spec.params_total


@pytest.mark.parametrize("row", FILES, ids=[row["model"] for row in FILES])
def test_weights_are_those_of_a_published_file(row: dict[str, str]) -> None:
    """A file holds its vocabulary and merges too: 20 to 80 bytes a token."""
    spec = describe(row["model"])
    header = int(row["bytes"]) - weights(spec, row["label"]).total
    # The reranker's classifier, which no embedding model has.
    header -= spec.hidden * (spec.hidden + 2) if "reranker" in row["model"] else 0
    assert 20 * spec.vocab <= header + 0.002 * int(row["bytes"])
    assert header - 0.002 * int(row["bytes"]) <= 80 * spec.vocab


def test_every_row_names_who_read_it_and_most_models_have_one() -> None:
    assert all("/" in row["read_by"] and len(row["commit"]) == 40 for row in COUNTS)
    assert all("/" in row["repository"] and row["file"].endswith(".gguf") for row in FILES)
    seen = Counter(row["model"] for row in COUNTS)
    assert set(seen.values()) == {1}
    witnessed = seen.keys() | {row["model"] for row in FILES}
    assert witnessed <= set(catalog_names())
    assert len(witnessed) >= 95
