"""What other integrations fail and no standard suite notices, on a server that answers now.

Runs where the standard suites run: on a real llama.cpp by default, on the live lanes' servers there.
`tests/langchain` and `tests/llama_index` have the same questions, and the rarer ones, on loopback.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.tools import tool

from enginekit.kit.client import Client
from enginekit.langchain import EngineKitChat
from enginekit.llama_index import EngineKitLLM
from tests.langchain.wires import VLLM, Answer
from tests.standard.conftest import Served
from tests.support.generation import Meter, stopped, wasted
from tests.support.models import environment
from tests.support.scripted import GREETING, THOUGHT
from tests.support.server import Reply, Seen, Server, refused_url

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]


@tool
def get_weather(city: str) -> str:
    """Look up the weather in a city."""
    return f"dry in {city}"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def model(served: Served) -> EngineKitChat:
    return EngineKitChat(**served.settings, temperature=0, max_tokens=200, timeout=60)


@pytest.fixture
def exact(served: Served) -> None:
    """For expectations that only scripted weights can meet."""
    if not served.scripted:
        pytest.skip("exact expectations need the scripted weights on the server")


def summed(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk  # type: ignore[assignment]
    return total


# ------------------------------------------------------------------- deltas and content blocks


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_two_streamed_calls_survive_content_blocks(
    model: EngineKitChat, exact: None, version: str
) -> None:
    """With v1 the calls of other integrations are merged into the text's block and vanish."""
    versioned = model.model_copy(update={"output_version": version})
    bound = versioned.bind_tools([get_weather, add])
    total = summed(list(bound.stream("CALLS")))  # type: ignore[arg-type]
    wanted = [("get_weather", {"city": "Oslo"}), ("add", {"a": 2, "b": 3})]
    assert [(call["name"], call["args"]) for call in total.tool_calls] == wanted
    blocks = [block for block in total.content_blocks if block["type"] == "tool_call"]
    assert [(block["name"], block["args"]) for block in blocks] == wanted
    if version == "v1":
        assert [b["type"] for b in total.content if isinstance(b, dict)].count("tool_call") == 2
    assert len({call["id"] for call in total.tool_calls}) == 2


def test_reasoning_and_text_are_two_blocks_of_a_v1_stream(
    model: EngineKitChat, exact: None
) -> None:
    total = summed(list(model.model_copy(update={"output_version": "v1"}).stream("MUSE")))
    kinds = [block["type"] for block in total.content_blocks]
    if "reasoning" not in kinds:
        pytest.skip("this server was started without a reasoning parser")
    assert kinds == ["reasoning", "text"]
    assert THOUGHT in total.content_blocks[0]["reasoning"]
    assert total.text.strip() == GREETING


# ------------------------------------------------------------------- loops, threads, processes

TWO_RUNS = """
import asyncio, gc, json, os
from enginekit.langchain import EngineKitChat
model = EngineKitChat(**json.loads(os.environ["SETTINGS"]), temperature=0, max_tokens=40)
async def once():
    reply = await model.ainvoke("Hi.")
    async for piece in model.astream("Hi."):
        break
    return reply.text
first, second = asyncio.run(once()), asyncio.run(once())
gc.collect()
assert first == second, (first, second)
print("same")
"""


def test_a_second_asyncio_run_is_quiet(served: Served) -> None:
    """In a process of its own, warnings as errors, to the very end of the interpreter."""
    import json

    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", TWO_RUNS],
        env={**environment(), "SETTINGS": json.dumps(served.settings)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"
    assert "unclosed" not in done.stderr.lower()
    assert "never retrieved" not in done.stderr


async def test_sync_calls_inside_a_running_loop(model: EngineKitChat) -> None:
    """As in a notebook, between async calls on the same instance."""
    first = await model.ainvoke("Hi.")
    assert model.invoke("Hi.").text == first.text
    assert "".join(piece.text for piece in model.stream("Hi.")) == first.text
    assert (await model.ainvoke("Hi.")).text == first.text


SHARED: dict[str, Any] = {}


@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_one_instance_over_tests_each_with_its_own_loop(served: Served, turn: int) -> None:
    """pytest-asyncio closes the loop after each test; the instance lives on."""
    instance = SHARED.setdefault("model", EngineKitChat(**served.settings, max_tokens=40))
    assert (await instance.ainvoke("Hi.")).text
    assert [piece async for piece in instance.astream("Hi.")]
    llm = SHARED.setdefault("llm", EngineKitLLM(**served.settings, max_tokens=40))
    assert (await llm.acomplete("Hi.")).text
    if turn == 3:
        SHARED.clear()


def test_threads_share_one_instance(model: EngineKitChat) -> None:
    first = model.invoke("Hi.").text
    with ThreadPoolExecutor(8) as pool:
        assert {reply.text for reply in pool.map(model.invoke, ["Hi."] * 24)} == {first}


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_used_instance_can_be_copied(model: EngineKitChat, clone: Any) -> None:
    used = model.invoke("Hi.").text
    twin = clone(model)
    assert twin.invoke("Hi.").text == used
    assert model.invoke("Hi.").text == used


async def test_more_at_once_than_the_server_has_slots(served: Served) -> None:
    """They queue there, and none is lost or repeated."""
    model = EngineKitChat(**served.settings, temperature=0, max_tokens=16, timeout=240)
    replies = await asyncio.gather(*(model.ainvoke("Hi.") for _ in range(100)))
    assert len({reply.text for reply in replies}) == 1
    assert len({reply.id for reply in replies}) == 100


async def test_a_thousand_at_once(server: Server) -> None:
    """On loopback, where the server is no bottleneck: each call gets its own answer."""

    def echo(seen: Seen) -> Reply:
        text = seen.json["messages"][-1]["content"]
        return vllm.render(Answer(text=[text]), seen.json)

    vllm = VLLM(server)
    server.on(vllm.path, echo)
    model = EngineKitChat(**vllm.settings, timeout=120)
    replies = await asyncio.gather(*(model.ainvoke(str(number)) for number in range(1000)))
    assert [reply.text for reply in replies] == [str(number) for number in range(1000)]


# ------------------------------------------------------------------- leaving early, falling back


@pytest.fixture
def metered(served: Served) -> Client:
    client = served.client()
    if not Meter(client).shown:
        pytest.skip("the server does not show what it generated")
    return client


@pytest.fixture
def whole_reply(served: Served) -> int:
    """Tokens that LONG has, uncut: it ends with the window only."""
    facts = served.client().connect()
    assert facts is not None
    return (facts.context_window or 2048) - 200


def test_a_cancelled_call_frees_the_server(
    model: EngineKitChat, metered: Client, whole_reply: int, exact: None
) -> None:
    endless = model.model_copy(update={"max_tokens": whole_reply})
    assert endless.invoke("Hi.").text.strip() == GREETING  # found, probed and connected

    async def cancelled(delay: float) -> None:
        task = asyncio.create_task(endless.ainvoke("LONG"))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    rounds = wasted(metered, lambda delay: asyncio.run(cancelled(delay)))
    assert stopped(rounds, whole_reply), rounds
    assert model.invoke("Hi.").text.strip() == GREETING


def test_leaving_a_stream_frees_the_server(
    model: EngineKitChat, metered: Client, whole_reply: int, exact: None
) -> None:
    endless = model.model_copy(update={"max_tokens": whole_reply})

    def leave(delay: float) -> None:
        for piece in endless.stream("LONG"):
            if piece.text:
                break

    rounds = wasted(metered, leave)
    assert stopped(rounds, whole_reply), rounds
    assert model.invoke("Hi.").text.strip() == GREETING


def test_fallbacks_stay_when_tools_are_bound(model: EngineKitChat, exact: None) -> None:
    """Of other integrations `bind_tools` returns the first model alone, or raises NameError."""
    nobody = EngineKitChat(engine="vllm", base_url=refused_url(), model="m", max_retries=0)
    both = nobody.with_fallbacks([model])
    reply = both.bind_tools([get_weather, add]).invoke("CALL")
    assert isinstance(reply, AIMessage)
    assert [call["args"] for call in reply.tool_calls] == [{"city": "Rome"}]
    person = both.with_structured_output(
        {"title": "Person", "type": "object",
         "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
         "required": ["name", "age"]}
    ).invoke([HumanMessage("PERSON")])  # fmt: skip
    assert person == {"name": "Ann", "age": 31}
