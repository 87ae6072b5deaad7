"""The embedded engine as the client sees it: a model name in, a lease on a running server out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from enginekit.config import Config
from enginekit.errors import DownloadError, DownloadTooLarge, EngineKitError

if TYPE_CHECKING:
    from enginekit.catalog.sources import LocalModel
    from enginekit.launch.embedded import Lease as Lease
    from enginekit.launch.embedded import Running as Running

DEFAULT_MODEL = "smollm2:135m"
"""What runs when nothing else is named: real, 98 MB, and no more than a proof of the plumbing."""


class Progress(Protocol):
    """Told about whatever takes long; see `enginekit.catalog.download`."""

    def start(self, total: int | None, label: str) -> None:
        """Something begins: `total` bytes, or None for a wait without measure."""
        ...

    def advance(self, count: int) -> None:
        """`count` more bytes are there."""
        ...

    def finish(self) -> None:
        """It is over, well or not."""
        ...


def is_model_file(name: str) -> bool:
    """Whether a model name is a file and not a name that some server may know."""
    return name.endswith(".gguf") or name.startswith("hf://") or Path(name).is_file()


def smallest_window() -> int:
    """The fewest tokens a slot of a server that we start has when nobody says how many."""
    from enginekit.launch._spec import LEAST_CONTEXT

    return LEAST_CONTEXT


def unavailable() -> EngineKitError | None:
    """Why the embedded engine cannot be used here, or None if it can."""
    from enginekit.launch import embedded

    error = embedded.unavailable()
    return error if isinstance(error, EngineKitError) else None


def installed_version() -> str:
    """The version of the wheel that the embedded engine runs from; "" if there is none."""
    from enginekit.launch import _platform

    return _platform.installed_version() or ""


def fetch(model: str, *, progress: Progress | None, allow_large: bool = False) -> LocalModel:
    """The file of a model, fetched if need be. Blocks; raises as `catalog.sources.resolve` does."""
    from enginekit.catalog import sources

    try:
        return sources.resolve(model, allow_large=allow_large, progress=progress)
    except DownloadTooLarge:
        raise
    except DownloadError as error:
        if error.hint:
            raise
        raise DownloadError(
            f"the model {model!r} could not be fetched: {error.message}",
            hint="name a GGUF file you have (ENGINEKIT_MODEL=/path/to/model.gguf), or fetch it "
            f"where its source is reachable: enginekit pull {model}",
        ) from error


def start(
    config: Config,
    model: str,
    *,
    progress: Progress | None,
    budget: float,
    embeds: bool = False,
) -> Lease:
    """Fetch the model if need be and lease a server for it. Blocks at most about `budget` s.

    A server either chats or, with `embeds`, embeds.
    """
    error = unavailable()
    if error is not None:
        raise error
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    local = fetch(
        model, progress=progress, allow_large=bool(config.value("allow_large_download", False))
    )
    settings: dict[str, Any] = {
        "context": config.value("context"),
        "slots": config.value("slots"),
        "threads": config.value("threads"),
        "chat_template": config.value("chat_template"),
        "embeddings": embeds,
    }
    lease = acquire(
        EmbeddedSpec(
            model_path=local.path, alias=None if is_model_file(model) else model, **settings
        ),
        budget=budget,
        progress=progress,
    )
    lease.notes = (*lease.notes, f"model file: {local.source}")
    return lease


def running() -> list[Running]:
    """The embedded servers of this user."""
    from enginekit.launch import embedded

    return embedded.running()
