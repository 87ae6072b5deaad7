"""Sizes of published GGUF files, and GPU memory of whole loads, with the promised tolerances.

A label decides to 0.2 per cent what llama-quantize makes of it, beside the vocabulary in the file;
a publisher's own mixture lies in the estimate's range. Totals as nvidia-smi and its like show them:
within 5 per cent or 300 MiB and never under by more than 2 per cent.
"""

from __future__ import annotations

import pytest

from enginekit.sizing.tensors import parameters
from tests.sizing.published import spec
from tests.sizing.published_sizes import File, Total, files, mtp_block, repositories, totals

FILES, REPOSITORIES, TOTALS = files(), repositories(), totals()


def test_there_are_enough_rows_and_each_says_where_it_is_from() -> None:
    assert len(FILES) >= 230
    assert sum(file.mix == "plain" for file in FILES) >= 140
    assert len({file.label for file in FILES}) >= 40
    assert len(REPOSITORIES) >= 55
    assert len(TOTALS) >= 40
    assert all("/" in row.source for row in (*FILES, *REPOSITORIES, *TOTALS))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.model}-{file.label}-{file.mix}")
def test_a_file_is_as_large_as_its_label_says(file: File) -> None:
    if file.mix in ("plain", "static"):
        assert abs(file.error) <= 0.002
    else:
        least = file.measured - file.step - file.beside
        assert file.low <= file.measured + file.step
        assert least <= file.high


@pytest.mark.parametrize("found", REPOSITORIES, ids=lambda found: found.source.split("/")[-1])
def test_a_checkpoint_is_as_large_as_its_format_says(found: File) -> None:
    """MLX, BF16 and INT4: text model and towers, in bytes of all their tensors."""
    if found.mix == "plain":
        assert abs(found.error) <= 0.002
    else:
        assert found.low <= found.measured <= found.high


@pytest.mark.parametrize("total", TOTALS, ids=lambda row: f"{row.model}-{row.source.split()[-1]}")
def test_a_load_takes_what_was_estimated(total: Total) -> None:
    off = abs(total.ours - total.measured)
    assert off <= 0.05 * total.measured or off <= 300
    assert total.error >= -0.02


@pytest.mark.parametrize(
    ("name", "published"), [("qwen3.8-27b", 27_320_697_856), ("qwen3.6-35b-a3b", 35_505_251_456)]
)
def test_a_block_for_multi_token_prediction_is_as_large_as_published(
    name: str, published: int
) -> None:
    """llama-bench prints the parameters of a file that has one (kyuz0/amd-strix-halo-toolboxes)."""
    model = spec(name)
    assert parameters(model) + mtp_block(model) == pytest.approx(published, rel=1e-6)
