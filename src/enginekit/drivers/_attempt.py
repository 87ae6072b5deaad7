"""What exceptions of the transport mean while a request is under way, for both drivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from enginekit.drivers import _errors
from enginekit.drivers._request import Outgoing
from enginekit.engine import Call
from enginekit.errors import EngineKitError, EngineTimeout, MalformedReply, Phase, StreamTruncated


class Meanings(ABC):
    """One request under way, with its budget: turns foreign exceptions into ours.

    A subclass names the table of its library's exceptions.
    """

    __slots__ = ("_connect", "_request", "budget", "call", "deadline", "engine", "phase", "proxy")

    @staticmethod
    @abstractmethod
    def _foreign() -> Mapping[type[BaseException], _errors.Meaning]:
        """What the library's exceptions mean."""

    def __init__(
        self,
        call: Call,
        request: Outgoing,
        engine: str,
        phase: Phase,
        budget: float,
        connect_budget: float,
        now: float,
    ) -> None:
        self.call = call
        self.engine = engine
        self.phase: Phase = phase
        self.budget = budget
        self.deadline = now + budget
        self.proxy: str | None = None
        self._request = request
        self._connect = min(connect_budget, budget)

    def error(self, error: BaseException) -> EngineKitError:
        """What an exception of the transport means now."""
        return self._translate(error, self.phase, self.budget)

    def unanswered(self, error: BaseException) -> EngineKitError:
        """What it means between the request and the head of its answer."""
        worked = not self._request.safe
        return self._translate(error, self.phase, self.budget, worked=worked)

    def cut(self, error: BaseException) -> EngineKitError:
        """What an exception inside a whole answer's body means."""
        ours = self.error(error)
        if isinstance(ours, EngineTimeout | MalformedReply):
            return ours
        return StreamTruncated(
            f"the answer of {self.call.target.base_url}{self.call.path} was cut: {error}",
            engine=self.engine,
            url=self.call.target.base_url,
        )

    def _translate(
        self, error: BaseException, phase: Phase, budget: float, *, worked: bool = False
    ) -> EngineKitError:
        return _errors.translate(
            error,
            self._foreign(),
            url=self.call.target.base_url,
            engine=self.engine,
            phase=phase,
            budget=budget,
            proxy=self.proxy,
            worked=worked,
        )
