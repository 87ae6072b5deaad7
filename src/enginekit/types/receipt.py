"""What became of each field of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal["sent", "translated", "emulated", "omitted", "refused"]


class Entry(NamedTuple):
    """What became of one field of a request.

    Attributes:
        field: the field's name (`"sampling.top_k"`, `"tools"`, `"messages"`); `"-"` for something
            the engine needs that the caller did not ask for.
        outcome: sent as it is, translated to another shape, emulated by other means, omitted
            (tuning only) or refused.
        rule: stable id of the rule that decided, `"<dialect>.<field>[.<case>]"`.
        wire: path in the body (`"options.top_k"`), several joined by a space, "" if none.
        note: one sentence where the outcome is not plain `sent`.
    """

    field: str
    outcome: Outcome
    rule: str
    wire: str = ""
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Receipt:
    """What was sent, field by field, to which engine; and which server defaults were in effect.

    Attributes:
        defaults: field name to the server's own value for what was left unset, where known.
        repairs: what was mended in the reply (usage lost, stop text cut off, call lifted), one
            sentence each.
        passed_over: engines of a list that were asked before the one that answered, each with its
            reason (`"vllm: …"`).
    """

    engine: str
    engine_version: str | None = None
    url: str = ""
    entries: list[Entry] = field(default_factory=list)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def outcome(self, name: str) -> Outcome | None:
        """The outcome of one field, or None if the request did not have it set."""
        for entry in self.entries:
            if entry.field == name:
                return entry.outcome
        return None

    @property
    def omitted(self) -> tuple[str, ...]:
        """Names of the fields that were left out."""
        return tuple(entry.field for entry in self.entries if entry.outcome == "omitted")

    def to_dict(self) -> dict[str, Any]:
        """A plain JSON-able mapping, for metadata, logs and traces."""
        return {
            "engine": self.engine,
            "engine_version": self.engine_version,
            "url": self.url,
            "entries": [entry._asdict() for entry in self.entries],
            "defaults": dict(self.defaults),
            "repairs": list(self.repairs),
            "notes": list(self.notes),
            "passed_over": list(self.passed_over),
        }
