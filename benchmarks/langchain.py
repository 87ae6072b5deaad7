"""What a LangChain call and a streamed chunk cost the client, as a ratio to a yardstick.

    python benchmarks/langchain.py [--rounds 7] [--peers] [--json FILE]

The yardstick A is a `BaseChatModel` that does no I/O and builds its messages the normal way, plus a
hand-written httpx loop that reads the same bytes with `json.loads`; each is measured alone and the
two are added. All variants run interleaved, round by round, against one fake server in another
process; the number is the median over rounds of CPU time (user and system, all threads) divided by
A's of the same round. Absolute times of two runs are not comparable; ratios are.

Every reply is checked against what was sent. Limits are those the project holds itself to.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from benchmarks._fake import MODEL, TOKEN, fake_server, text_of
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from enginekit.langchain import EngineKitChat

PROMPT = "Tell me about rivers, please."


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


class Http:
    """The network's share of A: a hand-written httpx loop."""

    def __init__(self, url: str, tokens: int) -> None:
        self.url = f"{url}/v1/chat/completions"
        self.body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
        }
        self.client = httpx.Client(timeout=60, trust_env=False)

    def whole(self) -> str:
        answer = json.loads(self.client.post(self.url, json=self.body).content)
        return str(answer["choices"][0]["message"]["content"])

    def stream(self) -> str:
        parts = []
        body = {**self.body, "stream": True, "stream_options": {"include_usage": True}}
        with self.client.stream("POST", self.url, json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line[6:])
                    if event["choices"]:
                        parts.append(event["choices"][0]["delta"].get("content") or "")
        return "".join(parts)

    async def awhole(self, client: httpx.AsyncClient) -> str:
        answer = json.loads((await client.post(self.url, json=self.body)).content)
        return str(answer["choices"][0]["message"]["content"])

    async def astream(self, client: httpx.AsyncClient) -> str:
        parts = []
        body = {**self.body, "stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", self.url, json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line[6:])
                    if event["choices"]:
                        parts.append(event["choices"][0]["delta"].get("content") or "")
        return "".join(parts)

    def async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=60, trust_env=False)


# ---------------------------------------------------------------------------------- jobs

Job = Callable[[], None]

LOOP = asyncio.new_event_loop()
"""One loop for all: ChatOpenAI and ChatOllama fail in the second `asyncio.run` of a process."""


def check(text: str, tokens: int) -> None:
    if text != text_of(tokens):
        raise SystemExit(f"a reply is not what was sent: {text[:80]!r}…")


def invoke(model: Any, tokens: int, times: int) -> Job:
    def job() -> None:
        for _ in range(times):
            check(model.invoke(PROMPT).content, tokens)

    return job


def stream(model: Any, tokens: int, times: int) -> Job:
    def job() -> None:
        for _ in range(times):
            check("".join(c.content for c in model.stream(PROMPT)), tokens)

    return job


def in_loop(one: Callable[[], Awaitable[str]], tokens: int, at_once: int, times: int = 1) -> Job:
    async def run() -> None:
        for _ in range(times):
            for text in await asyncio.gather(*(one() for _ in range(at_once))):
                check(text, tokens)

    return lambda: LOOP.run_until_complete(run())


def ainvoke(model: Any, tokens: int, at_once: int) -> Job:
    async def one() -> str:
        return str((await model.ainvoke(PROMPT)).content)

    return in_loop(one, tokens, at_once)


def astream(model: Any, tokens: int, at_once: int, times: int = 1) -> Job:
    async def one() -> str:
        return "".join([c.content async for c in model.astream(PROMPT)])

    return in_loop(one, tokens, at_once, times)


AT_A_CLIENT = 100
"""Calls that share one httpx client: its pool looks at every connection at every request, so a few
small pools are the cheapest way to use it, and A is to be the cheapest honest loop."""


def http_in_loop(http: Http, kind: str, tokens: int, at_once: int, times: int = 1) -> Job:
    one = http.awhole if kind == "whole" else http.astream
    clients = [http.async_client() for _ in range(-(-at_once // AT_A_CLIENT))]

    async def run() -> None:
        for _ in range(times):
            calls = (one(clients[number // AT_A_CLIENT]) for number in range(at_once))
            for text in await asyncio.gather(*calls):
                check(text, tokens)

    return lambda: LOOP.run_until_complete(run())


def batch(model: Any, tokens: int, count: int) -> Job:
    def job() -> None:
        for reply in model.batch([PROMPT] * count, config={"max_concurrency": 32}):
            check(reply.content, tokens)

    return job


def http_batch(http: Http, tokens: int, count: int) -> Job:
    from concurrent.futures import ThreadPoolExecutor

    def job() -> None:
        with ThreadPoolExecutor(32) as pool:
            for text in pool.map(lambda _: http.whole(), range(count)):
                check(text, tokens)

    return job


# ---------------------------------------------------------------------------------- measuring


def cpu(job: Job) -> float:
    gc.collect()
    before = time.process_time()
    job()
    return time.process_time() - before


def scenarios(
    url: str, peers: dict[str, Callable[[int], Any]]
) -> list[tuple[str, float, int, Any]]:
    """(name, limit, units, variants); variants: name to one job, or to the two halves of A."""
    models: dict[str, Callable[[int], Any]] = {
        "enginekit": lambda tokens: EngineKitChat(
            engine="vllm", base_url=url, model=MODEL, max_tokens=tokens, temperature=0
        ),
        **peers,
    }

    def variants(make: Callable[[Any], Job], tokens: int, http: Job) -> dict[str, list[Job]]:
        made = {"A": [make(NoIO(tokens=tokens)), http]}
        made.update({name: [make(build(tokens))] for name, build in models.items()})
        return made

    def whole(tokens: int, times: int) -> Any:
        http = Http(url, tokens)

        def loop() -> None:
            for _ in range(times):
                check(http.whole(), tokens)

        return variants(lambda m: invoke(m, tokens, times), tokens, loop)

    def streamed(tokens: int, times: int) -> Any:
        http = Http(url, tokens)

        def loop() -> None:
            for _ in range(times):
                check(http.stream(), tokens)

        return variants(lambda m: stream(m, tokens, times), tokens, loop)

    def astreamed(tokens: int, at_once: int, times: int) -> Any:
        http = http_in_loop(Http(url, tokens), "stream", tokens, at_once, times)
        return variants(lambda m: astream(m, tokens, at_once, times), tokens, http)

    def many(tokens: int, at_once: int) -> Any:
        http = http_in_loop(Http(url, tokens), "whole", tokens, at_once)
        return variants(lambda m: ainvoke(m, tokens, at_once), tokens, http)

    def threads(tokens: int, count: int) -> Any:
        http = http_batch(Http(url, tokens), tokens, count)
        return variants(lambda m: batch(m, tokens, count), tokens, http)

    return [
        ("invoke, 16 tokens", 1.15, 200, whole(16, 200)),
        ("invoke, 512 tokens", 1.15, 200, whole(512, 200)),
        ("stream, per chunk", 0.65, 8 * 512, streamed(512, 8)),
        ("astream, per chunk", 0.65, 8 * 512, astreamed(512, 1, 8)),
        ("1,000 concurrent ainvoke", 0.75, 1000, many(16, 1000)),
        ("200 concurrent astream x 100", 0.65, 200 * 100, astreamed(100, 200, 1)),
        ("batch(), 32 threads", 0.85, 640, threads(16, 640)),
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


def show(row: dict[str, Any]) -> None:
    variants = [key for key in row if f"{key} µs" in row and key != "A"]
    cells = "  ".join(f"{v} {row[v]:.2f} ({row[f'{v} µs']:.0f} µs)" for v in variants)
    verdict = "" if row["enginekit"] <= row["limit"] else "   OVER THE LIMIT"
    print(f"{row['name']:30} limit {row['limit']:.2f}  A {row['A µs']:.0f} µs  {cells}{verdict}")


def construction() -> None:
    """First and later construction, in milliseconds of CPU time."""
    begin = time.process_time()
    EngineKitChat(model=MODEL)
    first = time.process_time() - begin
    begin = time.process_time()
    for _ in range(1000):
        EngineKitChat(model=MODEL)
    later = (time.process_time() - begin) / 1000
    print(f"construction: first {first * 1e3:.1f} ms, later {later * 1e3:.3f} ms (limit 0.2)")


def latency() -> None:
    """500 calls at once against a server that takes 100 ms: wall time, first and once connected."""
    with fake_server(delay=0.1) as url:
        model = EngineKitChat(engine="vllm", base_url=url, model=MODEL, max_tokens=16)
        model.invoke(PROMPT)

        async def run() -> float:
            begin = time.perf_counter()
            await asyncio.gather(*(model.ainvoke(PROMPT) for _ in range(500)))
            return time.perf_counter() - begin

        walls = [LOOP.run_until_complete(run()) for _ in range(3)]
    cold, *warm = walls
    print(f"500 calls at 100 ms each: {cold:.2f} s of wall time, again {min(warm):.2f} (limit 0.6)")


def known_peers(url: str) -> dict[str, Callable[[int], Any]]:
    """Those of the well-known classes that are installed."""
    found: dict[str, Callable[[int], Any]] = {}
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
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--peers", action="store_true", help="measure ChatOpenAI and ChatOllama too"
    )
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
    LOOP.run_until_complete(LOOP.shutdown_asyncgens())
    LOOP.close()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))
    return int(any(row["enginekit"] > row["limit"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
