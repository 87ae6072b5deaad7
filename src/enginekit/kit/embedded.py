"""The embedded engine as the client sees it: a model name in, a lease on a running server out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from enginekit.config import Config
from enginekit.errors import EngineKitError, MissingExtra

if TYPE_CHECKING:
    from enginekit.catalog.download import Progress

    ProgressFactory = Progress
else:
    ProgressFactory = Any

DEFAULT_MODEL = "smollm2:135m"


class Lease(Protocol):
    """A hold on a server that enginekit started; see `enginekit.launch.embedded`."""

    base_url: str
    api_key: str
    notes: tuple[str, ...]

    def alive(self) -> bool:
        """Whether the server's process still runs."""
        ...

    def release(self) -> None:
        """Let go; the last one out stops the server."""
        ...


def is_model_file(name: str) -> bool:
    """Whether a model name is a file and not a name that some server may know."""
    return name.endswith(".gguf") or name.startswith("hf://") or Path(name).is_file()


def unavailable() -> EngineKitError | None:
    """Why the embedded engine cannot be used here, or None if it can."""
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        return MissingExtra(
            "the embedded engine needs the xllamacpp package, which is not installed",
            hint="pip install 'enginekit[embedded]'",
            extra="embedded",
        )
    return None


def start(config: Config, model: str, *, progress: Any, budget: float) -> Lease:
    """Fetch the model if need be and lease a server for it. Blocks."""
    raise NotImplementedError
