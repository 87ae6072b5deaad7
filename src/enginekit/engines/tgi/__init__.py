"""Hugging Face text-generation-inference (TGI)."""

from __future__ import annotations

from enginekit.engines.tgi.engine import TGI

__all__ = ["TGI"]
