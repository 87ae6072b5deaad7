"""Ray Serve LLM: a proxy and an ingress in front of vLLM replicas."""

from __future__ import annotations

from enginekit.engines.rayserve.engine import RayServe

__all__ = ["RayServe"]
