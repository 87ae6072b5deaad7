"""Tables that can still be read and copied from in a narrow terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Collection, Sequence

from enginekit.cli.output import stdout

_GAP = 2
_NARROWEST = 24
"""Columns under which folding the last cell helps nobody."""


def show(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Print a table on stdout, as wide as the terminal; see `lines`."""
    text = lines(titles, rows, stdout.width, right=right, optional=optional)
    sys.stdout.write("".join(f"{line}\n" for line in text))


def lines(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Collection[str] = (),
    optional: Collection[str] = (),
    gap: int = _GAP,
) -> list[str]:
    """A table in at most `width` columns; no cell is ever shortened.

    What does not fit loses its `optional` columns from the right, then folds its last column, and
    at last becomes a block of `title  value` lines for each row, with every column in it.

    Args:
        titles: one for each cell of a row; "" for a column without one.
        right: titles of the columns that are numbers.
        optional: titles of the columns that a narrow terminal may do without.
        gap: columns between cells.
    """
    kept = list(range(len(titles)))
    widths = [max(len(row[n]) for row in (titles, *rows)) for n in kept]

    def taken(columns: Sequence[int]) -> int:
        return sum(widths[n] + gap for n in columns) - gap

    while taken(kept) > width and titles[kept[-1]] in optional:
        kept.pop()
    *fixed, last = kept
    room = max(width - taken(fixed) - gap if fixed else width, 1)
    if widths[last] > room and room < _NARROWEST:
        return _blocks(titles, rows)
    found: list[str] = []
    for row in (titles, *rows):
        cells = [
            row[n].rjust(widths[n]) if titles[n] in right else row[n].ljust(widths[n])
            for n in fixed
        ]
        end = row[last].rjust(widths[last]) if titles[last] in right else row[last]
        for part in _folded(end, room):
            found.append((" " * gap).join([*cells, part]).rstrip())
            cells = [" " * len(cell) for cell in cells]
    return found if any(titles) else found[1:]


def _blocks(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    margin = max(len(title) for title in titles[1:])
    found: list[str] = []
    for row in rows:
        found.append(row[0])
        found += [
            f"  {title.ljust(margin)}  {cell}".rstrip()
            for title, cell in zip(titles[1:], row[1:], strict=True)
            if cell
        ]
    return found


def _folded(text: str, width: int) -> list[str]:
    """Lines of whole words: half an address cannot be copied."""
    folded = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return folded or [""]
