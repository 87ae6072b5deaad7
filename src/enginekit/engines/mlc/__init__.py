"""MLC LLM's REST server."""

from __future__ import annotations

from enginekit.engines.mlc.engine import MLC

__all__ = ["MLC"]
