"""The Ray Serve engine: vLLM's bodies through Ray's proxy, its readiness, models and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from enginekit.engine import Answer, Call, Operation, Target
from enginekit.engines import _openai_routes as routes
from enginekit.engines._decoder import NONSENSE
from enginekit.engines._fault import Case, classify, read_fault
from enginekit.engines._json import parse_json
from enginekit.engines._params import Draft
from enginekit.engines._vllm_wire import TOOL_FEATURES, VLLMRequests
from enginekit.engines.rayserve.facts import (
    FAULTS,
    NO_METRICS,
    PROFILE,
    facts_of,
    model_cards,
    tool_capabilities,
    undecorated,
)
from enginekit.engines.rayserve.scaling import (
    APPLICATIONS,
    CACHE_USAGE,
    VERSION,
    Scaling,
    load_of,
    read_scaling,
)
from enginekit.errors import (
    BadRequest,
    EngineDied,
    EngineError,
    EngineFault,
    EngineKitError,
    EngineLoading,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    Unreachable,
    Unsupported,
    describe_choices,
)
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Evidence,
    Feature,
    Load,
    ModelCard,
    ServerFacts,
)
from enginekit.types import Embeddings, EmbedRequest

LISTED = 5.0
"""Seconds `/v1/models` may take; while the ingress starts it hangs."""
TRIAL = 2.0
"""Seconds a probe waits for its one-token completion; a loading engine hangs."""
READY = 10.0
"""Seconds `ready()` waits for one token: the only sign that a replica generates."""


class RayServe(VLLMRequests):
    """A Ray Serve LLM ingress at one address.

    Whether a model was deployed with a tool parser is found out before the first call that needs
    one, by a request that generates nothing; without a parser its calls are emulated.

    Options (`[engines.rayserve.options]`): `probe_tools = true` makes this part of every `probe()`,
    `false` never asks, and the first refusal tells. `dashboard`
    (`http://head:8265`) with `dashboard_token` lets it read replicas and autoscaling targets,
    `exporter` (`http://node:8080`, the node's metrics_export_port) the metrics of the replicas
    there: the ingress shows neither. The key for the ingress is sent to neither.
    """

    profile: ClassVar[EngineProfile] = PROFILE
    dialect: ClassVar[str] = "rayserve"
    learns: ClassVar[frozenset[Feature]] = frozenset({"embeddings", "chat", "images"})
    faults: ClassVar[tuple[Case, ...]] = FAULTS
    _window_hint: ClassVar[str] = "set max_tokens, or max_model_len in engine_kwargs"

    # -- requests -----------------------------------------------------------------------

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, path: str = ""
    ) -> EngineKitError:
        """The error that a refusal of the proxy, the ingress or the engine means."""
        fault = read_fault(status, headers, body, path=path)
        return classify(self, self.faults, undecorated(fault))

    def _scalar(self, draft: Draft, name: str, value: Any) -> None:
        if name == "context_window":
            window = self.facts.context_window if self.facts is not None else None
            if window is None or window < value:
                draft.refuse(
                    name,
                    f"the window is set at deployment and is {window or 'unknown'}",
                    hint=f"set max_model_len: {value} in engine_kwargs of the LLMConfig",
                )
        super()._scalar(draft, name, value)

    def _lora(self, draft: Draft, value: Any) -> None:
        """An adapter is the model `base:adapter`."""
        if isinstance(value, str) and ":" not in value:
            base = str(draft.body["model"]).partition(":")[0]
            value = f"{base}:{value}"
        super()._lora(draft, value)

    # -- probing ------------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether Ray's proxy answers `GET /-/routes`, also before any application is up."""
        answer: Answer = yield cls(target).call("GET", "/-/routes")
        if answer.status == 503:
            return b"oute table is not populated" in answer.body
        if not answer.ok:
            return False
        try:
            value = parse_json(answer.body)
        except ValueError:
            return False
        return isinstance(value, dict) and all(str(path).startswith("/") for path in value)

    def probe(self) -> Operation[ServerFacts]:
        """Read `/v1/models`; learn vLLM's version from a completion of one token.

        The completion may time out (the models are listed before the engine is loaded): then the
        version stays unknown and a note says why.
        """
        listing = yield from routes.ask(self, "GET", "/v1/models", timeout=LISTED)
        cards = model_cards(listing)
        fingerprint: str | None = None
        answered = True
        model = self._asked_for(cards)
        if model:
            try:
                reply = yield from self._one_token(model, TRIAL)
                fingerprint = reply.get("system_fingerprint")
            except EngineTimeout:
                answered = False
            except EngineError:
                pass
        tools: bool | None = None
        if model and answered and self.options.get("probe_tools"):
            tools = yield from self.takes_tools(model)
        scaling, why = yield from self._scaling()
        facts = facts_of(
            listing,
            fingerprint=fingerprint,
            ray=(yield from self._ray_version()) if scaling else None,
            answered=answered,
            scaling=scaling,
            notes=(why,) if why else (),
        )
        return (
            facts if tools is None else replace(facts, by_model={model: tool_capabilities(tools)})
        )

    def _asked_for(self, cards: Sequence[ModelCard]) -> str:
        """The model in use, else the first of the list: each may be deployed in its own way."""
        wanted = self.options.get("model")
        return str(wanted) if wanted else (cards[0].id if cards else "")

    def scaling(self) -> Operation[tuple[Scaling, ...]]:
        """Replicas, limits and targets of the deployments that hold models, from Ray's dashboard.

        Raises Unsupported without the option `dashboard`, Unauthorized where the dashboard wants
        a token (it does by default).
        """
        if not self.options.get("dashboard"):
            self.refuse(
                "metrics",
                "only Ray's dashboard tells about autoscaling",
                rule="rayserve.scaling",
                hint='set dashboard = "http://HEAD:8265" under [engines.rayserve.options]',
            )
        answer: Answer = yield self._elsewhere("dashboard", APPLICATIONS, self._token())
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path=APPLICATIONS)
        try:
            return read_scaling(parse_json(answer.body))
        except NONSENSE as error:
            shown = answer.body[:200].decode("utf-8", "replace")
            raise routes.malformed(self, APPLICATIONS, shown, error) from error

    def _scaling(self) -> Operation[tuple[tuple[Scaling, ...], str]]:
        """For a probe: nothing where the option is not set, and a sentence where it fails."""
        if not self.options.get("dashboard"):
            return (), ""
        try:
            return (yield from self.scaling()), ""
        except EngineKitError as error:
            return (), f"autoscaling: the dashboard could not be read: {error.message}"

    def _ray_version(self) -> Operation[str | None]:
        """Ray's own version, which its dashboard alone tells; None where it does not."""
        try:
            answer: Answer = yield self._elsewhere("dashboard", VERSION, self._token())
            return str(parse_json(answer.body)["ray_version"]) if answer.ok else None
        except (EngineKitError, *NONSENSE):
            return None

    def _token(self) -> tuple[tuple[str, str], ...]:
        token = self.options.get("dashboard_token")
        return (("authorization", f"Bearer {token}"),) if token else ()

    def _elsewhere(self, option: str, path: str, headers: tuple[tuple[str, str], ...] = ()) -> Call:
        """A call to another address of Ray, which never gets the key of the ingress."""
        base = str(self.options[option]).rstrip("/")
        target = replace(self.target, base_url=base, headers=headers)
        return replace(self.call("GET", path), target=target)

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """Also a tool parser that lacks: then calls of this model are made by a schema."""
        if refusal.feature == "tools":
            return self.tool_capabilities(False, "observed")
        found = super().learnt(refusal)
        # What does not generate does neither of the two.
        return {**found, "completion": found["chat"]} if "chat" in found else found

    def tool_capabilities(
        self, native: bool, evidence: Evidence = "probed"
    ) -> Mapping[Feature, Capability]:
        """The capabilities of a model deployed with a tool parser, or without one."""
        return tool_capabilities(native, evidence)

    def settle(self, feature: Feature, model: str = "") -> Operation[None]:
        """Whether the model was deployed with a tool parser, or for pooling; nothing is computed.

        A request to embed no text is refused either way: by a model that generates for the task, by
        one that pools for the missing text. Seen on Ray 2.60 over vLLM 0.32.
        """
        if feature in TOOL_FEATURES:
            yield from self._settle_tools(model)
        elif feature == "embeddings":
            body = {"model": model, "input": []}
            answer: Answer = yield self.call("POST", "/v1/embeddings", body)
            refusal = self.failure(
                answer.status, answer.headers, answer.body, path="/v1/embeddings"
            )
            if isinstance(refusal, Unsupported):
                self.remember(self.learnt(refusal), model)
            elif answer.status == 400 and "at least one prompt" in refusal.message:
                self.remember({feature: Capability(support="native", evidence="probed")}, model)
            else:
                self.remember({feature: self.profile.capability(feature)}, model)

    def _one_token(self, model: str, timeout: float) -> Operation[Mapping[str, Any]]:
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        value = yield from routes.ask(self, "POST", self.completion_path, body, timeout=timeout)
        return value if isinstance(value, Mapping) else {}

    def ready(self, model: str) -> Operation[bool]:
        """The model is listed, and one token of it comes within `READY` seconds.

        Where the dashboard is named it is asked first: while it says that no replica runs yet, no
        token is asked for, and a deployment that Ray has given up is an error at once. That one
        runs it says also of an engine that died half a minute ago, so a token it is in any case.

        `/-/healthz` and `/v1/models` say yes minutes before the engine is loaded, and go on saying
        so when it has died: only a token proves anything. A full queue and a replica that is being
        replaced are "not yet". Raises ModelNotFound for a name that is not listed.
        """
        for one in (yield from self._scaling())[0]:
            if model and one.holds(model):
                if one.failed:
                    raise self._given_up(one)
                if one.starts:
                    return False
        try:
            listing = yield from routes.ask(self, "GET", "/v1/models", timeout=LISTED)
        except (Unreachable, EngineLoading, EngineTimeout):
            return False
        names = [card.id for card in model_cards(listing)]
        if not names:
            return False
        base = model.partition(":")[0]
        if model and model not in names and base not in names:
            raise ModelNotFound(
                f"{self.name} at {self.target.base_url} has no model {model!r}; "
                f"it lists {', '.join(names)}",
                hint="use one of the names it lists, or deploy the model",
                engine=self.name,
                url=self.target.base_url,
                model=model,
                near=describe_choices(names, model) or tuple(names[:3]),
            )
        try:
            yield from self._one_token(model or names[0], READY)
        except (Unreachable, EngineLoading, EngineTimeout, EngineDied, Overloaded):
            return False
        except EngineFault as error:
            if error.status is None:  # hung up on without an answer: a proxy that is being replaced
                return False
            raise
        except (Unsupported, BadRequest):
            # A pooling model has no completions: the engine itself answered, so it is up.
            return True
        return True

    def _given_up(self, one: Scaling) -> EngineFault:
        return EngineFault(
            f"Ray gave up starting {one.deployment} of {self.name} at {self.target.base_url}: "
            f"{one.message.strip() or one.status}",
            hint="look into the log of the replica (serve status, and the dashboard's Serve page)",
            engine=self.name,
            url=self.target.base_url,
        )

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """Every model that is configured."""
        return model_cards((yield from routes.ask(self, "GET", "/v1/models", timeout=LISTED)))

    # -- other routes -------------------------------------------------------------------

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """`/v1/embeddings`, of a model deployed for pooling."""
        return (yield from routes.embed(self, request, self._embeds(request)))

    def capability(self, feature: Feature) -> Capability:
        """As of every engine; metrics are there when an exporter is named."""
        if feature == "metrics" and self.options.get("exporter"):
            return Capability(support="native", note="Ray's exporter on the node that is named")
        return super().capability(feature)

    def load_state(self) -> Operation[Load]:
        """From Ray's exporter, where the options name one; the ingress has no metrics.

        With `dashboard` the replicas that run and that Ray wants are in `extra`, by deployment.
        """
        if not self.options.get("exporter"):
            self.refuse(
                "metrics",
                "the ingress has none; replicas are measured by Ray's own exporter",
                rule="rayserve.metrics",
                hint=NO_METRICS,
            )
        answer: Answer = yield self._elsewhere("exporter", "/metrics")
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path="/metrics")
        scaling, _ = yield from self._scaling()
        return load_of(routes.read_metrics(answer.body, mean=(CACHE_USAGE,)), scaling)
