"""`enginekit plan`: does it fit, how much of it, how fast, and what would change that."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token

from enginekit.cli.errors import NOTHING_FITS
from enginekit.cli.options import tokens
from enginekit.cli.output import ProgressDisplay, print_json, stdout
from enginekit.cli.table import lines as table_lines
from enginekit.errors import ConfigError
from enginekit.kit import planning
from enginekit.sizing.outcome import TERMS, DevicePlan, Plan, Rate

if TYPE_CHECKING:
    from enginekit.kit.measuring import Measured

WIDTH = 80
"""Columns at most, and those of a pipe."""
_LABEL = 12
"""Columns before a bar."""
_GIB = 2**30
_MIB = 2**20
_MARKS = {"weights": "#", "cache": "=", "state": "=", "compute": "+", "projector": "@",
          "runtime": "-"}  # fmt: skip
_LEGEND = "# weights  = cache  + compute  - runtime  : margin  . free  ! missing"
_VERDICTS = {"fits": "fits", "tight": "is tight", "no": "does not fit"}


def _page(_type: object, given: Sequence[Token]) -> Path:
    """Where the page goes; an option that follows is no file."""
    text = given[0].value
    if not text or (text.startswith("-") and text != "-"):
        raise ValueError(f"a file or - is needed, not {text!r}")
    return Path(text)


def plan(
    model: str,
    /,
    *,
    hardware: str | None = None,
    engine: str | None = None,
    quant: str | None = None,
    context: Annotated[int | None, Parameter(converter=tokens)] = None,
    users: int | None = None,
    cache: str | None = None,
    ubatch: int | None = None,
    sequences: int | None = None,
    images: Annotated[bool | None, Parameter(negative="--no-images")] = None,
    measure: Annotated[bool, Parameter(negative=())] = False,
    json: bool = False,
    html: Annotated[Path | None, Parameter(converter=_page, allow_leading_hyphen=True)] = None,
) -> int:
    """Show whether a model fits, with which context, how fast, and why. Exit code 3: it does not.

    Parameters
    ----------
    model
        A catalog name (llama3.1, qwen3:8b), a GGUF file or its address, a folder,
        hf://owner/repo:QUANT, or a running server (http://127.0.0.1:8080, with #NAME for one of
        its models).
    hardware
        A machine by name (rtx4090, 4xrtx4090, m3-max-128) or a JSON or TOML file; else this one.
    engine
        Whose rules of memory; else the embedded llama.cpp's.
    quant
        A quantization (Q4_K_M, awq); else the model's own or the engine's usual one.
    context
        Tokens per user (8192, 8k, 1M); else those of that server, or what the engine would choose.
    users
        Requests of full length at the same time; else one, or the slots of that server.
    cache
        Element type of the attention cache (q8_0, fp8).
    ubatch
        Micro-batch of llama.cpp.
    sequences
        Most sequences of an engine that sets a pool aside (vLLM's max_num_seqs).
    images
        Whether a model that sees or hears loads what it does so with (llama.cpp's projector); else
        as the engine does by itself.
    measure
        Load the model on the embedded engine, show what it took beside the plan, and let later
        plans for models of the same architecture be corrected by it.
    json
        Print one JSON object, sizes in bytes.
    html
        Also write the plan as one self-contained page with charts; - writes it to stdout instead.
    """
    if str(html) == "-" and json:
        raise ConfigError("--html - and --json both want stdout", hint="--html FILE")
    settings: dict[str, Any] = {
        "quantization": quant,
        "users": users,
        "cache_type": cache,
        "ubatch": ubatch,
        "sequences": sequences,
        "images": images,
    }
    taken: Measured | None = None
    if measure:
        taken = _measure(model, hardware, engine, context, settings)
        made = taken.plan
    else:
        asked = planning.question(model, hardware=hardware, engine=engine)
        made = planning.answer(asked, context=context, **settings)
    if html is not None:
        if measure:
            asked = planning.question(model, hardware=hardware, engine=engine)
        _write_page(html, made, asked, settings)
    if str(html) == "-":
        pass  # the page is all that goes to stdout
    elif json:
        print_json(made.to_dict() | ({} if taken is None else {"measured": _measured(taken)}))
    else:
        width = min(WIDTH, stdout.width)
        lines = render(made, width)
        if taken is not None:
            lines += _measured_lines(taken, width)
        sys.stdout.write("\n".join(lines) + "\n")
    return NOTHING_FITS if made.verdict == "no" else 0


def _measure(
    model: str,
    hardware: str | None,
    engine: str | None,
    context: int | None,
    settings: dict[str, Any],
) -> Measured:
    """Load the model here. Raises ConfigError for options that a load on this computer ignores."""
    from enginekit.kit.measuring import ENGINE, measure

    elsewhere = {"--hardware": hardware, "--quant": settings["quantization"]}
    elsewhere |= {f"--{name}": settings[name] for name in ("ubatch", "sequences")}
    if engine not in (None, ENGINE):
        elsewhere["--engine"] = engine
    given = [name for name, value in elsewhere.items() if value is not None]
    if settings["images"]:
        given.append("--images")
    if given:
        raise ConfigError(
            f"--measure loads the model's own file on this computer's {ENGINE} engine; "
            f"{given[0]} cannot go with it",
            hint=f"enginekit plan {model} --measure",
        )
    with ProgressDisplay() as progress:
        return measure(
            model,
            context=context,
            users=settings["users"] or 1,
            cache_type=settings["cache_type"],
            progress=progress,
        )


def _measured(taken: Measured) -> dict[str, Any]:
    return {
        "version": taken.version,
        "taken": dict(taken.taken),
        "estimated": dict(taken.estimated),
        **({"problem": taken.problem} if taken.problem else {}),
    }


def _measured_lines(taken: Measured, width: int) -> list[str]:
    pairs = [
        f"{term} {taken.taken[term] / _MIB:.1f} MiB (planned {taken.estimated[term] / _MIB:.1f})"
        for term in TERMS
        if term in taken.taken
    ]
    said = f"xllamacpp {taken.version} took " + ", ".join(pairs)
    return _wrapped("measured", f"{said}; {taken.problem}" if taken.problem else said, width)


def _write_page(path: Path, made: Plan, asked: planning.Question, settings: dict[str, Any]) -> None:
    """The plan as a page, with plans at other contexts for its curves."""
    from enginekit.cli import _plan_html

    # The same quantization as in the plan itself, so that only the context differs.
    settings = {**settings, "quantization": settings["quantization"] or made.quantization}
    others = [
        planning.answer(asked, context=context, **settings).to_dict()
        for context in _plan_html.contexts(asked.spec.context_length, made.context)
    ]
    page = _plan_html.page(made.to_dict(), others)
    if str(path) == "-":
        sys.stdout.write(page)
        return
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise ConfigError(
            f"cannot write {path}: {error.strerror}",
            hint=f"give --html a file {'in a folder that exists' if gone else 'that can be written'}",
        ) from error


def render(made: Plan, width: int = WIDTH) -> list[str]:
    """The plan as lines of at most `width` columns; nothing depends on colour.

    Only a word that is longer, such as a file's path in the command, stays whole.
    """
    where = "" if made.verdict == "no" else f" ({made.where})"
    facts: list[tuple[str, str]] = []
    lines = [
        *textwrap.wrap(
            f"{made.model} {made.quantization} {_VERDICTS[made.verdict]} on {made.machine}{where}",
            width,
        ),
        *textwrap.wrap(
            f"{made.context} tokens x {_count(made.users, 'user')}, {made.cache_type} cache: "
            f"{made.context_reason}",
            width,
        ),
        "",
    ]
    if made.devices:
        lines += [*_table(made, width), "", *_bars(made, width)]
        legend = _LEGEND
        if any("projector" in device.terms for device in made.devices):
            legend = legend.replace("  - ", "  @ projector  - ")
        lines += [*textwrap.wrap(legend, width), ""]
        facts += [("decides", made.binding), ("split", made.split)]
    else:
        facts.append(("because", made.binding))
    if made.devices:
        facts.append(("largest", made.room))
    if made.pool_tokens:
        facts.append(("pool", f"{made.pool_tokens} tokens of cache"))
    if made.quantizations:
        facts.append(("fitting", _quantizations(made)))
    facts += _fixes(made)
    if made.devices and made.verdict != "no":
        facts.append(("speed", _speed(made)))
        if made.command:
            facts.append(("command", made.command))
    facts += [("note", note) for note in made.notes]
    for label, text in facts:
        lines += _wrapped(label, text, width)
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wrapped(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"{label:<9}",
        subsequent_indent=" " * 9,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"


def _groups(made: Plan) -> Iterator[tuple[str, DevicePlan]]:
    """Devices that look alike become one line: a label, and the first of them."""
    shown: list[list[DevicePlan]] = []
    for device in made.devices:
        alike = shown and (
            shown[-1][0].index >= 0
            and shown[-1][0].name == device.name
            and shown[-1][0].terms == device.terms
            and shown[-1][0].limit == device.limit
        )
        if alike:
            shown[-1].append(device)
        else:
            shown.append([device])
    for group in shown:
        first, last = group[0], group[-1]
        if first.index < 0:
            yield "host", first
        elif first is last:
            yield f"GPU {first.index}", first
        else:
            yield f"GPU {first.index}-{last.index} each", first


def _table(made: Plan, width: int) -> list[str]:
    terms = [name for name in TERMS if any(name in device.terms for device in made.devices)]
    columns = [*terms, "used", "low-high", "limit", "free"]
    rows = []
    for name, device in _groups(made):
        used = device.used
        cells = [_gib(device.terms[t].expected) if t in device.terms else "-" for t in terms]
        spread = f"{_gib(used.low)}-{_gib(used.high)}"
        left = device.limit - used.expected
        rows.append([name, *cells, _gib(used.expected), spread, _gib(device.limit), _gib(left)])
    found = table_lines(["GiB", *columns], rows, width, right=columns, gap=1)
    # In a narrow terminal each row is a block, and its title is not among the columns.
    return found if found[0].startswith("GiB") else ["GiB", *found]


def _bars(made: Plan, width: int) -> list[str]:
    size = width - _LABEL - 8
    return [f"{name:<{_LABEL}}|{bar_of(device, size)}|" for name, device in _groups(made)]


def bar_of(device: DevicePlan, width: int) -> str:
    """One device as characters: what each term takes of its limit, and what is missing."""
    full = max(device.limit, device.used.expected, 1)
    edges: list[tuple[int, str]] = []
    running = 0
    for name in TERMS:
        if name in device.terms:
            running += device.terms[name].expected
            edges.append((running, _MARKS[name]))
    edges.append((max(running, device.limit - device.margin), "."))
    edges.append((full, ":" if device.margin else "."))
    cells = []
    for cell in range(width):
        middle = (2 * cell + 1) * full // (2 * width)
        mark = next(mark for edge, mark in edges if middle < edge)
        cells.append("!" if middle >= device.limit else mark)
    return "".join(cells)


def _quantizations(made: Plan) -> str:
    words = {"fits": "yes", "tight": "tight", "no": "no"}
    return ", ".join(
        f"{fit.name} {_gib(fit.weight_bytes)} GiB "
        + ("with host memory" if fit.verdict == "no" and fit.with_host else words[fit.verdict])
        for fit in made.quantizations
    )


def _fixes(made: Plan) -> list[tuple[str, str]]:
    found = []
    for number, fix in enumerate(made.fixes, 1):
        flags = f": {fix.flags}" if fix.flags else ""
        label = "to fit" if number == 1 else ""
        found.append((label, f"{number}. {fix.change} ({fix.cost}){flags}"))
    return found


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "unknown"
    return f"{rate.expected:.0f} ({rate.low:.0f}-{rate.high:.0f})" if rate.expected >= 10 else (
        f"{rate.expected:.1f} ({rate.low:.1f}-{rate.high:.1f})"
    )  # fmt: skip


def _speed(made: Plan) -> str:
    speed = made.speed
    # An encoder reads, and writes nothing.
    reads = speed.decode is None and speed.prefill is not None
    parts = [] if reads else [f"{_rate(speed.decode)} tokens/s"]
    if speed.decode_full is not None:
        parts.append(f"{_rate(speed.decode_full)} with the context full")
    if made.users > 1:
        parts.append(f"{_rate(speed.decode_total)} for all users")
    parts.append(f"{'reads' if reads else 'prompt'} {_rate(speed.prefill)} tokens/s")
    low, expected, high = speed.load_seconds
    parts.append(f"load {expected:.0f} s ({low:.0f}-{high:.0f})")
    return "; ".join(parts) + f" [{speed.reason}]"
