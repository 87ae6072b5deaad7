"""Whether a server goes on generating for a client that left, by the server's own metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from enginekit.errors import EngineKitError
from enginekit.facts.engine import Load
from enginekit.kit.client import Client

PATIENCE = 30.0
"""Seconds until a server that does not come to rest counts as never coming there."""
ROUNDS = 4
EMPTY = 8
"""Rounds in which the client left before the server had begun: more of them, and none says anything."""
FIRST_DELAY = 0.02


class Meter:
    """What a server generated since the meter was made.

    Made before a long request and read after its client left. The number of generated tokens is
    the proof: a server that is idle may simply have come to the end.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        begin = self._load()
        self.shown = (
            begin is not None
            and begin.running is not None
            and begin.generated_tokens_total is not None
        )
        self._before = (begin and begin.generated_tokens_total) or 0

    def at_rest(self) -> int:
        """Tokens generated since the meter was made, once the server works on nothing."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            load = self._load()
            if load is not None and load.running == 0:
                return int((load.generated_tokens_total or 0) - self._before)
            time.sleep(0.01)
        raise AssertionError(f"the server still generates, {PATIENCE:.0f} s after its client left")

    def _load(self) -> Load | None:
        try:
            return self._client.load_state()
        except EngineKitError:
            return None


def wasted(client: Client, leave: Callable[[float], None]) -> list[int]:
    """Tokens that the server generated in each of some rounds for a client that left.

    Args:
        leave: makes a long request and leaves it, as many seconds later as it is told, or at the
            first token. A round in which the server had not begun counts for nothing: the next one
            stays longer.
    """
    rounds: list[int] = []
    delay, empty = FIRST_DELAY, 0
    while len(rounds) < ROUNDS:
        meter = Meter(client)
        leave(delay)
        tokens = meter.at_rest()
        if tokens:
            rounds.append(tokens)
            continue
        empty += 1
        assert empty < EMPTY, "the server never began"
        delay *= 2
    return rounds


def stopped(rounds: list[int], whole: int) -> bool:
    """Whether leaving stopped the generation of replies that have `whole` tokens uncut.

    A machine that stands still for seconds may cost one round. A second that went past its half
    is no accident: a round takes tens of tokens.
    """
    return sum(tokens > whole // 2 for tokens in rounds) <= 1
