"""Whether a server goes on generating for a client that left, by the server's own metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from enginekit.errors import EngineKitError
from enginekit.facts.engine import Load
from enginekit.kit.client import Client

PATIENCE = 30.0
"""Seconds until a server that does not come to the state waited for counts as never coming there."""


class Meter:
    """What a server generated since the meter was made.

    Made before a long request and read after its client left. The number of generated tokens is
    the proof: a server that is idle may simply have come to the end.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        begin = self._load()
        self.shown = begin is not None and begin.running is not None
        self._before = begin.generated_tokens_total if begin else None

    def until_idle(self) -> bool:
        """Whether the server came to work on nothing."""
        return self._until(lambda load: load.running == 0)

    def generated(self) -> int | None:
        """Tokens generated since the meter was made; None where the server does not count them."""
        now = self._load()
        if now is None or now.generated_tokens_total is None or self._before is None:
            return None
        return int(now.generated_tokens_total - self._before)

    def stopped_before(self, tokens: int) -> bool:
        """Whether the server became idle, having generated fewer tokens than an uncut reply has."""
        if not self.until_idle():
            return False
        generated = self.generated()
        return generated is None or generated < tokens

    def _until(self, met: Callable[[Load], bool]) -> bool:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            load = self._load()
            if load is not None and met(load):
                return True
            time.sleep(0.01)
        return False

    def _load(self) -> Load | None:
        try:
            return self._client.load_state()
        except EngineKitError:
            return None
