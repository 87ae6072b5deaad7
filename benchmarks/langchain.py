"""What a LangChain call and a streamed chunk cost the client, as a ratio to a yardstick.

    python benchmarks/langchain.py [--rounds 7] [--peers] [--check] [--json FILE]

The yardstick A is a `BaseChatModel` that does no I/O and builds its messages the normal way, plus a
hand-written httpx loop that reads the same bytes with `json.loads`; each is measured alone and the
two are added. All variants run interleaved, round by round, against one fake server in another
process that sends one token an event, each event in a write of its own. The number is the median
over rounds of CPU time (user and system, all threads) divided by A's of the same round. Absolute
times of two runs are not comparable; ratios are.

Every reply is checked against what was sent. Limits are those the project holds itself to.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# This file is called as the package langchain: with its folder on the path it would be imported.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._fake import MODEL, TOKEN, text_of
from benchmarks._run import (
    PROMPT,
    Build,
    Http,
    Job,
    Scenario,
    check,
    http_batch,
    http_in_loop,
    in_loop,
    repeated,
    run,
    wall,
)
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from enginekit.langchain import EngineKitChat


class NoIO(BaseChatModel):
    """The framework's share of A: messages built the normal way, nothing sent."""

    tokens: int = 16

    @property
    def _llm_type(self) -> str:
        return "no-io"

    def _message(self) -> AIMessage:
        return AIMessage(
            content=text_of(self.tokens),
            usage_metadata={"input_tokens": 20, "output_tokens": 16, "total_tokens": 36},
            response_metadata={"model_name": MODEL, "finish_reason": "stop"},
        )

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> Any:
        return ChatResult(generations=[ChatGeneration(message=self._message())])

    async def _agenerate(self, *args: Any, **kw: Any) -> Any:
        return ChatResult(generations=[ChatGeneration(message=self._message())])

    def _chunks(self) -> Iterator[ChatGenerationChunk]:
        for _ in range(self.tokens):
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{TOKEN} "))
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata={"input_tokens": 20, "output_tokens": 16, "total_tokens": 36},
                response_metadata={"model_name": MODEL, "finish_reason": "stop"},
                chunk_position="last",
            )
        )

    def _stream(self, *args: Any, **kw: Any) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks()

    async def _astream(self, *args: Any, **kw: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks():
            yield chunk


# ---------------------------------------------------------------------------------- jobs


def invoke(model: Any, tokens: int, times: int) -> Job:
    return repeated(lambda: str(model.invoke(PROMPT).content), tokens, times)


def stream(model: Any, tokens: int, times: int) -> Job:
    return repeated(lambda: "".join(c.content for c in model.stream(PROMPT)), tokens, times)


def ainvoke(model: Any, tokens: int, at_once: int) -> Job:
    async def one() -> str:
        return str((await model.ainvoke(PROMPT)).content)

    return in_loop(one, tokens, at_once)


def astream(model: Any, tokens: int, at_once: int, times: int = 1) -> Job:
    async def one() -> str:
        return "".join([c.content async for c in model.astream(PROMPT)])

    return in_loop(one, tokens, at_once, times)


def batch(model: Any, tokens: int, count: int, threads: int = 32) -> Job:
    def job() -> None:
        for reply in model.batch([PROMPT] * count, config={"max_concurrency": threads}):
            check(reply.content, tokens)

    return job


# ---------------------------------------------------------------------------------- variants


def ours(url: str) -> Build:
    return lambda tokens: EngineKitChat(
        engine="vllm", base_url=url, model=MODEL, max_tokens=tokens, temperature=0
    )


class LiteLLM:
    """litellm as it is called: no framework around it, which is to its advantage here."""

    def __init__(self, url: str, tokens: int) -> None:
        import litellm

        self._module = litellm
        self._given = {
            "model": f"openai/{MODEL}",
            "api_base": f"{url}/v1",
            "api_key": "x",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "num_retries": 0,
        }

    def invoke(self, prompt: str) -> Any:
        answer = self._module.completion(**self._given)
        return SimpleNamespace(content=answer.choices[0].message.content)

    async def ainvoke(self, prompt: str) -> Any:
        answer = await self._module.acompletion(**self._given)
        return SimpleNamespace(content=answer.choices[0].message.content)

    def stream(self, prompt: str) -> Iterator[Any]:
        for event in self._module.completion(stream=True, **self._given):
            yield SimpleNamespace(content=event.choices[0].delta.content or "")

    async def astream(self, prompt: str) -> AsyncIterator[Any]:
        async for event in await self._module.acompletion(stream=True, **self._given):
            yield SimpleNamespace(content=event.choices[0].delta.content or "")

    def batch(self, prompts: list[str], config: Mapping[str, int]) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(config["max_concurrency"]) as threads:
            return list(threads.map(self.invoke, prompts))


def known_peers(url: str) -> dict[str, Build]:
    """Those of the well-known classes that are installed."""
    found: dict[str, Build] = {}
    try:
        from langchain_openai import ChatOpenAI
    except ImportError:
        print("ChatOpenAI is not installed", file=sys.stderr)
    else:
        found["ChatOpenAI"] = lambda tokens: ChatOpenAI(
            base_url=f"{url}/v1", api_key="x", model=MODEL, max_tokens=tokens, stream_usage=True
        )
    try:
        from langchain_ollama import ChatOllama
    except ImportError:
        print("ChatOllama is not installed", file=sys.stderr)
    else:
        found["ChatOllama"] = lambda tokens: ChatOllama(
            base_url=url, model=MODEL, num_predict=tokens
        )
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    try:
        import litellm
    except ImportError:
        print("litellm is not installed", file=sys.stderr)
    else:
        logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
        # It takes 100 equal chunks for a model that is stuck; ours are equal on purpose.
        litellm.REPEATED_STREAMING_CHUNK_LIMIT = 1 << 30
        found["litellm"] = lambda tokens: LiteLLM(url, tokens)
    return found


def scenarios(url: str) -> list[Scenario]:
    def row(
        name: str, limit: float, units: int, tokens: int, make: Callable[[Any], Job], http: Job
    ) -> Scenario:
        return Scenario(name, limit, units, (make(NoIO(tokens=tokens)), http), make, tokens)

    def whole(tokens: int) -> Scenario:
        http = repeated(Http(url, tokens).whole, tokens, 200)
        return row(
            f"invoke, {tokens} tokens", 1.15, 200, tokens, lambda m: invoke(m, tokens, 200), http
        )

    chunks = 8 * 512
    return [
        whole(16),
        whole(512),
        row(
            "stream, per chunk",
            0.65,
            chunks,
            512,
            lambda m: stream(m, 512, 8),
            repeated(Http(url, 512).stream, 512, 8),
        ),
        row(
            "astream, per chunk",
            0.65,
            chunks,
            512,
            lambda m: astream(m, 512, 1, 8),
            http_in_loop(Http(url, 512), "stream", 512, 1, 8),
        ),
        row(
            "1,000 concurrent ainvoke",
            0.75,
            1000,
            16,
            lambda m: ainvoke(m, 16, 1000),
            http_in_loop(Http(url, 16), "whole", 16, 1000),
        ),
        row(
            "200 concurrent astream × 100",
            0.65,
            200 * 100,
            100,
            lambda m: astream(m, 100, 200),
            http_in_loop(Http(url, 100), "stream", 100, 200),
        ),
        row(
            "batch(), 32 threads",
            0.85,
            640,
            16,
            lambda m: batch(m, 16, 640),
            http_batch(Http(url, 16), 16, 640),
        ),
    ]


def walls(builds: Mapping[str, Build], count: int) -> float:
    bests = {}
    for name, build in builds.items():
        model = build(16)
        bests[name] = wall(f"{name}, ainvoke", ainvoke(model, 16, count))
        wall(f"{name}, batch(), {count} threads", batch(model, 16, count, count))
    return bests["enginekit"]


def main() -> int:
    title = (__doc__ or "").partition("\n")[0]
    packages = ("langchain-core", "langchain-openai", "langchain-ollama", "litellm")
    return run(title, packages, ours, known_peers, scenarios, walls)


if __name__ == "__main__":
    raise SystemExit(main())
