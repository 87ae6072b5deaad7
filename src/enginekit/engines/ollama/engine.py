"""The engine `ollama`: a local server of many models, on its native routes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

from enginekit.engine import Answer, Encoded, Engine, Gather, Operation, Target
from enginekit.engines._decoder import NONSENSE
from enginekit.engines._fault import classify, read_fault
from enginekit.engines._json import parse_json
from enginekit.engines._params import Draft
from enginekit.engines.ollama import overflow
from enginekit.engines.ollama.decode import read_usage
from enginekit.engines.ollama.encode import encode_chat, encode_completion
from enginekit.engines.ollama.faults import FAULTS
from enginekit.engines.ollama.probe import (
    ModelFacts,
    card,
    full_name,
    is_cloud,
    server_facts,
)
from enginekit.engines.ollama.profile import PROFILE, SCALARS, older_than
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineKitError,
    EngineTimeout,
    MalformedReply,
    ModelNotFound,
    Unreachable,
    Unsupported,
    nearest_models,
)
from enginekit.facts.engine import (
    Capability,
    EngineProfile,
    Feature,
    Load,
    ModelCard,
    ServerFacts,
)
from enginekit.types import (
    UNSET,
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    Embeddings,
    EmbedRequest,
)

LISTED: Final = 2.0
"""Seconds to wait for the list of what is loaded, which a server that lives answers at once."""

LOADING: Final = 600.0
"""Seconds a call may take that makes the server load a model."""

_NAME: Final = re.compile(r"[\w./:-]+")
"""A model name that can stand in a command as it is."""

SHOWN: Final = 8
"""How many models a probe asks about one by one: the one in focus, the loaded, then the newest."""


_ready: set[tuple[str, str]] = set()
"""Addresses and models that answered since they were listed: those need not be asked again."""


class Ollama(Engine):
    """Ollama's `/api` routes.

    A server that is up answers at once and loads a model when it is first asked for; a request waits
    meanwhile, so that nothing here ever reports a loading engine.
    """

    profile: ClassVar[EngineProfile] = PROFILE

    def encode(self, request: AnyRequest, *, stream: bool = False) -> Encoded:
        """The call for a chat or completion request, and its receipt.

        Raises Unsupported for what Ollama or the model cannot do, BadRequest for values out of
        range, and ContextOverflow where an old server would cut the prompt in silence.
        """
        if isinstance(request, ChatRequest):
            return encode_chat(self, self.model_facts(request.model), request, stream)
        if isinstance(request, CompletionRequest):
            return encode_completion(self, self.model_facts(request.model), request, stream)
        raise TypeError(
            f"encode() takes chat and completion requests, not {type(request).__name__}"
        )

    def failure(
        self, status: int, headers: Mapping[str, str], body: bytes, *, path: str = ""
    ) -> EngineKitError:
        """The error that this refusal means; `faults.FAULTS` is the table."""
        error = classify(self, FAULTS, read_fault(status, headers, body, path=path))
        if isinstance(error, ModelNotFound) and _NAME.fullmatch(error.model or ""):
            error.hint = f"ollama pull {error.model}; ollama list shows the models there are"
        return error

    def model_facts(self, model: str) -> ModelFacts:
        """What the probe learned about a model; empty facts for one it did not see."""
        found = self._card(model)
        facts: ModelFacts = (
            ModelFacts() if found is None else found.extra.get("model", ModelFacts())
        )
        told = self.facts.told("tools", model) if self.facts is not None else None
        if facts.capabilities is None and told is not None and told.support == "emulated":
            return replace(facts, lacking=("tools",))
        return facts

    def learnt(self, refusal: Unsupported) -> Mapping[Feature, Capability]:
        """A model without tools, of a version that does not list what models can: before 0.6.4.

        Its calls are made by a schema from then on, as where the version says so beforehand.
        """
        if refusal.rule != "ollama.model.lacks_tools":
            return {}
        note = "the model's template knows no tools: by a JSON schema, one call at a time"
        return {"tools": Capability(support="emulated", evidence="observed", note=note)}

    @property
    def many_models(self) -> bool:
        """One model's template says nothing of another's."""
        return True

    def _card(self, model: str) -> ModelCard | None:
        if self.facts is None:
            return None
        wanted = full_name(model)
        return next((c for c in self.facts.models if full_name(c.id) == wanted), None)

    # -- operations ---------------------------------------------------------------------

    @classmethod
    def recognise(cls, target: Target) -> Operation[bool]:
        """Whether `GET /api/version` answers as Ollama's does."""
        answer: Answer = yield cls(target).call("GET", "/api/version")
        if not answer.ok:
            return False
        try:
            value = parse_json(answer.body)
        except NONSENSE:
            return False
        return isinstance(value, dict) and isinstance(value.get("version"), str)

    def probe(self) -> Operation[ServerFacts]:
        """Version, models, which are loaded, and of at most `SHOWN` of them everything.

        Raises an EngineError when the server does not answer.
        """
        version = yield from self._ask("GET", "/api/version")
        tags = yield from self._ask("GET", "/api/tags")
        running = yield from self._ask("GET", "/api/ps")
        listed = {str(item.get("name")): item for item in _models(self, "/api/tags", tags)}
        loaded = {str(item.get("name")): item for item in _models(self, "/api/ps", running)}
        for name, item in loaded.items():
            listed.setdefault(name, item)
        focus = self._focus(listed, loaded)
        asked = tuple(dict.fromkeys((*((focus,) if focus else ()), *loaded, *listed)))[:SHOWN]
        answers = yield Gather(
            operations=tuple(self._ask("POST", "/api/show", {"model": name}) for name in asked),
            deadline=10.0,
        )
        shown = {
            name: answer
            for name, answer in zip(asked, answers, strict=True)
            if isinstance(answer, Mapping)
        }
        cards = [
            card(item, loaded.get(name), shown.get(name)) for name, item in listed.items() if name
        ]
        in_focus = next((c for c in cards if c.id == focus), None)
        return server_facts(str(version.get("version") or "") or None, cards, in_focus)

    def _focus(self, listed: Mapping[str, Any], loaded: Mapping[str, Any]) -> str | None:
        wanted = self.options.get("model")
        if isinstance(wanted, str) and wanted:
            name = full_name(wanted)
            return next((one for one in listed if full_name(one) == name), None)
        if len(loaded) == 1:
            return next(iter(loaded))
        return next(iter(listed)) if len(listed) == 1 else None

    def ready(self, model: str) -> Operation[bool]:
        """Whether `model` can generate now: it is loaded, or loads when asked to.

        Asking *is* loading on Ollama, and to hang up meanwhile would cancel it: so this takes as
        long as loading takes. Raises ModelNotFound with the nearest names, or why loading failed.
        """
        running = yield from self._ask("GET", "/api/ps")
        wanted = full_name(model)
        if any(
            full_name(str(item.get("name"))) == wanted for item in _models(self, "/api/ps", running)
        ):
            return True
        if not is_cloud(model):
            yield from self.load(model)
        return True

    def loads_silently(self) -> bool:
        """Always: loading is a part of the request that needs the model."""
        return True

    def cold(self, encoded: Encoded) -> Operation[bool]:
        """Whether `/api/ps` lacks the model, or has it with another window than is asked for.

        A model that is loading is listed as well (`s.loaded` in sched.go holds it before its runner
        is ready): the first time an empty request tells, at once when it is loaded. Giving that one
        up does not end a load that another request waits for.
        """
        asked = encoded.call.json
        if is_cloud(asked["model"]):
            return False
        try:
            running = yield from self._ask("GET", "/api/ps", timeout=LISTED)
            items = _models(self, "/api/ps", running)
        except EngineKitError as error:
            if isinstance(error, Unreachable) or getattr(error, "phase", "") == "connect":
                raise
            return False
        wanted, window = full_name(asked["model"]), (asked.get("options") or {}).get("num_ctx")
        trained = self.model_facts(asked["model"]).trained
        if isinstance(window, int) and trained:
            window = min(window, trained)  # so does the server
        key = (self.target.base_url, wanted)
        for item in items:
            if full_name(str(item.get("name"))) == wanted:
                if window is not None and item.get("context_length", window) != window:
                    return True
                return key not in _ready and not (yield from self._answers(encoded))
        _ready.discard(key)
        return True

    def _answers(self, encoded: Encoded) -> Operation[bool]:
        """Whether a model that is listed answers, and is not still being loaded."""
        try:
            yield from self.warm(encoded, LISTED)
        except EngineTimeout as error:
            if error.phase != "load":
                raise
            return False
        return True

    def warm(self, encoded: Encoded, seconds: float) -> Operation[None]:
        """An empty request with the options of the real one, which loads the model.

        Raises EngineTimeout (phase `load`), and why loading failed; what the real request will be
        told as well is left to it.
        """
        asked = encoded.call.json
        body: dict[str, Any] = {"model": asked["model"], "shift": False, "stream": False}
        if asked.get("options"):
            body["options"] = asked["options"]
        keep = asked.get("keep_alive")
        if isinstance(keep, int | float) and keep:  # 0 would unload it
            body["keep_alive"] = keep
        try:
            yield from self._ask("POST", "/api/generate", body, timeout=seconds)
            _ready.add((self.target.base_url, full_name(asked["model"])))
        except EngineTimeout as error:
            if error.phase == "connect":
                raise
            raise EngineTimeout(
                f"{self.name} at {self.target.base_url} had not loaded {asked['model']!r} after "
                f"{seconds:g} s",
                engine=self.name,
                url=self.target.base_url,
                phase="load",
                budget=seconds,
            ) from error
        except (BadRequest, MalformedReply, Unsupported):
            return

    def models(self) -> Operation[tuple[ModelCard, ...]]:
        """The installed models, those loaded marked."""
        tags = yield from self._ask("GET", "/api/tags")
        running = yield from self._ask("GET", "/api/ps")
        loaded = {str(item.get("name")): item for item in _models(self, "/api/ps", running)}
        return tuple(
            card(item, loaded.get(str(item.get("name"))), None)
            for item in _models(self, "/api/tags", tags)
        )

    def embed(self, request: EmbedRequest) -> Operation[Embeddings]:
        """Vectors from `/api/embed`, in the order of the texts.

        Raises ContextOverflow for a text that does not fit (unless `truncate`), Unsupported for a
        model that makes no embeddings.
        """
        path = "/api/embed"
        draft = Draft(self, request, "ollama")
        if self.model_facts(request.model).lacks("embedding"):
            self.refuse("embeddings", "the model makes none", rule="ollama.model.lacks_embeddings")
        draft.enter("model", "sent", {"model": request.model})
        draft.enter("texts", "translated", {"input": list(request.texts)}, note="as input")
        note = "" if not request.truncate else "a text that is too long is cut silently"
        draft.enter("truncate", "sent", {"truncate": request.truncate}, note=note)
        if request.dimensions is not UNSET:
            if request.dimensions < 1:
                draft.invalid("dimensions", f"must be at least 1, got {request.dimensions}")
            draft.enter("dimensions", "sent", {"dimensions": request.dimensions})
        if request.keep_alive is not UNSET:
            draft.apply(SCALARS, {"keep_alive": request.keep_alive})
        draft.options()
        try:
            value = yield from self._ask("POST", path, draft.body, timeout=LOADING)
        except ContextOverflow as error:
            raise (yield from self._explained(error, request, draft.body)) from None
        try:
            vectors = value["embeddings"]
            if len(vectors) != len(request.texts):
                raise ValueError(f"{len(vectors)} vectors for {len(request.texts)} texts")
            if not all(map(any, vectors)):
                raise ValueError(
                    "a vector of zeros has no direction: the model makes no embeddings"
                )
            sizes = {len(vector) for vector in vectors}
        except NONSENSE as error:
            raise self._malformed(path, value, error) from error
        if request.dimensions is not UNSET and sizes - {request.dimensions}:
            raise Unsupported(
                f"{request.model!r} makes vectors of {max(sizes)} numbers, which cannot be cut to "
                f"{request.dimensions}",
                engine=self.name,
                url=self.target.base_url,
                feature="dimensions",
                rule="ollama.dimensions",
            )
        return Embeddings(
            vectors=vectors,
            receipt=draft.receipt,
            model=value.get("model"),
            usage=read_usage(value),
        )

    def _explained(
        self, error: ContextOverflow, request: EmbedRequest, body: Mapping[str, Any]
    ) -> Operation[ContextOverflow]:
        # Who wants the model gone after the request does not want it loaded twice to be counted by.
        countable = body.get("keep_alive") != 0

        def ask(texts: Sequence[str]) -> Operation[Mapping[str, Any]]:
            again = {**body, "input": list(texts), "truncate": False}
            answer: Mapping[str, Any]
            answer = yield from self._ask("POST", "/api/embed", again, timeout=LOADING)
            return answer

        known = self.model_facts(request.model)
        old = older_than(self.facts.version if self.facts else None, overflow.SINCE)
        options = body.get("options")
        wanted = options.get("num_batch") if isinstance(options, Mapping) else None
        return (
            yield from overflow.explained(
                error,
                request.texts,
                ask if countable else None,
                window=error.limit or (yield from self._window(request.model)),
                batch=wanted or known.num_batch or overflow.BATCH,
                splits=old or known.pooling in (None, overflow.LAST),
            )
        )

    def _window(self, model: str) -> Operation[int | None]:
        """The window of a model that was just used: the refusal did not name it.

        Asked anew, because the call itself may have loaded the model.
        """
        known = self.model_facts(model)
        try:
            running = yield from self._ask("GET", "/api/ps")
            loaded = _models(self, "/api/ps", running)
        except EngineKitError:
            loaded = []
        wanted = full_name(model)
        for item in loaded:
            if full_name(str(item.get("name"))) == wanted and item.get("context_length"):
                return int(item["context_length"])
        return known.window or known.num_ctx or known.trained

    def load_state(self) -> Operation[Load]:
        """What is loaded and how much memory it takes; Ollama tells no queue and no requests."""
        running = yield from self._ask("GET", "/api/ps")
        items = _models(self, "/api/ps", running)
        return Load(
            extra={
                "models_loaded": float(len(items)),
                "bytes_loaded": float(sum(item.get("size") or 0 for item in items)),
                "bytes_loaded_vram": float(sum(item.get("size_vram") or 0 for item in items)),
            }
        )

    def load(self, model: str) -> Operation[None]:
        """Load a model; returns when it is loaded. Raises ModelNotFound, or why it failed."""
        # `shift` is a launch flag of the runner: without it here the first chat would load again.
        body = {"model": model, "shift": False, "stream": False}
        try:
            value = yield from self._ask("POST", "/api/generate", body, timeout=LOADING)
        except Unsupported:
            yield from self._ask("POST", "/api/embed", {"model": model}, timeout=LOADING)
            return
        except ModelNotFound as error:
            raise (yield from self._with_neighbours(error, model)) from None
        if value.get("done") is not True:
            raise self._malformed("/api/generate", value, ValueError("the model was not loaded"))

    def unload(self, model: str) -> Operation[None]:
        """Take a model out of memory; one that is not loaded is fine."""
        body = {"model": model, "keep_alive": 0, "stream": False}
        try:
            yield from self._ask("POST", "/api/generate", body)
        except ModelNotFound as error:
            raise (yield from self._with_neighbours(error, model)) from None

    # -- steps --------------------------------------------------------------------------

    def _ask(
        self,
        method: Literal["GET", "POST"],
        path: str,
        json: Any = None,
        *,
        timeout: float = 10.0,
    ) -> Operation[Any]:
        """One call, its failure raised, its body a JSON object."""
        answer: Answer = yield self.call(method, path, json, timeout=timeout)
        if not answer.ok:
            raise self.failure(answer.status, answer.headers, answer.body, path=path)
        try:
            value = parse_json(answer.body)
            if not isinstance(value, dict):
                raise ValueError(f"a JSON {type(value).__name__}, not an object")
        except NONSENSE as error:
            raise self._malformed(path, answer.body[:200].decode("utf-8", "replace"), error) from (
                error
            )
        if value.get("error"):
            raise self.failure(answer.status, answer.headers, answer.body, path=path)
        return value

    def _malformed(self, path: str, value: Any, error: Exception) -> MalformedReply:
        return MalformedReply(
            f"{self.name} at {self.target.base_url} answered {path} with something else than its "
            f"protocol says ({error!r}): {str(value)[:200]}",
            engine=self.name,
            url=self.target.base_url,
        )

    def _with_neighbours(self, error: ModelNotFound, model: str) -> Operation[ModelNotFound]:
        cards = yield from self.models()
        near = nearest_models([(one.id, *one.aliases) for one in cards], model)
        listed = f"; nearest: {', '.join(near)}" if near else "; it has no model at all"
        return ModelNotFound(
            f"{self.name} at {self.target.base_url} has no model {model!r}{listed}",
            hint=error.hint,
            engine=self.name,
            url=self.target.base_url,
            status=error.status,
            body=error.body,
            model=model,
            near=near,
        )


def _models(engine: Ollama, path: str, value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The list of `/api/tags` and `/api/ps`; null when there are none."""
    items = value.get("models") or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise engine._malformed(path, value, ValueError("'models' is not a list of objects"))
    return items
