"""`enginekit matrix`: model sizes by bits and hardware, and how far rules of thumb are off."""

from __future__ import annotations

import sys
import textwrap

from enginekit import catalog, hardware
from enginekit.cli.output import print_json
from enginekit.sizing import rules_of_thumb as rules
from enginekit.sizing.outcome import Plan

_GB = 10**9
_GIB = 2**30


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
    lines = [
        "Weights in GB (10^9 bytes): the rule of thumb, the real file, the rule's error.",
        "",
        f"{'':<6}"
        + "".join(f"{f'{bits} bit ({label})':>18}" for bits, label in rules.BITS.items()),
    ]
    for row in rows:
        cells = []
        for cell in row.cells.values():
            exact = cell.exact / _GB
            shown = f"{exact:.0f}" if exact >= 100 else f"{exact:.1f}"
            if cell.rule is None or cell.error is None:
                cells.append(f"{'-':>4} {shown:>6}{'':>5}")
            else:
                cells.append(f"{cell.rule / _GB:>4g} {shown:>6} {cell.error:>+4.0%}")
        lines.append((f"{row.size:<6}" + "".join(f"{cell:>18}" for cell in cells)).rstrip())
    lines += [
        "",
        "Cache and compute on top of the 4-bit file (one slot, f16 cache), and the first",
        "machine of a list by price that holds it with 8192 tokens on its GPUs.",
        "",
        f"{'':<6}{'model':<20}{'8k':>7}{'32k':>7}{'128k':>8}  machine",
    ]
    for row in rows:
        share = row.overhead
        lines.append(
            f"{row.size:<6}{row.model:<20}{share[8192]:>+7.0%}{share[32768]:>+7.0%}"
            f"{share[131072]:>+8.0%}  {row.smallest}"
        )
    lines += [
        "",
        '"Add 10 to 20 per cent" holds for few rows: use the context, not a percentage.',
        "",
    ]
    for claim, made in claims:
        lines += _claim(claim.sentence, made)
    lines += _mac()
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _claim(sentence: str, made: Plan) -> list[str]:
    if made.verdict == "no":
        truth = f"no: {made.binding} does not fit"
    elif made.where in ("one GPU", "several GPUs"):
        truth = f"true up to {made.largest_context} tokens"
        if made.verdict == "tight":
            truth = f"barely: nothing is left at {made.context} tokens"
    else:
        truth = f"only {made.where} at {made.context} tokens"
    return textwrap.wrap(
        f"{sentence} ({made.model}, {made.quantization}): {truth}", 80, subsequent_indent="  "
    )


def _mac() -> list[str]:
    machine = hardware.preset("m3-max-128")
    usable = machine.gpu_capacity_bytes(machine.gpus[0]) or 0
    total = machine.memory.total_bytes or 1
    return textwrap.wrap(
        f"a 128 GB Mac has 128 GB for the GPU: {usable / _GIB:.0f} GiB of {total / _GIB:.0f} GiB by "
        "default, 84 per cent on the newest macOS",
        80,
        subsequent_indent="  ",
    )
