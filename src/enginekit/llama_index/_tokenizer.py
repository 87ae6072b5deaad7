"""The engine's own tokenizer as LlamaIndex wants one: a callable from text to token ids."""

from __future__ import annotations

from collections import OrderedDict

from enginekit.kit.client import Client

REMEMBERED = 4096
"""Texts whose ids are kept: LlamaIndex counts the same pieces again and again."""


class EngineTokenizer:
    """`tokenizer(text)` gives the ids that the engine in use would make of a text.

    Use it as `Settings.tokenizer`. Each new text is a request to the engine. Raises Unsupported when
    the engine has no tokenizer route: another tokenizer's ids would be wrong.
    """

    def __init__(self, client: Client) -> None:
        # Not the LLM, which keeps its tokenizer: a cycle would leave a lease to the collector.
        self._client = client
        self._seen: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens added."""
        if not text:
            return []
        ids = self._seen.get(text)
        if ids is None:
            ids = self._seen[text] = tuple(self._client.tokenize(text))
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return list(ids)

    def __repr__(self) -> str:
        return f"EngineTokenizer({self._client.model!r})"
