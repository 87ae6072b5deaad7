"""What a LlamaIndex call and a streamed chunk cost the client, as a ratio to a yardstick.

    python benchmarks/llama_index.py [--rounds 7] [--peers] [--check] [--json FILE]

The yardstick A is an `LLM` that does no I/O and builds its responses the normal way, plus a
hand-written httpx loop that reads the same bytes with `json.loads`; each is measured alone and the
two are added. Rounds are interleaved against one fake server in another process that sends one
token an event, each event in a write of its own. The number is the
median over rounds of CPU time (user and system, all threads) divided by A's of the same round.
Absolute times of two runs are not comparable; ratios are.

Every reply is checked against what was sent. Limits are those the project holds itself to. `--peers`
adds LlamaIndex's Ollama and OpenAILike classes where they are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# This file is called llama_index.py too: with its own folder on the path it would import itself.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._fake import MODEL, TOKEN, text_of
from benchmarks._run import (
    PROMPT,
    Build,
    Http,
    Job,
    Scenario,
    http_in_loop,
    in_loop,
    repeated,
    run,
    wall,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from enginekit.llama_index import EngineKitLLM

MESSAGES = [ChatMessage(role=MessageRole.USER, content=PROMPT)]
USAGE = {"prompt_tokens": 20, "completion_tokens": 16, "total_tokens": 36}


class NoIO(LLM):
    """The framework's share of A: responses built the normal way, nothing sent."""

    tokens: int = 16

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=MODEL, is_chat_model=True)

    def _whole(self) -> ChatResponse:
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=text_of(self.tokens)),
            raw={"model": MODEL, "usage": USAGE},
        )

    def _responses(self) -> Any:
        text = ""
        for _ in range(self.tokens):
            text += f"{TOKEN} "
            yield ChatResponse(
                message=ChatMessage(role=MessageRole.ASSISTANT, content=text),
                delta=f"{TOKEN} ",
                raw=None,
            )
        yield ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=text),
            delta="",
            raw={"model": MODEL, "usage": USAGE},
        )

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._whole()

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self._whole()

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        return self._responses()

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def responses() -> Any:
            for response in self._responses():
                yield response

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        raise NotImplementedError

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


# ---------------------------------------------------------------------------------- jobs


def chat(model: Any, tokens: int, times: int) -> Job:
    return repeated(lambda: str(model.chat(MESSAGES).message.content), tokens, times)


def stream(model: Any, tokens: int, times: int) -> Job:
    return repeated(
        lambda: "".join(r.delta or "" for r in model.stream_chat(MESSAGES)), tokens, times
    )


def achat(model: Any, tokens: int, at_once: int) -> Job:
    async def one() -> str:
        return str((await model.achat(MESSAGES)).message.content)

    return in_loop(one, tokens, at_once)


def astream(model: Any, tokens: int, at_once: int, times: int = 1) -> Job:
    async def one() -> str:
        return "".join([r.delta or "" async for r in await model.astream_chat(MESSAGES)])

    return in_loop(one, tokens, at_once, times)


# ---------------------------------------------------------------------------------- variants


def ours(url: str) -> Build:
    return lambda tokens: EngineKitLLM(
        engine="vllm", base_url=url, model=MODEL, max_tokens=tokens, temperature=0
    )


def known_peers(url: str) -> dict[str, Build]:
    """Those of LlamaIndex's own classes that are installed."""
    found: dict[str, Build] = {}
    try:
        from llama_index.llms.openai_like import OpenAILike
    except ImportError:
        print("OpenAILike is not installed", file=sys.stderr)
    else:
        found["OpenAILike"] = lambda tokens: OpenAILike(
            api_base=f"{url}/v1", api_key="x", model=MODEL, max_tokens=tokens, is_chat_model=True
        )
    try:
        from llama_index.llms.ollama import Ollama
    except ImportError:
        print("Ollama is not installed", file=sys.stderr)
    else:
        found["Ollama"] = lambda tokens: Ollama(
            base_url=url,
            model=MODEL,
            context_window=8192,
            additional_kwargs={"num_predict": tokens},
        )
    return found


def scenarios(url: str) -> list[Scenario]:
    def row(
        name: str, limit: float, units: int, tokens: int, make: Callable[[Any], Job], http: Job
    ) -> Scenario:
        return Scenario(name, limit, units, (make(NoIO(tokens=tokens)), http), make, tokens)

    def whole(tokens: int) -> Scenario:
        http = repeated(Http(url, tokens).whole, tokens, 200)
        return row(
            f"chat, {tokens} tokens", 1.15, 200, tokens, lambda m: chat(m, tokens, 200), http
        )

    chunks = 8 * 512
    return [
        whole(16),
        whole(512),
        row(
            "stream_chat, per chunk",
            0.9,
            chunks,
            512,
            lambda m: stream(m, 512, 8),
            repeated(Http(url, 512).stream, 512, 8),
        ),
        row(
            "astream_chat, per chunk",
            0.9,
            chunks,
            512,
            lambda m: astream(m, 512, 1, 8),
            http_in_loop(Http(url, 512), "stream", 512, 1, 8),
        ),
        row(
            "1,000 concurrent achat",
            1.0,
            1000,
            16,
            lambda m: achat(m, 16, 1000),
            http_in_loop(Http(url, 16), "whole", 16, 1000),
        ),
    ]


def walls(builds: Mapping[str, Build], count: int) -> float:
    bests = {}
    for name, build in builds.items():
        model = build(16)
        bests[name] = wall(f"{name}, achat", achat(model, 16, count))
    return bests["enginekit"]


def main() -> int:
    title = (__doc__ or "").partition("\n")[0]
    packages = ("llama-index-core", "llama-index-llms-openai-like", "llama-index-llms-ollama")
    return run(title, packages, ours, known_peers, scenarios, walls)


if __name__ == "__main__":
    raise SystemExit(main())
