"""A table at any width: nothing is cut off, nothing is wider than the terminal if it can help it."""

from __future__ import annotations

import pytest

from enginekit.cli import table

TITLES = ("name", "size", "note")
ROWS = (("qwen3-8b", "8.2B", "thinks before it answers, unless told not to"), ("phi4", "14B", ""))


def shown(width, **more):
    return table.lines(TITLES, ROWS, width, right=("size",), **more)


def test_what_fits_is_one_line_a_row():
    assert shown(80) == [
        "name      size  note",
        "qwen3-8b  8.2B  thinks before it answers, unless told not to",
        "phi4       14B",
    ]


def test_the_last_column_folds_while_there_is_room():
    assert shown(44) == [
        "name      size  note",
        "qwen3-8b  8.2B  thinks before it answers,",
        "                unless told not to",
        "phi4       14B",
    ]


def test_a_narrow_terminal_gets_a_block_for_each_row():
    assert shown(30) == [
        "qwen3-8b",
        "  size  8.2B",
        "  note  thinks before it answers, unless told not to",
        "phi4",
        "  size  14B",
    ]


def test_an_optional_column_goes_first():
    assert shown(30, optional=("note",)) == ["name      size", "qwen3-8b  8.2B", "phi4       14B"]


def test_a_table_without_titles_has_no_empty_line():
    assert table.lines(("", ""), [("model", "big")], 80) == ["model  big"]


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 200])
def test_no_word_is_lost_at_any_width(width):
    words = " ".join(shown(width)).split()
    assert {word for row in ROWS for cell in row for word in cell.split()} <= set(words)
