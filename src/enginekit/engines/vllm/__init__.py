"""vLLM's OpenAI-compatible server."""

from __future__ import annotations

from enginekit.engines.vllm.engine import VLLM

__all__ = ["VLLM"]
