"""A plan as one HTML page: no script, nothing fetched, readable in light and dark and on paper.

`page` is a pure function of `Plan.to_dict()`, so that a plan saved as JSON can be drawn later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from enginekit.cli import _charts
from enginekit.cli._charts import Line, Part
from enginekit.sizing.outcome import TERMS

_GIB = 2**30
Document = Mapping[str, Any]
_VERDICTS = {"fits": "fits", "tight": "is tight", "no": "does not fit"}

_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1d2430;--soft:#5a6475;--line:#d9dee7;
--weights:#3565c4;--cache:#d9822b;--state:#9b5fc0;--compute:#2f9e77;--projector:#c2557a;
--runtime:#7a8496;--margin:#e6e9ef;--free:#f4f6f9;--bad:#c0342b;--in:#fff}
@media (prefers-color-scheme:dark){:root{--ground:#14181f;--ink:#e6eaf1;--soft:#9aa5b6;
--line:#303847;--weights:#7ba2f0;--cache:#eda75a;--state:#c49be2;--compute:#62c9a0;
--projector:#e58bab;--runtime:#99a3b5;--margin:#323a48;--free:#1e242e;--bad:#ff7b70;--in:#10141a}}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:760px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.45rem;line-height:1.3;margin:0 0 4px}h2{font-size:1.05rem;margin:32px 0 8px}
p{margin:4px 0}.soft{color:var(--soft)}.bad{color:var(--bad)}
svg{display:block;width:100%;height:auto;margin:2px 0 6px}
svg text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--soft)}
svg text.axis{paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round}
svg text.in{fill:var(--in);text-anchor:middle;font-weight:600;pointer-events:none}
svg text.free-in,svg text.margin-in{fill:var(--soft);font-weight:400}
svg text.mid{text-anchor:middle}svg text.end{text-anchor:end}
.grid{stroke:var(--line)}.limit{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:6 4}
.here{stroke:var(--soft);stroke-dasharray:2 4}
.curve{fill:none;stroke-width:2.2}.curve.second{stroke-dasharray:7 4}.band{opacity:.16;stroke:none}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:4px 8px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child{text-align:left}
td.words,th.words{text-align:left}.scroll{overflow-x:auto}
pre{background:var(--free);border:1px solid var(--line);border-radius:6px;padding:10px 12px;
white-space:pre-wrap;overflow-wrap:anywhere}
pre span{display:inline-block;max-width:100%}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;color:var(--soft);font-size:.87rem}
.key i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:16px 0}
.facts div{border:1px solid var(--line);border-radius:8px;padding:8px 12px}
.facts b{display:block;font-size:1.15rem}
svg.narrow{display:none}
@media (max-width:600px){svg.wide,svg.bar text{display:none}svg.narrow{display:block}}
"""


def page(plan: Document, others: Sequence[Document] = ()) -> str:
    """The whole page.

    Args:
        plan: `Plan.to_dict()`.
        others: the same model and machine at other contexts, for the curves; fewer than two
            different contexts give no curves.
    """
    title = f"{plan['model']} {plan['quantization']} on {plan['machine']}"
    body = [
        f"<h1>{escape(plan['model'])} {escape(plan['quantization'])} "
        f"{_VERDICTS[plan['verdict']]} on {escape(plan['machine'])}</h1>",
        f'<p class="soft">{plan["context"]} tokens for {_users(plan["users"])}, '
        f"{escape(plan['cache_type'])} cache: {escape(plan['context_reason'])}</p>",
        _facts(plan),
        _devices(plan),
        _curves(plan, others),
        _quantizations(plan),
        _fixes(plan),
        _command(plan),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_rules()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def contexts(trained: int, chosen: int) -> list[int]:
    """Contexts for the curves: powers of two up to what the model was trained for, at most nine."""
    last = max(trained, chosen, 4096)
    found = [2**power for power in range(11, 24) if 2**power <= last]
    return found[-9:]


def _rules() -> str:
    colours = "".join(
        f".{name}{{fill:var(--{name});stroke:var(--{name})}}rect.{name},.key .{name}"
        f"{{stroke:none;background:var(--{name})}}"
        for name in (*TERMS, "margin", "free")
    )
    # After the colours: a curve is a line, whatever its colour says.
    return _STYLE.strip() + colours + ".curve{fill:none}.band{stroke:none}"


def _users(count: int) -> str:
    return "one user" if count == 1 else f"{count} users"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


def _rate(rate: Mapping[str, float] | None) -> str:
    if rate is None:
        return "unknown"
    digits = 0 if rate["expected"] >= 10 else 1
    shown = f"{rate['expected']:.{digits}f}"
    if rate["high"] > 3 * max(rate["low"], 0.01):
        # A wide range is what is known, and not the number in its middle.
        shown += f" ({rate['low']:.{digits}f} to {rate['high']:.{digits}f})"
    return shown


def _facts(plan: Document) -> str:
    speed, largest = plan["speed"], plan["largest_context"]
    free = ", margin left free" if plan["verdict"] == "tight" else ""
    rows = [
        ("where", plan["where"]),
        ("largest context" + free, f"{plan['largest_context']} tokens" if largest else "none"),
        ("users at this context" + free, str(plan["most_users"] or "none")),
    ]
    reads = speed["decode"] is None and speed["prefill"] is not None
    if plan["verdict"] != "no" and not reads:
        rows += [
            ("tokens/s, short context", _rate(speed["decode"])),
            ("tokens/s, full context", _rate(speed["decode_full"])),
        ]
    if plan["verdict"] != "no":
        rows.append(("tokens/s read" if reads else "prompt tokens/s", _rate(speed["prefill"])))
    cells = "".join(
        f"<div><span class=soft>{escape(name)}</span><b>{escape(value)}</b></div>"
        for name, value in rows
    )
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in plan["notes"])
    why = "Decides" if plan["verdict"] != "no" else "Because"
    return f'<div class="facts">{cells}</div><p>{why}: {escape(plan["binding"])}</p>{notes}'


def _label(device: Document) -> str:
    name = str(device["name"])
    return name if device["index"] < 0 else f"GPU {device['index']}: {name}"


def _devices(plan: Document) -> str:
    if not plan["devices"]:
        return ""
    out = ["<h2>Memory by device</h2>", _key(plan)]
    for device in plan["devices"]:
        used, limit = device["used"]["expected"], device["limit"]
        parts = [
            Part(css=name, label=name, size=device["terms"][name]["expected"])
            for name in TERMS
            if name in device["terms"]
        ]
        spare = device["spare"]
        if spare > 0:
            parts.append(Part(css="free", label="free", size=spare))
        parts.append(Part(css="margin", label="margin", size=min(device["margin"], limit - used)))
        beyond = used - limit
        words = (
            f'<span class="bad">{_gib(beyond)} more than it has</span>'
            if beyond > 0
            else f"{_gib(used)} of {_gib(limit)}"
        )
        out.append(
            f"<p>{escape(_label(device))} <span class=soft>· {words} · "
            f"{escape(device['budget_reason'])}</span></p>"
        )
        out.append(_charts.bar(parts, max(limit, used, 1), limit, _gib))
    out.append(_table(plan))
    if plan["split"]:
        out.append(f'<p class="soft">Split: {escape(plan["split"])}</p>')
    return "".join(out)


def _present(plan: Document) -> list[str]:
    return [name for name in TERMS if any(name in each["terms"] for each in plan["devices"])]


def _key(plan: Document) -> str:
    names = [*_present(plan), "free", "margin"]
    items = "".join(f'<span><i class="{name}"></i>{name}</span>' for name in names)
    return f'<div class="key">{items}</div>'


def _table(plan: Document) -> str:
    rows = []
    for device in plan["devices"]:
        for name in TERMS:
            term = device["terms"].get(name)
            if term is None:
                continue
            spread = f"{term['low'] / _GIB:.2f} to {term['high'] / _GIB:.2f}"
            rows.append(
                f"<tr><td>{escape(_label(device))}</td><td class=words>{name}</td>"
                f"<td>{term['expected'] / _GIB:.2f}</td><td>{spread}</td>"
                f"<td class=words>{escape(term['reason'])}</td></tr>"
            )
    return (
        "<details><summary class=soft>Every term, in GiB, with its range</summary>"
        '<div class="scroll"><table><thead><tr><th>device</th><th class=words>term</th>'
        "<th>expected</th><th>range</th><th class=words>why</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _groups(plan: Document) -> list[list[Document]]:
    """The devices that decide, those of one size together: the GPUs, or the host without any."""
    deciding = [each for each in plan["devices"] if each["index"] >= 0] or plan["devices"]
    found: dict[int, list[Document]] = {}
    for device in deciding:
        found.setdefault(device["limit"], []).append(device)
    return list(found.values())


def _fullest(plan: Document, group: Sequence[Document]) -> Document | None:
    """The device of a group that this plan, perhaps at another context, fills most."""
    indices = [device["index"] for device in group]
    of_group = [each for each in plan["devices"] if each["index"] in indices]
    return max(of_group, key=lambda each: each["used"]["expected"], default=None)


def _curves(plan: Document, others: Sequence[Document]) -> str:
    by_context = {each["context"]: each for each in [*others, plan] if each["devices"]}
    if len(by_context) < 2 or not plan["devices"]:
        return ""
    series = [by_context[context] for context in sorted(by_context)]
    # Of several contexts the one that needs most devices names them all.
    most = max(series, key=lambda each: len(each["devices"]))
    drawn = "".join(_memory_curve(plan, series, group) for group in _groups(most))
    if not drawn:
        return ""
    gpus = any(device["index"] >= 0 for device in most["devices"])
    beyond = "does not fit on the GPU" if gpus else "is missing"
    host = " Layers in host memory are not counted here." if gpus and _spills(series) else ""
    out = (
        "<h2>Context length against memory</h2><p class=soft>What is above the red line "
        f"{beyond}.{host}</p>"
    )
    return out + drawn + (_speed_curves(plan, series) if plan["verdict"] != "no" else "")


def _spills(series: Sequence[Document]) -> bool:
    return any(
        each["where"] != "CPU" and (each["host_layers"] or each["host_expert_layers"])
        for each in series
    )


def _memory_curve(plan: Document, series: Sequence[Document], group: Sequence[Document]) -> str:
    """What the fullest device of a group holds at each context, below its own limit."""
    held = [(each["context"], _fullest(each, group)) for each in series]
    points = [(context, device) for context, device in held if device is not None]
    if not points:
        return ""
    memory = Line(
        css="cache",
        label="memory used",
        points=[(context, device["used"]["expected"] / _GIB) for context, device in points],
        band=[
            (device["used"]["low"] / _GIB, device["used"]["high"] / _GIB) for _, device in points
        ],
    )
    weights = Line(
        css="weights second",
        label="of it weights",
        points=[
            (context, device["terms"].get("weights", {"expected": 0})["expected"] / _GIB)
            for context, device in points
        ],
    )
    limit = group[0]["limit"] / _GIB
    one = "host" if group[0]["index"] < 0 else "GPU"
    several = len(group) > 1
    names = ", ".join(dict.fromkeys(str(device["name"]) for device in group))
    whose = f"the fullest of {len(group)} GPUs" if several else one
    return (
        f'<p class="soft">{escape(names)}{", the fullest" if several else ""}</p>'
        + _legend([memory, weights])
        + _charts.curves(
            [memory, weights],
            label=f"Memory on {whose} by context length",
            unit="GiB",
            limit=limit,
            limit_label=f"{'each GPU' if several else one}: {limit:.1f} GiB",
            here=plan["context"],
        )
    )


def _speed_curves(plan: Document, series: Sequence[Document]) -> str:
    lines = []
    for field, css, label in (
        ("decode_full", "compute", "context full"),
        ("decode", "weights second", "context nearly empty"),
    ):
        points = [(each["context"], each["speed"][field]) for each in series]
        known = [(x, rate) for x, rate in points if rate is not None]
        if len(known) > 1:
            lines.append(
                Line(
                    css=css,
                    label=label,
                    points=[(x, rate["expected"]) for x, rate in known],
                    band=[(rate["low"], rate["high"]) for _, rate in known]
                    if field == "decode_full"
                    else (),
                )
            )
    if not lines:
        return ""
    return (
        "<h2>Context length against speed</h2>"
        f'<p class="soft">Tokens per second of one stream. {escape(plan["speed"]["reason"])}</p>'
        + _legend(lines)
        + _charts.curves(
            lines,
            label="Tokens per second by context length",
            unit="tokens/s",
            here=plan["context"],
        )
    )


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<span><i class="{line.css.split()[0]}"></i>{escape(line.label)}'
        f"{' (dashed)' if 'second' in line.css else ''}</span>"
        for line in lines
    )
    return f'<div class="key">{items}</div>'


def _quantizations(plan: Document) -> str:
    if not plan["quantizations"]:
        return ""
    words = {"fits": "fits", "tight": "tight", "no": "no", "host": "with a part in host memory"}
    rows = "".join(
        f"<tr><td>{escape(fit['name'])}</td><td>{fit['weight_bytes'] / _GIB:.2f}</td>"
        f"<td class=words>{words[_fit(fit)]}</td></tr>"
        for fit in plan["quantizations"]
    )
    return (
        "<h2>Quantizations at this context</h2><table><thead><tr><th>name</th>"
        f"<th>weights, GiB</th><th class=words>fits</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _fit(fit: Document) -> str:
    return "host" if fit["verdict"] == "no" and fit["with_host"] else str(fit["verdict"])


def _fixes(plan: Document) -> str:
    if not plan["fixes"]:
        return ""
    items = "".join(
        f"<li>{escape(fix['change'])} <span class=soft>({escape(fix['cost'])})</span>"
        f"{' <code>' + escape(fix['flags']) + '</code>' if fix['flags'] else ''}</li>"
        for fix in plan["fixes"]
    )
    where = " on GPUs alone" if plan["verdict"] == "fits" else ""
    return f"<h2>What would make it fit{where}</h2><ol>{items}</ol>"


def _command(plan: Document) -> str:
    if plan["verdict"] == "no" or not plan["command"]:
        return ""
    # Words stay whole where they can: a line that begins with the second half of -np misleads.
    words = " ".join(f"<span>{escape(word)}</span>" for word in plan["command"].split(" "))
    return f"<h2>Command</h2><pre>{words}</pre>"
