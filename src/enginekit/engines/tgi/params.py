"""TGI's parameters: one table for `/v1/chat/completions`, one for the native `/generate`.

The two disagree: the chat route has no `top_k`, reads `presence_penalty` as a repetition penalty and
samples unless told otherwise; the native one is greedy unless a sampling parameter is set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from enginekit.engines._params import Rule, Table, omitted, refused, sent

SLICE: Final = 1024
"""Tokens the server generates at a time. More are rounded up to whole slices, and a grammar begins
anew with each: seen with 1300 and 1500, which gave 2048 tokens, and with a regex that never ended."""
MAX_STOPS: Final = 4
"""`--max-stop-sequences`."""
MAX_TOP: Final = 5
"""`--max-top-n-tokens`."""
MAX_SEED: Final = 2**64 - 1


def _same(note: str) -> Rule:
    """A value that says what the server does anyway, and that it would refuse or misread."""
    return Rule(outcome="translated", note=note, case="neutral", pin=False)


def _below_one(wire: str) -> Callable[[Any], Rule]:
    def rule(value: Any) -> Rule:
        if value == 1:
            return _same("left out: the server refuses 1.0, and without the field it is off")
        return Rule(wire=wire, low=0, high=1, above=True)

    return rule


def _tokens(wire: str) -> Callable[[Any], Rule]:
    def rule(value: Any) -> Rule:
        if isinstance(value, int | float) and value > SLICE:
            return Rule(
                outcome="emulated",
                wire=wire,
                case="slices",
                note=f"the server rounds more than {SLICE} up to whole slices: "
                "the answer is streamed and cut by enginekit",
            )
        return Rule(wire=wire, low=1)

    return rule


def _stops(wire: str) -> Callable[[Sequence[str]], Rule]:
    def rule(stops: Sequence[str]) -> Rule:
        given = [stop for stop in stops if stop]
        return Rule(
            outcome="emulated",
            wire=wire if given else "",
            value=lambda _: given[:MAX_STOPS],
            case="many" if len(given) > MAX_STOPS else "",
            note="the server finds stop strings at the end of a token only, at most "
            f"{MAX_STOPS} of them, and leaves them in the text: enforced by enginekit as well",
        )

    return rule


def _presence(value: Any) -> Rule:
    if value == 0:
        return _same("left out: the server would read 0 as a repetition penalty of 2")
    return omitted("the server has none: it reads the field as a repetition penalty")


def _one(value: Any) -> Rule:
    if value == 1:
        return _same("left out: the server makes one answer")
    return refused("the server makes one answer", "send the request several times")


_NO_MIROSTAT: Final = omitted("TGI has no Mirostat")

_COMMON: Final[Table] = {
    "min_p": omitted("TGI has no min_p"),
    "min_tokens": omitted("TGI has no least length"),
    "repetition_window": omitted("the penalty always looks at the whole text"),
    "ignore_eos": omitted("TGI cannot ignore the end token"),
    "mirostat": _NO_MIROSTAT,
    "mirostat_tau": _NO_MIROSTAT,
    "mirostat_eta": _NO_MIROSTAT,
    "logit_bias": refused("TGI has a field of this name, types it as a list and does not use it"),
    "presence_penalty": _presence,
}

CHAT: Final[Table] = {
    **_COMMON,
    "temperature": sent("temperature", 0),
    "top_p": _below_one("top_p"),
    "top_k": omitted("the chat route ignores it; text completions take it"),
    "typical_p": omitted("the chat route ignores it; text completions take it"),
    "seed": sent("seed", 0, MAX_SEED),
    "max_tokens": _tokens("max_tokens"),
    "stop": _stops("stop"),
    "repetition_penalty": Rule(
        outcome="translated",
        wire="presence_penalty",
        value=lambda penalty: penalty - 2.0,
        low=0,
        above=True,
        pin=False,
        note="as presence_penalty, which the chat route reads as a repetition penalty minus 2",
    ),
    "frequency_penalty": sent("frequency_penalty", -2, 2),
    "logprobs": sent("logprobs"),
    "top_logprobs": sent("top_logprobs", 0, MAX_TOP),
    "n": _one,
}
"""`presence_penalty: 0` is never sent: the server adds 2 to whatever comes (TGI issue 1796)."""


def _top_k(value: Any) -> Rule:
    if value == 0:
        return _same("left out: the server refuses 0, and without the field it is off")
    return Rule(wire="parameters.top_k", low=1)


def _temperature(value: Any) -> Rule:
    if value == 0:
        return Rule(
            outcome="translated",
            case="greedy",
            note="left out: the server refuses 0, and without sampling parameters it is greedy",
        )
    return Rule(wire="parameters.temperature", low=0, above=True)


def _best_of(value: Any) -> Rule:
    if value == 1:
        return _same("left out: the server makes one answer")
    return Rule(
        outcome="translated",
        wire="parameters.best_of parameters.do_sample",
        value=lambda given: {"parameters.best_of": given, "parameters.do_sample": True},
        low=1,
        note="as best_of, whose other sequences are kept",
    )


GENERATE: Final[Table] = {
    **_COMMON,
    "temperature": _temperature,
    "top_p": _below_one("parameters.top_p"),
    "top_k": _top_k,
    "typical_p": _below_one("parameters.typical_p"),
    "seed": sent("parameters.seed", 0, MAX_SEED),
    "max_tokens": _tokens("parameters.max_new_tokens"),
    "stop": _stops("parameters.stop"),
    "repetition_penalty": sent("parameters.repetition_penalty", 0, above=True),
    "frequency_penalty": sent("parameters.frequency_penalty", -2, 2),
    "n": _best_of,
}

GREEDY: Final = Rule(
    outcome="translated",
    case="greedy",
    note="left out: the answer is greedy, and the field would switch sampling on",
)
"""What becomes of `top_p`, `top_k` and `typical_p` on the native route at temperature 0."""

CAPPED: Final = Rule(
    outcome="translated",
    wire="max_tokens",
    value=lambda _: SLICE,
    case="grammar",
    note=f"capped at {SLICE}: constrained output begins anew after that many tokens",
)
