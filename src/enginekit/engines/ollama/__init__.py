"""Ollama on its native wire: `/api/chat`, `/api/generate`, `/api/embed`, JSON lines."""

from __future__ import annotations

from enginekit.engines.ollama.engine import Ollama

__all__ = ["Ollama"]
