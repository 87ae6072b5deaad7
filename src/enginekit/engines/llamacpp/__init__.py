"""llama.cpp's `llama-server`, alone or as a router of several models."""

from __future__ import annotations

from enginekit.engines.llamacpp.engine import LlamaCpp

__all__ = ["LlamaCpp"]
