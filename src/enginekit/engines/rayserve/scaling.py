"""What Ray itself says of a deployment: replicas, autoscaling targets, and its exporter's metrics.

The ingress shows none of it. Two addresses of Ray do, and enginekit asks them only where the options
name them: the dashboard (`GET /api/serve/applications/`, seen as Ray 2.60.0) and the exporter on each
node (`metrics_export_port`), whose series are vLLM's with `ray_` in front and `_` for `:`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from enginekit.facts.engine import Load

APPLICATIONS: Final = "/api/serve/applications/"
VERSION: Final = "/api/version"
"""Also of the dashboard: `{"ray_version": "2.60.0", …}`, with the same token."""
NEVER: Final = 1e6
"""Requests at once from which a target is none: the LLM builder writes 1e9 where nothing was set."""
CACHE_USAGE: Final = "ray_vllm_kv_cache_usage_perc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """One deployment: how many replicas there are, should be and may be, and what moves them.

    Attributes:
        running, starting: replicas in that state.
        target_replicas: how many Ray wants right now.
        min_replicas, max_replicas: its limits; None with a fixed number of replicas.
        target_requests: ongoing requests per replica above which Ray adds one
            (`target_ongoing_requests`); None with a fixed number of replicas.
        most_requests: ongoing requests that a replica takes at all (`max_ongoing_requests`).
    """

    application: str
    deployment: str
    status: str
    running: int
    starting: int
    target_replicas: int | None
    min_replicas: int | None = None
    max_replicas: int | None = None
    target_requests: float | None = None
    most_requests: int | None = None
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether Ray has given up starting it: waiting mends nothing."""
        return self.status == "DEPLOY_FAILED"

    @property
    def starts(self) -> bool:
        """Whether no replica answers and Ray is starting one, so that asking for a token is idle.

        One that is scaled to zero on purpose starts by being asked.
        """
        return self.running == 0 and self.target_replicas != 0

    def holds(self, model: str) -> bool:
        """Whether this is the deployment of a model, or of an adapter of it (`base:adapter`)."""
        named = self.deployment.removeprefix("LLMServer:")
        names = (model, model.rpartition(":")[0])
        return named in [name.replace("/", "--").replace(".", "_") for name in names if name]

    @property
    def can_grow(self) -> bool:
        """Whether any load at all would add a replica."""
        if self.max_replicas is None or self.target_requests is None:
            return False
        target = min(self.target_requests, self.most_requests or self.target_requests)
        return self.max_replicas > (self.min_replicas or 0) and target < NEVER

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        replicas = f"{self.running} of {self.target_replicas} replicas running"
        if self.max_replicas is None:
            how = "their number is fixed"
        elif self.can_grow:
            how = (
                f"from {self.min_replicas} to {self.max_replicas}, one more above "
                f"{self.target_requests:g} requests a replica"
            )
        elif self.max_replicas <= (self.min_replicas or 0):
            how = f"never more than {self.max_replicas}: max_replicas is {self.max_replicas}"
        else:
            how = (
                f"never more than now: target_ongoing_requests is {self.target_requests:g}, which "
                "the LLM builder fills in when nothing is set"
            )
        return f"autoscaling of {self.deployment}: {self.status}, {replicas}, {how}"


def read_scaling(status: Mapping[str, Any]) -> tuple[Scaling, ...]:
    """The deployments that hold a model, of a dashboard's `/api/serve/applications/`.

    Raises ValueError, KeyError, TypeError or AttributeError for something else.
    """
    return tuple(_scaling(*found) for found in _deployments(status))


def _deployments(status: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for application, told in status["applications"].items():
        for name, deployment in (told.get("deployments") or {}).items():
            if name.startswith("LLMServer"):
                yield application, name, deployment


def _scaling(application: str, name: str, told: Mapping[str, Any]) -> Scaling:
    states = [replica.get("state") for replica in told.get("replicas") or ()]
    config = told.get("deployment_config") or {}
    limits = config.get("autoscaling_config") or {}
    return Scaling(
        application=application,
        deployment=name,
        status=str(told.get("status") or "unknown"),
        running=states.count("RUNNING"),
        starting=states.count("STARTING"),
        target_replicas=told.get("target_num_replicas"),
        min_replicas=limits.get("min_replicas"),
        max_replicas=limits.get("max_replicas"),
        target_requests=limits.get("target_ongoing_requests"),
        most_requests=config.get("max_ongoing_requests"),
        message=str(told.get("message") or ""),
    )


def load_of(metrics: Mapping[str, float], scaling: Sequence[Scaling] = ()) -> Load:
    """The exporter's series in the common shape, summed over replicas of that node."""

    def count(name: str) -> int | None:
        value = metrics.get(f"ray_vllm_{name}")
        return None if value is None else int(value)

    extra = {
        name: value
        for name, value in metrics.items()
        if name.startswith(("ray_vllm_", "ray_serve_")) and not name.endswith("_bucket")
    }
    for one in scaling:
        extra[f"replicas_running:{one.deployment}"] = float(one.running)
        if one.target_replicas is not None:
            extra[f"replicas_target:{one.deployment}"] = float(one.target_replicas)
    return Load(
        running=count("num_requests_running"),
        waiting=count("num_requests_waiting"),
        kv_cache_usage=metrics.get(CACHE_USAGE),
        prompt_tokens_total=count("prompt_tokens_total"),
        generated_tokens_total=count("generation_tokens_total"),
        extra=extra,
    )
