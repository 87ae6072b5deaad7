"""What the scripted weights say, worked out without an engine.

The chat template is rendered and the chain of tokens followed, which is all that these weights do.
For engines whose server cannot be run here: the words are these, the form is a recording's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.support.scripted import END, SPECIAL, Script, bytes_to_letters, script


@dataclass(frozen=True)
class Spoken:
    """A reply, token by token; a character split over two tokens is in the second.

    Attributes:
        finish: `stop`, or `length` where the limit cut it.
    """

    pieces: tuple[str, ...]
    tokens: int
    finish: str

    @property
    def text(self) -> str:
        """The pieces together."""
        return "".join(self.pieces)


@cache
def _made() -> Script:
    return script()


@cache
def _index() -> dict[str, int]:
    return {word: place for place, word in enumerate(_made().vocabulary)}


def rendered(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
    """The prompt, as an engine with the scripted chat template makes it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    told = [{**message, "content": _text(message.get("content"))} for message in messages]
    return environment.from_string(_made().template).render(
        bos_token=SPECIAL[0], messages=told, tools=tools or None, add_generation_prompt=True
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def continued(prompt: str, limit: int | None) -> Spoken:
    """The reply to a rendered prompt, or to any text.

    Args:
        limit: tokens; a reply without end needs one.
    """
    index, letters = _index(), bytes_to_letters()
    mark = prompt[prompt.rfind("<|") :]
    at = index[mark] if mark in index else index[letters[prompt.encode()[-1]]]
    backwards = {letter: byte for byte, letter in letters.items()}
    pieces: list[str] = []
    waiting = b""
    tokens = 0
    while limit is None or tokens < limit:
        after = _made().successors.get(at, index[END])
        tokens += 1
        if after == index[END]:
            return Spoken(tuple(pieces), tokens, "stop")
        word = _made().vocabulary[after]
        at = after
        waiting += word.encode() if word.startswith("<") else bytes(backwards[c] for c in word)
        try:
            pieces.append(waiting.decode())
        except UnicodeDecodeError:
            continue
        waiting = b""
    return Spoken(tuple(pieces), tokens, "length")


def answered(body: Mapping[str, Any], *, tools: bool = True) -> Spoken:
    """The reply to the body of a chat request in OpenAI's form."""
    prompt = rendered(body["messages"], body.get("tools") if tools else None)
    return continued(prompt, body.get("max_tokens"))
