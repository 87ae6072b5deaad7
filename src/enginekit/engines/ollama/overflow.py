"""What did not fit when a text to embed was too long: Ollama refuses it without any number.

Two limits stand behind one refusal: the window the model is loaded with, and the batch of its
runner, because a pooling model takes a text in one piece. The batch is 2,048 tokens unless `num_batch`
says otherwise (`DefaultEmbeddingNumBatch` in `llm/llama_server.go`, seen on 0.33.0-rc2: with a window of
4,096 a text of 2,500 tokens is refused as longer than the context).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from enginekit.engine import Operation
from enginekit.errors import ContextOverflow, EngineKitError

BATCH: Final = 2048
"""Tokens that the runner of an embedding model takes at once, unless `num_batch` says otherwise."""

SINCE: Final = (0, 30)
"""The first version whose runner is llama.cpp's server; of an older one no batch is known."""

LAST: Final = 3
"""The `pooling_type` that takes the last token: only there may a text come in several batches."""

MOST_PIECES: Final = 16
"""A text of more pieces than this is not counted: counting costs as much as embedding it twice."""

Ask = Callable[[Sequence[str]], Operation[Mapping[str, Any]]]
"""Embed these texts whole and give the answer; raises what the server refuses."""


def explained(
    error: ContextOverflow,
    texts: Sequence[str],
    ask: Ask | None,
    *,
    window: int | None,
    batch: int,
    splits: bool,
) -> Operation[ContextOverflow]:
    """The same refusal with its numbers: the limit that was met and the length of the longest text.

    Args:
        ask: how the text is counted; None where that would cost too much.
        window: tokens the model is loaded with.
        batch: tokens its runner takes at once.
        splits: whether a text may be longer than a batch.
    """
    longest = max(texts, key=len, default="")
    requested = None
    if ask is not None:
        requested = yield from counted(longest, min(window or batch, batch), ask)
    limit = window
    if window is not None and (not splits or (requested is not None and requested <= window)):
        limit = min(window, batch)
    of_batch = window is not None and limit is not None and limit < window
    which = "the text" if len(texts) == 1 else f"the longest of {len(texts)} texts"
    size = f"{len(longest)} characters" if requested is None else f"about {requested} tokens"
    room = f", the batch of a model with a window of {window}" if of_batch else ""
    most = "fewer tokens" if limit is None else f"at most {limit} tokens"
    return ContextOverflow(
        f"{error.engine} at {error.url} embeds {most} at once{room}; {which} has {size}",
        hint="cut the text shorter, or give the runner a larger batch (and the memory for it): "
        f'engine_options={{"options": {{"num_batch": {window}}}}}'
        if of_batch
        else "cut the text shorter, or let the server cut it: truncate=True",
        engine=error.engine,
        url=error.url,
        status=error.status,
        body=error.body,
        limit=limit,
        requested=requested,
    )


def counted(text: str, limit: int, ask: Ask) -> Operation[int | None]:
    """Tokens of a text that is too long, or None when that is not to be had for a fair price.

    The server has no tokenizer route but says how many tokens it embedded, so the text is embedded
    in pieces, twice, the second time in twice as many: what the second count has more is what the
    cuts and the special tokens of each piece add, and is taken off.
    """
    whole = pieces(text, max(limit, 2))
    if not 0 < len(whole) <= MOST_PIECES:
        return None
    halves = [half for piece in whole for half in pieces(piece, (len(piece) + 1) // 2)]
    try:
        once = (yield from ask(whole)).get("prompt_eval_count")
        twice = (yield from ask(halves)).get("prompt_eval_count")
    except EngineKitError:
        return None
    if not isinstance(once, int) or not isinstance(twice, int) or len(halves) == len(whole):
        return None
    each = max(twice - once, 0) / (len(halves) - len(whole))
    return round(once - each * (len(whole) - 1))


def pieces(text: str, size: int) -> list[str]:
    """The text in pieces of at most `size` characters, cut at blanks where there are any.

    A token has at least one character in most vocabularies, so a piece of as many characters as the
    limit has tokens fits.
    """
    found: list[str] = []
    rest = text.strip()
    while len(rest) > size:
        blank = max(rest.rfind(" ", size // 2, size), rest.rfind("\n", size // 2, size))
        end = blank if blank > 0 else size
        found.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        found.append(rest)
    return [piece for piece in found if piece]
