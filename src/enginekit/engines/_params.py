"""Parameters as data: what becomes of each field of a request, and the receipt that says so.

An engine describes its parameters as a table, field name to `Rule`. `Draft` applies tables to one
request: it builds the body and, in the same step, the receipt's entries, so that the two cannot
disagree. Every field that the caller set ends in exactly one entry; every path of the body belongs
to an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NoReturn, TypeAlias

from enginekit.engine import Engine
from enginekit.errors import BadRequest, Unsupported
from enginekit.types import (
    UNSET,
    Entry,
    Outcome,
    Receipt,
    Request,
    Sampling,
)

TUNING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "seed",
        "min_tokens",
        "repetition_penalty",
        "repetition_window",
        "frequency_penalty",
        "presence_penalty",
        "ignore_eos",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "keep_alive",
        "reasoning",
        "request_id",
    }
)
"""Fields that may be left out with a warning. Everything else is sent, emulated or refused."""

PINNED: Final[Mapping[str, Any]] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""The neutral set of `defaults="pinned"`: plain sampling from the model's own distribution.

`top_k` 0 switches it off on every engine that has it. An engine that lacks a field has nothing to
pin.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What becomes of one field on one engine.

    Attributes:
        outcome: `omitted` is allowed for `TUNING` only.
        wire: path in the body; several, separated by a space, when `value` returns a mapping from
            path to value.
        value: makes the wire value; None sends the field as it is.
        low, high: the range the engine takes; outside of it the request is refused before it is
            sent, because some engines clamp silently. None is open-ended.
        above: the lower end is not in the range.
        case: a suffix for the rule id, where a field has more than one rule.
        note: one sentence, wanted wherever the outcome is not `sent`.
        hint: for `refused`: what would help.
        pin: False where the neutral value must not be sent.
    """

    outcome: Outcome = "sent"
    wire: str = ""
    value: Callable[[Any], Any] | None = None
    low: float | None = None
    high: float | None = None
    above: bool = False
    case: str = ""
    note: str = ""
    hint: str = ""
    pin: bool = True


Choice: TypeAlias = Rule | Callable[[Any], Rule]
"""A rule, or a pure function from the field's value to the rule for that value."""

Table: TypeAlias = Mapping[str, Choice]
"""Field name to its rule. A field without a row is omitted if it is tuning, else refused."""


def sent(wire: str, low: float | None = None, high: float | None = None, **more: Any) -> Rule:
    """A field that goes out as it is, under `wire`."""
    return Rule(outcome="sent", wire=wire, low=low, high=high, **more)


def omitted(note: str) -> Rule:
    """A tuning field that this engine does not have."""
    return Rule(outcome="omitted", note=note)


def refused(note: str, hint: str = "") -> Rule:
    """A field that this engine cannot honour."""
    return Rule(outcome="refused", note=note, hint=hint)


_NAMES: Final = tuple(field.name for field in fields(Sampling))


def set_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that the caller set, in declaration order."""
    names = _NAMES if type(record) is Sampling else tuple(field.name for field in fields(record))
    return {name: value for name in names if (value := getattr(record, name)) is not UNSET}


class Draft:
    """A body and its receipt, built together for one request.

    Args:
        engine: whose receipt it is.
        request: settles `lossy` and `defaults`, and holds `engine_options`.
        dialect: first part of every rule id.
    """

    __slots__ = ("_claims", "_dialect", "_engine", "_request", "body", "receipt")

    def __init__(self, engine: Engine, request: Request, dialect: str) -> None:
        self.body: dict[str, Any] = {}
        self.receipt: Receipt = engine.receipt()
        self._engine = engine
        self._request = request
        self._dialect = dialect
        self._claims: dict[str, str] = {}

    # -- single fields ------------------------------------------------------------------

    def enter(
        self,
        field: str,
        outcome: Outcome,
        parts: Mapping[str, Any] | None = None,
        *,
        also: str = "",
        case: str = "",
        note: str = "",
    ) -> None:
        """Place `parts` (path to value) in the body and note what became of `field`.

        `also` names paths that carry the field, too, and are placed by another entry. Raises
        BadRequest when a path is already taken: then two settings contradict each other.
        """
        for path, value in (parts or {}).items():
            self._place(path, value, field)
        wire = " ".join(parts or ())
        if also:
            wire = f"{wire} {also}" if wire else also
        self.receipt.entries.append(Entry(field, outcome, self.rule_id(field, case), wire, note))

    def need(self, path: str, value: Any, *, case: str = "", note: str = "") -> None:
        """Something the engine needs that the caller did not ask for."""
        self._place(path, value, "-")
        rule = f"{self._dialect}.{case or path}"
        self.receipt.entries.append(Entry("-", "sent", rule, path, note))

    def omit(self, field: str, note: str, *, case: str = "") -> None:
        """Leave a tuning field out; under `lossy="error"` raise Unsupported instead."""
        name = field.rpartition(".")[2]
        if name not in TUNING or self._request.lossy == "error":
            self.refuse(field, note, case=case)
        self.enter(field, "omitted", case=case, note=note)

    def adapter(self, name: str) -> None:
        """An adapter that is a model of its own name: it takes the model's place in the body."""
        base, self.body["model"] = self.body["model"], name
        entries = self.receipt.entries
        entries[:] = [
            entry._replace(outcome="translated", note=f"the adapter's name stands for {base}")
            if entry.field == "model"
            else entry
            for entry in entries
        ]
        self.enter("lora", "translated", also="model", note="an adapter is a model of its own")

    def window_of_launch(self, wanted: int, hint: str) -> None:
        """Settle `context_window` for a server whose window was set when it was started.

        Raises Unsupported, with `hint`, when that window is unknown or smaller than `wanted` tokens.
        """
        facts = self._engine.facts
        window = facts.context_window if facts is not None else None
        if window is None or window < wanted:
            why = f"the window is set at launch and is {window or 'unknown'}"
            self.refuse("context_window", why, hint=hint)
        note = f"the server's window is {window} already"
        self.enter("context_window", "translated", note=note)

    def refuse(self, field: str, why: str, *, case: str = "", hint: str = "") -> NoReturn:
        """Raise Unsupported for `field`, before anything has been sent."""
        name = field.rpartition(".")[2]
        raise Unsupported(
            f"{self._engine.name} cannot take {field!r}: {why}",
            hint=hint or None,
            engine=self._engine.name,
            url=self._engine.target.base_url,
            feature=name,
            rule=self.rule_id(field, case),
        )

    def invalid(self, field: str, why: str) -> NoReturn:
        """Raise BadRequest for a value that no engine, or not this one, takes."""
        raise BadRequest(
            f"{field} {why}",
            engine=self._engine.name,
            url=self._engine.target.base_url,
            code="invalid_value",
        )

    def rule_id(self, field: str, case: str = "") -> str:
        """`<dialect>.<field>[.<case>]`, the field without its `sampling.` prefix."""
        name = field.removeprefix("sampling.")
        return f"{self._dialect}.{name}.{case}" if case else f"{self._dialect}.{name}"

    # -- tables -------------------------------------------------------------------------

    def apply(self, table: Table, values: Mapping[str, Any], prefix: str = "") -> None:
        """Settle every field of `values` by its row of `table`."""
        for name, value in values.items():
            self._settle(prefix + name, _rule(table, name, value), value)

    def sampling(self, table: Table, sampling: Sampling) -> None:
        """Settle the sampling parameters, pin the rest if asked, and state server defaults."""
        values = set_fields(sampling)
        self.apply(table, values, "sampling.")
        unset = [name for name in _NAMES if name not in values]
        if self._request.defaults == "pinned":
            self._pin(table, unset)
            unset = [name for name in unset if self.receipt.outcome(f"sampling.{name}") is None]
        known = self._known_defaults()
        self.receipt.defaults = {name: known[name] for name in unset if name in known}

    def options(self) -> None:
        """Place `engine_options`, each top-level key an entry of its own. Call this last."""
        for key, value in self._request.engine_options.items():
            parts: dict[str, Any] = {key: value}
            if isinstance(value, Mapping) and isinstance(self.body.get(key), dict):
                parts = {f"{key}.{name}": inner for name, inner in value.items()}
            self.enter(f"engine_options.{key}", "sent", parts)

    def _settle(self, field: str, rule: Rule, value: Any) -> None:
        if rule.outcome == "refused":
            self.refuse(field, rule.note, case=rule.case, hint=rule.hint)
        if rule.outcome == "omitted":
            self.omit(field, rule.note, case=rule.case)
            return
        self._check(field, rule, value)
        made = value if rule.value is None else rule.value(value)
        parts = made if " " in rule.wire else {rule.wire: made} if rule.wire else {}
        self.enter(field, rule.outcome, parts, case=rule.case, note=rule.note)

    def _check(self, field: str, rule: Rule, value: Any) -> None:
        if rule.low is None and rule.high is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.invalid(field, f"must be a number, got {value!r}")
        low, high = rule.low, rule.high
        too_low = low is not None and (value <= low if rule.above else value < low)
        # NaN compares false with everything and would pass as a sampling value otherwise.
        if too_low or (high is not None and value > high) or value != value:
            span = f"{'above' if rule.above else 'at least'} {low:g}" if low is not None else ""
            if high is not None:
                span += (" and " if span else "") + f"at most {high:g}"
            self.invalid(field, f"must be {span} on {self._engine.name}, got {value!r}")

    def _pin(self, table: Table, unset: Sequence[str]) -> None:
        for name in unset:
            if name not in PINNED or name not in table:
                continue
            value = PINNED[name]
            rule = _rule(table, name, value)
            if rule.outcome in ("omitted", "refused") or not rule.pin or not rule.wire:
                continue
            made = value if rule.value is None else rule.value(value)
            self.enter(
                f"sampling.{name}", "sent", {rule.wire: made}, case="pinned", note="pinned neutral"
            )

    def _known_defaults(self) -> Mapping[str, Any]:
        facts = self._engine.facts
        told = facts.extra.get("defaults", {}) if facts is not None else {}
        return {**self._engine.profile.defaults, **told}

    # -- the body -----------------------------------------------------------------------

    def _place(self, path: str, value: Any, field: str) -> None:
        here = self.body
        if "." not in path and path not in here:
            here[path] = dict(value) if isinstance(value, dict) else value
            self._claims[path] = field
            return
        *parents, last = path.split(".")
        for depth, key in enumerate(parents):
            step = here.setdefault(key, {})
            if not isinstance(step, dict):
                self._clash(".".join(parents[: depth + 1]), field)
            here = step
        if last in here:
            self._clash(path, field)
        here[last] = dict(value) if isinstance(value, Mapping) else value
        self._claims[path] = field

    def _clash(self, path: str, field: str) -> NoReturn:
        other = self._claims.get(path, "another setting")
        other = "the adapter itself" if other == "-" else other
        self.invalid(field, f"sets {path!r} of the request body, which {other} sets as well")


def _rule(table: Table, name: str, value: Any) -> Rule:
    row = table.get(name)
    if row is None:
        note = "this engine has no such parameter"
        return omitted(note) if name in TUNING else refused(note)
    return row if isinstance(row, Rule) else row(value)
