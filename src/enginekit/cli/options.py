"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter, Token


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


_THOUSANDS = {"": 1, "k": 2**10, "m": 2**20}


def tokens(_type: object, given: Sequence[Token]) -> int:
    """A number of tokens: 8192, 8k (8 x 1024), 1M, 32_768."""
    text = given[0].value.strip()
    match = re.fullmatch(r"([+-]?\d[\d_]{0,17})\s*([kKmM]?)i?", text)
    if match is None:
        raise ValueError(f"{text!r} is no number of tokens; write 8192, 8k or 1M")
    return int(match[1].replace("_", "")) * _THOUSANDS[match[2].lower()]
