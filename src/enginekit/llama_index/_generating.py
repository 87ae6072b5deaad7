"""Settings of generation, as fields. What is None stays with the server."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from enginekit.llama_index._settings import Connection


class Generating(Connection):
    """Sampling and the rest of a request that a single call may override."""

    temperature: float | None = Field(
        default=None, description="Sampling temperature; 0 takes the most likely token."
    )
    top_p: float | None = Field(
        default=None, description="Smallest set of tokens whose probabilities sum to this."
    )
    top_k: int | None = Field(
        default=None, description="How many of the most likely tokens to choose from."
    )
    min_p: float | None = Field(
        default=None, description="Least probability of a token, relative to the most likely one."
    )
    typical_p: float | None = Field(default=None, description="Locally typical sampling.")
    seed: int | None = Field(
        default=None, description="Makes sampling repeatable where the engine allows it."
    )
    max_tokens: int | None = Field(
        default=None, description="Upper limit of generated tokens, reasoning included."
    )
    min_tokens: int | None = Field(
        default=None, description="Fewest tokens before the model may stop."
    )
    stop: str | list[str] | None = Field(
        default=None, description="Texts that end the reply; stop= of a call takes their place."
    )
    repetition_penalty: float | None = Field(
        default=None, description="Makes tokens that came before less likely."
    )
    repetition_window: int | None = Field(
        default=None, description="How many past tokens the repetition penalty looks at."
    )
    frequency_penalty: float | None = Field(
        default=None, description="Makes a token less likely by how often it came."
    )
    presence_penalty: float | None = Field(
        default=None, description="Makes a token less likely once it came."
    )
    logit_bias: dict[int, float] | None = Field(
        default=None, description="Token id to bias added to its logit."
    )
    ignore_eos: bool | None = Field(
        default=None, description="Go on past the end token (for benchmarks)."
    )
    mirostat: int | None = Field(default=None, description="Mirostat version.")
    mirostat_tau: float | None = Field(default=None, description="Mirostat target entropy.")
    mirostat_eta: float | None = Field(default=None, description="Mirostat learning rate.")
    logprobs: bool | None = Field(
        default=None, description="Return log probabilities, as the response's logprobs."
    )
    top_logprobs: int | None = Field(
        default=None, description="How many alternatives to return at each token."
    )
    n: int | None = Field(
        default=None,
        description="How many replies to one prompt; the others are in raw['alternatives'].",
    )
    context_window: int | None = Field(
        default=None,
        description="Tokens, for engines that change it per request (Ollama's num_ctx).",
    )
    keep_alive: float | str | None = Field(
        default=None,
        description="How long the model stays loaded afterwards: seconds or '5m'; negative is for "
        "ever.",
    )
    lora: str | list[tuple[int, float]] | None = Field(
        default=None, description="Name of an adapter, or pairs of adapter id and scale."
    )
    reasoning: bool | str | None = Field(
        default=None,
        description="Switch thinking on or off, or an effort ('low', 'medium', 'high').",
    )
    parallel_tool_calls: bool | None = Field(
        default=None, description="False asks for at most one tool call."
    )
    template_options: dict[str, Any] | None = Field(
        default=None, description="Variables for the chat template (chat_template_kwargs)."
    )
    show_schema: bool | None = Field(
        default=None,
        description="Tell the model the schema of a structured answer in the prompt too, not only "
        "enforce it.",
    )
    use_completion_endpoint: bool = Field(
        default=False,
        description="Let complete() and its kin continue the bare text, without a chat template: "
        "for base models. chat() is not affected.",
    )
    is_function_calling_model: bool | None = Field(
        default=None, description="Overrides what the engine says of itself, in metadata."
    )
    include_receipt: bool = Field(
        default=True,
        description="Say in each reply's raw['receipt'] what became of every setting.",
    )
