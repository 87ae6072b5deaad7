"""Loops, threads, cancellation and many calls at once."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llama_index.core.llms import ChatMessage

from enginekit.llama_index import EngineKitLLM
from tests.langchain.wires import VLLM, Answer
from tests.llama_index.subjects import GREETING, on_wire

HI = [ChatMessage(role="user", content="Hello")]


def llm_of(wire: VLLM) -> EngineKitLLM:
    return EngineKitLLM(**{**wire.settings, "max_retries": 0, "timeout": 60})


TWO_LOOPS = """
import asyncio, gc, sys, warnings
from llama_index.core.llms import ChatMessage
from enginekit.llama_index import EngineKitLLM
llm = EngineKitLLM(engine="vllm", base_url=sys.argv[1], model="tiny", timeout=20)
async def once():
    text = (await llm.achat([ChatMessage(content="Hello")])).message.content
    async for part in await llm.astream_chat([ChatMessage(content="Hello")]):
        break
    return text
print(asyncio.run(once())); print(asyncio.run(once()))
gc.collect()
"""


def test_a_second_asyncio_run_is_quiet(vllm: VLLM) -> None:
    """In a process of its own, with warnings as errors, to the very end of the interpreter."""
    on_wire(vllm)
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error::ResourceWarning",
            "-c",
            TWO_LOOPS,
            vllm.server.url,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [GREETING, GREETING]
    assert "unclosed" not in done.stderr.lower()
    assert "never retrieved" not in done.stderr


async def test_a_thousand_replies_at_once(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)
    replies = await asyncio.gather(*(llm.achat(HI) for _ in range(1000)))
    assert {reply.message.content for reply in replies} == {GREETING}
    assert len(vllm.requests) == 1000


def test_threads_share_an_instance(vllm: VLLM) -> None:
    on_wire(vllm)
    llm = llm_of(vllm)

    def both(_: int) -> str:
        whole = llm.chat(HI).message.content or ""
        streamed = "".join(r.delta or "" for r in llm.stream_chat(HI))
        return whole if whole == streamed else "different"

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(both, range(64))) == {GREETING}


def test_leaving_a_stream_hangs_up(vllm: VLLM) -> None:
    vllm.says(Answer(text=("a", "b", "c"), pause=threading.Event()))
    for response in llm_of(vllm).stream_chat(HI):
        assert response.delta == "a"
        break
    gc.collect()
    assert vllm.server.wait_hung_up()


async def test_leaving_an_async_stream_hangs_up(vllm: VLLM) -> None:
    vllm.says(Answer(text=("a", "b", "c"), pause=threading.Event()))
    stream = await llm_of(vllm).astream_chat(HI)
    async for response in stream:
        assert response.delta == "a"
        break
    await stream.aclose()
    assert await asyncio.to_thread(vllm.server.wait_hung_up)


async def test_a_stream_that_nobody_reads_hangs_up(vllm: VLLM) -> None:
    vllm.says(Answer(text=("a", "b", "c"), pause=threading.Event()))
    stream = await llm_of(vllm).astream_chat(HI)
    await stream.aclose()
    del stream
    gc.collect()
    assert await asyncio.to_thread(vllm.server.wait_hung_up)


async def test_cancelling_hangs_up(vllm: VLLM) -> None:
    vllm.says(Answer(text=("a", "b"), pause=threading.Event(), extra={}))
    llm = llm_of(vllm)

    async def read() -> None:
        async for _ in await llm.astream_chat(HI):
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(vllm.server.wait_requests, 1)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(vllm.server.wait_hung_up)
