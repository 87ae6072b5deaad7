"""Fields and keywords of a generating model to our requests: what LangChain says in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from enginekit.kit.keywords import CHAT_KEYWORDS, COMMON_FIELDS, SAMPLING, Dialect
from enginekit.kit.keywords import with_call as laid_over
from enginekit.langchain._keywords import FOREIGN, NEEDLESS
from enginekit.langchain._tools import to_constraint, to_tools

COMPLETION_FIELDS: Final = (*COMMON_FIELDS, "suffix")
COMPLETION_KEYWORDS: Final = ("model", *SAMPLING, *COMPLETION_FIELDS, "response_format")
"""Every keyword that a text completion takes."""

DIALECT: Final = Dialect(
    foreign=FOREIGN,
    needless=NEEDLESS,
    # They choose a route through the framework.
    ignored=frozenset({"stream", "strict", "ls_structured_output_format"}),
    tools=to_tools,
    constraint=to_constraint,
)


def with_call(
    base: Mapping[str, Any],
    stop: Sequence[str] | str | None,
    kwargs: Mapping[str, Any],
    *,
    where: str,
    known: Sequence[str] = CHAT_KEYWORDS,
) -> dict[str, Any]:
    """As `enginekit.kit.keywords.with_call`; LangChain hands on `stop` beside the keywords."""
    given = kwargs if stop is None else {"stop": stop, **kwargs}
    return laid_over(base, given, DIALECT, where=where, known=known)
