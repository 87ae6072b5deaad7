"""`enginekit matrix`: model sizes by bits and hardware, and how far rules of thumb are off."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from enginekit import catalog, hardware
from enginekit.cli import table
from enginekit.cli.output import print_json, stdout
from enginekit.sizing import rules_of_thumb as rules
from enginekit.sizing.outcome import Plan

_GB = 10**9
_GIB = 2**30
_WIDTH = 80


def matrix(*, json: bool = False) -> int:
    """Show model sizes at 16, 8, 4 and 2 bits beside the usual rules of thumb.

    Parameters
    ----------
    json
        Print one JSON object, sizes in bytes.
    """
    rows = rules.matrix(catalog.describe, hardware.preset)
    claims = [
        (claim, rules.check(claim, catalog.describe, hardware.preset)) for claim in rules.CLAIMS
    ]
    if json:
        print_json(
            {
                "rows": [rules.to_dict(row) for row in rows],
                "claims": [
                    {
                        "sentence": claim.sentence,
                        "model": claim.model,
                        "quantization": claim.quantization,
                        "hardware": claim.hardware,
                        "verdict": made.verdict,
                        "where": made.where,
                        "largest_context": made.largest_context,
                    }
                    for claim, made in claims
                ],
            }
        )
        return 0
    width = min(_WIDTH, stdout.width)
    lines = [
        *_said(
            "Weights in GB (10^9 bytes): the rule of thumb, the real file, the rule's error.", width
        ),
        "",
        *_sizes(rows, width),
        "",
        *_said(
            "Cache and compute on top of the 4-bit file (one slot, f16 cache), and the first machine "
            "of a list by price that holds it with 8192 tokens on its GPUs. "
            "-: a longer context than the model was trained for.",
            width,
        ),
        "",
        *_overheads(rows, width),
        "",
        *_said(
            '"Add 10 to 20 per cent" holds for few rows: use the context, not a percentage.', width
        ),
        "",
    ]
    for claim, made in claims:
        lines += _said(_claim(claim.sentence, made), width, "  ")
    lines += _said(_mac(), width, "  ")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _said(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent)


def _sizes(rows: Sequence[rules.Row], width: int) -> list[str]:
    """Each size by bits; cells are padded so that a rule stands under the rule above it."""
    titles = ["", *(f"{bits} bit ({label})" for bits, label in rules.BITS.items())]
    shown = []
    for row in rows:
        cells = [_cell(cell) for cell in row.cells.values()]
        shown.append([row.size, *cells])
    return table.lines(titles, shown, width, right=titles[1:])


def _cell(cell: rules.Cell) -> str:
    exact = cell.exact / _GB
    shown = f"{exact:.0f}" if exact >= 100 else f"{exact:.1f}"
    if cell.rule is None or cell.error is None:
        return f"{'-':>4} {shown:>6}{'':>5}"
    percent = round(100 * cell.error)
    return f"{cell.rule / _GB:>4g} {shown:>6} {f'{percent:+d}%' if percent else '0%':>4}"


def _overheads(rows: Sequence[rules.Row], width: int) -> list[str]:
    contexts = (8192, 32768, 131072)
    names = [f"{context // 1024}k" for context in contexts]
    return table.lines(
        ["", "model", *names, "machine"],
        [
            [
                row.size,
                row.model,
                *(
                    f"{row.overhead[context]:+.0%}" if context <= row.context else "-"
                    for context in contexts
                ),
                row.smallest,
            ]
            for row in rows
        ],
        width,
        right=names,
    )


def _claim(sentence: str, made: Plan) -> str:
    if made.verdict == "no":
        truth = f"no, what is too large is {made.binding}"
    elif made.where in ("one GPU", "several GPUs"):
        truth = f"true up to {made.largest_context} tokens"
        if made.verdict == "tight":
            truth = f"barely: nothing is left at {made.context} tokens"
    else:
        truth = f"only {made.where} at {made.context} tokens"
    return f"{sentence} ({made.model}, {made.quantization}): {truth}"


def _mac() -> str:
    machine = hardware.preset("m3-max-128")
    usable = machine.gpu_capacity_bytes(machine.gpus[0]) or 0
    total = machine.memory.total_bytes or 1
    return (
        f"a 128 GB Mac has 128 GB for the GPU: {usable / _GIB:.0f} GiB of {total / _GIB:.0f} GiB by "
        "default, 84 per cent on the newest macOS"
    )
