"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Connection:
    """Which engine to talk to; what is not given comes from the environment and files."""

    engine: Annotated[str | None, Parameter(name=["--engine", "-e"])] = None
    """Engine name, or several: vllm,ollama (the first that can answer does)."""
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None
    """Model name, GGUF file or hf://repo/file."""
    base_url: str | None = None
    """Address of a running server."""
    timeout: float | None = None
    """Seconds to wait for the first token, and from one token to the next."""

    def settings(self) -> dict[str, Any]:
        """As settings of a client."""
        return {
            "engine": self.engine,
            "model": self.model,
            "base_url": self.base_url,
            "timeout": self.timeout,
        }
