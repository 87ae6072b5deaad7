"""What a LlamaIndex call and a streamed chunk cost the client, as a ratio to a yardstick.

    python benchmarks/llama_index.py [--rounds 7] [--peers] [--json FILE]

The yardstick A is an `LLM` that does no I/O and builds its responses the normal way, plus a
hand-written httpx loop that reads the same bytes with `json.loads`; each is measured alone and the
two are added. Rounds are interleaved against one fake server in another process; the number is the
median over rounds of CPU time (user and system, all threads) divided by A's of the same round.
Absolute times of two runs are not comparable; ratios are.

Every reply is checked against what was sent. Limits are those the project holds itself to. `--peers`
adds LlamaIndex's Ollama and OpenAILike classes where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# This file is called llama_index.py too: with its own folder on the path it would import itself.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._fake import MODEL, TOKEN, fake_server, text_of
from benchmarks.langchain import PROMPT, Http, Job, check, cpu, http_in_loop, in_loop, show
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
    def job() -> None:
        for _ in range(times):
            check(model.chat(MESSAGES).message.content, tokens)

    return job


def stream(model: Any, tokens: int, times: int) -> Job:
    def job() -> None:
        for _ in range(times):
            check("".join(r.delta or "" for r in model.stream_chat(MESSAGES)), tokens)

    return job


def achat(model: Any, tokens: int, at_once: int) -> Job:
    async def one() -> str:
        return str((await model.achat(MESSAGES)).message.content)

    return in_loop(one, tokens, at_once)


def astream(model: Any, tokens: int, at_once: int, times: int = 1) -> Job:
    async def one() -> str:
        return "".join([r.delta or "" async for r in await model.astream_chat(MESSAGES)])

    return in_loop(one, tokens, at_once, times)


def repeated(one: Callable[[], str], tokens: int, times: int) -> Job:
    def job() -> None:
        for _ in range(times):
            check(one(), tokens)

    return job


# ---------------------------------------------------------------------------------- measuring


def scenarios(
    url: str, peers: dict[str, Callable[[int], Any]]
) -> list[tuple[str, float, int, Any]]:
    """(name, limit, units, variants); variants: name to one job, or to the two halves of A."""
    models: dict[str, Callable[[int], Any]] = {
        "enginekit": lambda tokens: EngineKitLLM(
            engine="vllm", base_url=url, model=MODEL, max_tokens=tokens, temperature=0
        ),
        **peers,
    }

    def variants(make: Callable[[Any], Job], tokens: int, http: Job) -> dict[str, list[Job]]:
        made = {"A": [make(NoIO(tokens=tokens)), http]}
        made.update({name: [make(build(tokens))] for name, build in models.items()})
        return made

    def whole(tokens: int, times: int) -> Any:
        http = repeated(Http(url, tokens).whole, tokens, times)
        return variants(lambda m: chat(m, tokens, times), tokens, http)

    def streamed(tokens: int, times: int) -> Any:
        http = repeated(Http(url, tokens).stream, tokens, times)
        return variants(lambda m: stream(m, tokens, times), tokens, http)

    def astreamed(tokens: int, at_once: int, times: int) -> Any:
        http = http_in_loop(Http(url, tokens), "stream", tokens, at_once, times)
        return variants(lambda m: astream(m, tokens, at_once, times), tokens, http)

    def many(tokens: int, at_once: int) -> Any:
        http = http_in_loop(Http(url, tokens), "whole", tokens, at_once)
        return variants(lambda m: achat(m, tokens, at_once), tokens, http)

    return [
        ("chat, 16 tokens", 1.15, 200, whole(16, 200)),
        ("chat, 512 tokens", 1.15, 200, whole(512, 200)),
        ("stream_chat, per chunk", 0.9, 8 * 512, streamed(512, 8)),
        ("astream_chat, per chunk", 0.9, 8 * 512, astreamed(512, 1, 8)),
        ("1,000 concurrent achat", 1.0, 1000, many(16, 1000)),
    ]


def measure(rounds: int, names: str, peers: Any) -> list[dict[str, Any]]:
    rows = []
    with fake_server() as url:
        for name, limit, units, variants in scenarios(url, peers(url)):
            if names and names not in name:
                continue
            taken: dict[str, list[float]] = {variant: [] for variant in variants}
            for jobs in variants.values():
                for job in jobs:
                    job()
            for _ in range(rounds):
                for variant, jobs in variants.items():
                    taken[variant].append(sum(cpu(job) for job in jobs))
            row: dict[str, Any] = {"name": name, "limit": limit}
            for variant, times in taken.items():
                ratios = [own / yard for own, yard in zip(times, taken["A"], strict=True)]
                row[variant] = statistics.median(ratios)
                row[f"{variant} µs"] = statistics.median(times) / units * 1e6
            rows.append(row)
            show(row)
    return rows


def construction() -> None:
    """First and later construction, in milliseconds of CPU time."""
    begin = time.process_time()
    EngineKitLLM(model=MODEL)
    first = time.process_time() - begin
    begin = time.process_time()
    for _ in range(1000):
        EngineKitLLM(model=MODEL)
    later = (time.process_time() - begin) / 1000
    print(f"construction: first {first * 1e3:.1f} ms, later {later * 1e3:.3f} ms (limit 0.2)")


def latency() -> None:
    """500 calls at once against a server that takes 100 ms: wall time."""
    with fake_server(delay=0.1) as url:
        model = EngineKitLLM(engine="vllm", base_url=url, model=MODEL, max_tokens=16)
        model.chat(MESSAGES)

        async def run() -> float:
            begin = time.perf_counter()
            await asyncio.gather(*(model.achat(MESSAGES) for _ in range(500)))
            return time.perf_counter() - begin

        walls = [asyncio.run(run()) for _ in range(3)]
    print(f"500 calls at 100 ms each: {min(walls):.2f} s of wall time (limit 0.6)")


def known_peers(url: str) -> dict[str, Callable[[int], Any]]:
    """Those of LlamaIndex's own classes that are installed."""
    found: dict[str, Callable[[int], Any]] = {}
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="measure OpenAILike and Ollama too")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    for name in [name for name in os.environ if name.startswith("ENGINEKIT_")]:
        del os.environ[name]
    construction()
    rows = measure(given.rounds, given.only, known_peers if given.peers else lambda url: {})
    if not given.only:
        latency()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))
    return int(any(row["enginekit"] > row["limit"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
