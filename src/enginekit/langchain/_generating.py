"""What the chat model and the text model share: sampling settings and how they are traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.language_models.base import LangSmithParams

from enginekit.errors import EngineKitError
from enginekit.langchain import _tokens
from enginekit.langchain._replies import PROVIDER
from enginekit.langchain._settings import Connection, reraise


class Generating(Connection):
    """Settings of generation. What is None stays with the server."""

    temperature: float | None = None
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float | None = None
    """Smallest set of tokens whose probabilities sum to this."""
    top_k: int | None = None
    """How many of the most likely tokens to choose from."""
    min_p: float | None = None
    """Least probability of a token, relative to the most likely one."""
    typical_p: float | None = None
    """Locally typical sampling."""
    seed: int | None = None
    """Makes sampling repeatable where the engine allows it."""
    max_tokens: int | None = None
    """Upper limit of generated tokens, reasoning included."""
    min_tokens: int | None = None
    """Fewest tokens before the model may stop."""
    stop: str | list[str] | None = None
    """Texts that end the reply; `stop=` of a call takes their place."""
    repetition_penalty: float | None = None
    """Makes tokens that came before less likely."""
    repetition_window: int | None = None
    """How many past tokens the repetition penalty looks at."""
    frequency_penalty: float | None = None
    """Makes a token less likely by how often it came."""
    presence_penalty: float | None = None
    """Makes a token less likely once it came."""
    logit_bias: dict[int, float] | None = None
    """Token id to bias added to its logit."""
    ignore_eos: bool | None = None
    """Go on past the end token (for benchmarks)."""
    mirostat: int | None = None
    """Mirostat version."""
    mirostat_tau: float | None = None
    """Mirostat target entropy."""
    mirostat_eta: float | None = None
    """Mirostat learning rate."""
    logprobs: bool | None = None
    """Return log probabilities, under `response_metadata["logprobs"]`."""
    top_logprobs: int | None = None
    """How many alternatives to return at each token."""
    n: int | None = None
    """How many replies to one prompt; `generate()` returns them all. Not for streams."""
    context_window: int | None = None
    """Tokens, for engines that change it per request (Ollama's `num_ctx`)."""
    keep_alive: float | str | None = None
    """How long the model stays loaded afterwards: seconds or `"5m"`; negative is for ever."""
    lora: str | list[tuple[int, float]] | None = None
    """Name of an adapter, or pairs of adapter id and scale."""
    include_receipt: bool = True
    """Say in each reply's metadata what became of every setting, under `receipt`."""

    def _ls_params(self, stop: Sequence[str] | None, kwargs: Mapping[str, Any]) -> LangSmithParams:
        """Tracing parameters, those of the call before those of the instance."""
        params = LangSmithParams(ls_provider=PROVIDER)
        name = self._model_name(kwargs)
        if name:
            params["ls_model_name"] = name
        temperature = kwargs.get("temperature", self.temperature)
        if temperature is not None:
            params["ls_temperature"] = temperature
        limit = kwargs.get("max_tokens", self.max_tokens)
        if limit is not None:
            params["ls_max_tokens"] = limit
        texts = stop if stop is not None else self.stop
        if texts:
            params["ls_stop"] = [texts] if isinstance(texts, str) else list(texts)
        client = self._state.client
        engine = self.engine or (client.config.value("engine") if client is not None else None)
        route = client.route if client is not None else None
        if route is not None and not (engine and "," in engine):
            engine = route.engine.name
        if engine:
            # Becomes metadata of the run; the provider is enginekit whatever answers. Which one of a
            # list will answer is known with the reply only.
            cast(dict[str, Any], params)["engine"] = str(engine)
        return params

    def _token_ids(self, text: str) -> list[int]:
        try:
            return list(self.client.tokenize(text))
        except EngineKitError as error:
            reraise(error)

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text: a `TokenCount`, whose `source` says who counted."""
        return _tokens.of_text(self.client, text, getattr(self, "custom_get_token_ids", None))
