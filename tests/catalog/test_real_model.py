"""The real SmolLM2 file, where it is at hand: our reader, the gguf package and the catalog agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader

from enginekit.catalog import describe, sources
from enginekit.sizing.kv_cache import llamacpp_cache
from enginekit.sizing.weights import weights

# Keeps the caches where models are; nothing is started or fetched.
pytestmark = pytest.mark.embedded


@pytest.fixture
def path() -> Path:
    """The file, if it is cached or its package is installed."""
    found = sources.installed("smollm2:135m")
    if found is None:
        pytest.skip("SmolLM2 is neither cached nor installed (`enginekit pull smollm2:135m`)")
    return found.path


def test_every_byte_is_accounted_for(path: Path) -> None:
    spec, witness = describe(path), GGUFReader(path)
    assert spec.weight_bytes == sum(int(tensor.n_bytes) for tensor in witness.tensors)
    assert spec.file_bytes == path.stat().st_size
    assert witness.data_offset + spec.weight_bytes <= spec.file_bytes


def test_the_catalog_predicts_the_file_to_the_byte(path: Path) -> None:
    spec, known = describe(path), describe("smollm2:135m")
    assert spec.layers == known.layers
    assert weights(known, spec.quantization).total == spec.weight_bytes
    assert llamacpp_cache(known, 4096).total == llamacpp_cache(spec, 4096).total
