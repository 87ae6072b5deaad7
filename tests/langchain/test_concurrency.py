"""Loops, threads, cancellation, leaving early: what peers get wrong."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from enginekit.langchain import EngineKitChat
from tests.langchain.wires import HELLO, VLLM, Answer, LlamaCpp, Wire, model_of
from tests.support.server import Server


def test_two_event_loops_in_a_row(wire: Wire) -> None:
    """A client kept across `asyncio.run` fails with "Event loop is closed" in other libraries."""
    wire.says(HELLO)
    model = model_of(wire)

    async def both() -> tuple[Any, list[Any]]:
        return await model.ainvoke("hi"), [chunk async for chunk in model.astream("hi")]

    for _ in range(3):
        message, chunks = asyncio.run(both())
        assert message.content == "Hello there"
        assert "".join(chunk.text for chunk in chunks) == "Hello there"


async def test_sync_calls_inside_a_running_loop(wire: Wire) -> None:
    """As in a notebook."""
    wire.says(HELLO)
    model = model_of(wire)
    assert model.invoke("hi").content == "Hello there"
    assert (await model.ainvoke("hi")).content == "Hello there"
    assert "".join(chunk.text for chunk in model.stream("hi")) == "Hello there"


def test_threads_share_an_instance(vllm: VLLM) -> None:
    vllm.server.on(
        vllm.path,
        lambda seen: vllm.render(Answer(text=[seen.json["messages"][-1]["content"]]), seen.json),
    )
    model = model_of(vllm)
    clients = set()

    def ask(number: int) -> bool:
        clients.add(id(model.client))
        if number % 2:
            return model.invoke(str(number)).text == str(number)
        return "".join(chunk.text for chunk in model.stream(str(number))) == str(number)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(64)))
    assert len(clients) == 1


async def test_many_concurrent_calls(vllm: VLLM) -> None:
    vllm.server.on(
        vllm.path,
        lambda seen: vllm.render(Answer(text=[seen.json["messages"][-1]["content"]]), seen.json),
    )
    model = model_of(vllm)
    replies = await asyncio.gather(*(model.ainvoke(str(number)) for number in range(200)))
    assert [reply.text for reply in replies] == [str(number) for number in range(200)]


@pytest.mark.parametrize("kind", [VLLM, LlamaCpp])
def test_leaving_a_stream_hangs_up(server: Server, kind: type[Wire]) -> None:
    """Else the server would go on generating for nobody."""
    wire = kind(server).says(Answer(text=["a", "b"], pause=threading.Event()))
    for _ in model_of(wire).stream("hi"):
        break
    assert server.wait_hung_up()


async def test_leaving_an_async_stream_hangs_up(wire: Wire) -> None:
    wire.says(Answer(text=["a", "b"], pause=threading.Event()))
    stream: Any = model_of(wire).astream("hi")
    async for _ in stream:
        break
    await stream.aclose()
    assert await asyncio.to_thread(wire.server.wait_hung_up)


@pytest.mark.parametrize("streamed", [True, False])
async def test_cancelling_hangs_up(wire: Wire, streamed: bool) -> None:
    wire.says(Answer(text=["a", "b"], pause=threading.Event()))
    model = model_of(wire, streaming=True)

    async def ask() -> Any:
        if streamed:
            return [chunk async for chunk in model.astream("hi")]
        return await model.ainvoke("hi")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await ask()
    assert await asyncio.to_thread(wire.server.wait_hung_up)


async def test_a_used_instance_can_be_copied_inside_a_loop(vllm: VLLM) -> None:
    import copy
    import pickle

    vllm.says(HELLO)
    model = model_of(vllm)
    await model.ainvoke("hi")
    model.invoke("hi")
    for twin in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin, EngineKitChat)
        assert (await twin.ainvoke("hi")).content == "Hello there"
