"""What an operation yields and is sent, and what an engine makes of a request: all of it data.

`enginekit.engine` has the rules; these names are used from there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from enginekit.errors import EngineKitError
from enginekit.types import Chunk, Receipt

if TYPE_CHECKING:
    from enginekit.engine import Engine

_T = TypeVar("_T")

Framing = Literal["sse", "ndjson", "json", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """How long each kind of wait may take, in seconds. Every wait has one; none is infinite.

    Attributes:
        connect: opening the connection.
        load: waiting for a server that says it is still loading its model.
        first_token: from the request to the first decoded event that carries something;
            comments, pings and role-only events do not count.
        between_tokens: from one decoded event to the next.
        whole_reply: from the request to the end, for a reply that is not streamed.
    """

    connect: float = 5.0
    load: float = 600.0
    first_token: float = 600.0
    between_tokens: float = 120.0
    whole_reply: float = 3600.0

    def before_first(self, framing: Framing) -> float:
        """Seconds until something of the reply must be there: the whole where nothing streams."""
        return self.whole_reply if framing in ("json", "text") else self.first_token

    def hurried(self, framing: Framing) -> bool:
        """Whether a reply may have to be there before a load is over, so that loading is apart."""
        return self.before_first(framing) < self.load

    @classmethod
    def of(cls, timeout: float | Budgets | Mapping[str, float] | None) -> Budgets:
        """Budgets from what a user passes as `timeout`.

        A number limits the first token, the wait between tokens and a whole unstreamed reply alike
        (and the connection, when smaller). A load it leaves alone: loading is not failure, and a
        load that is given up begins anew with the next call. A mapping sets single budgets and
        leaves the others as they are; None keeps the defaults.
        Raises ValueError for a negative number or an unknown name.
        """
        if timeout is None:
            return cls()
        if isinstance(timeout, Budgets):
            return timeout
        if isinstance(timeout, Mapping):
            unknown = set(timeout) - set(cls.__slots__)
            if unknown:
                raise ValueError(f"unknown budget {sorted(unknown)[0]!r}")
            for name, seconds in timeout.items():
                if not seconds > 0:
                    raise ValueError(f"{name} must be positive, got {seconds}")
            single: dict[str, Any] = dict(timeout)
            return replace(cls(), **single)
        if timeout <= 0:
            raise ValueError(f"timeout must be positive, got {timeout}")
        return cls(
            connect=min(cls().connect, timeout),
            first_token=timeout,
            between_tokens=timeout,
            whole_reply=timeout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a server is and how to be let in.

    Attributes:
        base_url: `http://host:port[/prefix]`, `https://…` or `unix:///path/to/socket`, without a
            trailing slash and without `/v1`.
        headers: sent with every request, the key among them; never shown in `repr`.
        ca_file: PEM file of the authorities to trust instead of the system's.
        client_cert: PEM file with certificate and key to present.
        verify: False accepts any certificate.
        proxy: UNSET-like `None` lets the environment decide; `""` forbids a proxy.
        connect: seconds to connect within, for whatever is asked of the server beside the replies,
            whose budgets say it themselves.
    """

    base_url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    client_cert: str | None = None
    verify: bool = True
    proxy: str | None = None
    connect: float = Budgets().connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request. Yielded by itself it is answered with a whole `Answer`.

    Attributes:
        path: from the target's base URL, beginning with a slash.
        json: the body, JSON-able; None sends none. The driver serialises it.
        framing: how the answer's body is cut into events.
        timeout: seconds for the whole answer when the call is yielded by itself.
    """

    target: Target
    method: Literal["GET", "POST", "DELETE", "HEAD"]
    path: str
    json: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    framing: Framing = "json"
    timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole HTTP answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Status 2xx."""
        return 200 <= self.status < 300


class Decoder(Protocol):
    """Turns the body of one answer into chunks; pure, cut its input where you like.

    The driver calls `feed` with bytes as they come, then one of `eof` (the body ended cleanly) or
    `abort` (the connection broke or a budget ran out). None of them raises for what the server
    sent: chunks decoded before a fault are returned, and the fault is left in `failure`.
    After `done` or `failure` the driver feeds no more.
    """

    done: bool
    """The terminal fact was seen and the chunk with `end` has been returned."""
    failure: EngineKitError | None

    def feed(self, data: bytes) -> list[Chunk]:
        """Chunks that these bytes complete."""
        ...

    def eof(self) -> list[Chunk]:
        """The body ended. Completes the reply or sets `failure`."""
        ...

    def abort(self, error: EngineKitError) -> list[Chunk]:
        """The transport failed with `error`. Completes the reply if it was whole already."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A request made ready: the call, what became of each field, and how to read the answer.

    `decoder` makes a fresh decoder, one per attempt.
    """

    call: Call
    receipt: Receipt
    decoder: Callable[[], Decoder]


# ---------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Start a reply. Answered, once its first chunk is decoded, with the driver's stream.

    The stream is an iterator (async iterator) of `Chunk` that closes its response at the end, on
    `close()` / `aclose()` and on garbage collection. A refusal (status not 2xx) is thrown as what
    `engine.failure` makes of it; so is a failure before the first chunk.
    """

    engine: Engine
    encoded: Encoded
    budgets: Budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Wait `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Run operations side by side; answered with a list of results or exceptions, in order.

    Those not finished after `deadline` seconds are cancelled and yield an `EngineTimeout`.
    """

    operations: tuple[Operation[Any], ...]
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocking:
    """Run a function that blocks (start a child, take a lock); a thread under async."""

    function: Callable[[], Any]


Effect: TypeAlias = Call | Open | Sleep | Gather | Blocking
Operation: TypeAlias = Generator[Effect, Any, _T]
