"""Ollama over real sockets, on both drivers, against a loopback server that replays recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from enginekit.engine import Budgets, Target
from enginekit.engines.ollama import Ollama
from enginekit.errors import (
    BadOutput,
    ContextOverflow,
    EngineDied,
    EngineKitError,
    EngineTimeout,
    ModelNotFound,
    Overloaded,
    StreamTruncated,
    Unreachable,
    Unsupported,
)
from enginekit.operations import Folder, open_reply, wait_ready
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    EmbedRequest,
    Message,
    Reply,
    Sampling,
    Tool,
    ToolChoice,
)
from tests.drivers.toy import Driver, drivers
from tests.engines.ollama.replays import decoded
from tests.engines.recordings import ROOT, load
from tests.support.server import Reply as Scripted
from tests.support.server import Seen, Server, json_reply, replay

FILES = ROOT / "ollama"
WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {}}})
ADD = Tool(name="add", parameters={"type": "object", "properties": {"a": {}, "b": {}}})


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    yield from drivers(request.param)


def recorded(name: str, **more: Any) -> Scripted:
    return replay(FILES / f"{name}.json", **more)


def fault(name: str, number: int = 0, **more: Any) -> Scripted:
    """An exchange of a recording of `faults/`."""
    value = json.loads((FILES / "faults" / f"{name}.json").read_text("utf-8"))
    answered = [one for one in value["exchanges"] if one.get("response")]
    return replay(answered[number], **more)


def wire(name: str) -> Scripted:
    """The very bytes a real server sent, status line, chunk sizes and all."""
    value = json.loads((FILES / "faults" / f"{name}.json").read_text("utf-8"))
    reads = value["exchanges"][0]["raw_reads"]
    return Scripted(framing="raw", body=[text for _, text in reads])


SHOWS = {"llama3.1:latest": "n_show", "native:latest": "native/n_show"}


@pytest.fixture
def server(server: Server) -> Server:
    """A server with the models of the recordings, `llama3.1` loaded."""

    def show(seen: Seen) -> Scripted:
        return recorded(SHOWS.get(seen.json["model"], "n_show_missing"))

    server.on("/api/version", recorded("n_version"))
    server.on("/api/tags", recorded("n_tags"))
    server.on("/api/ps", recorded("n_ps"))
    server.on("/api/show", show)
    return server


def chat(model: str = "llama3.1", **more: Any) -> ChatRequest:
    more.setdefault("messages", (Message(role="user", content="Say hi."),))
    return ChatRequest(model=model, **more)


def ask(
    driver: Driver,
    engine: Ollama,
    request: ChatRequest | CompletionRequest,
    *,
    stream: bool = True,
    retries: int = 0,
    **budgets: float,
) -> Reply:
    # As long for a load as for the first token: no load is asked for apart (test_warm.py does).
    budget = Budgets(**({"load": 10.0, "first_token": 10.0, "between_tokens": 10.0} | budgets))
    opened = driver.run(
        open_reply(engine, request, stream=stream, budgets=budget, max_retries=retries)
    )
    folder = Folder()
    for chunk in driver.read(opened):
        folder.add(chunk)
    return folder.reply(opened.receipt)


def probed(driver: Driver, server: Server) -> Ollama:
    engine = Ollama(Target(base_url=server.url))
    engine.facts = driver.run(engine.probe())
    return engine


# ------------------------------------------------------------------------------------ replies


def test_probe_then_chat_whole_and_streamed(driver, server):
    engine = probed(driver, server)
    assert engine.version == "0.33.0-rc2"
    server.on("/api/chat", lambda seen: recorded(
        "n_chat_stream" if seen.json["stream"] else "n_chat"
    ))  # fmt: skip
    for stream in (False, True):
        reply = ask(driver, engine, chat(sampling=Sampling(max_tokens=16)), stream=stream)
        assert reply.text == "Hello there! A café is near."
        assert reply.finish_reason == "stop"
        assert reply.usage is not None
        assert reply.usage[:3] == (54, 11, 65)
        sent = server.requests[-1].json
        assert sent["stream"] is stream
        assert sent["options"] == {"num_predict": 16}
        assert reply.receipt.outcome("sampling.max_tokens") == "translated"
        assert reply.receipt.engine_version == "0.33.0-rc2"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wire_native_stream", " one two three four"),
        ("wire_native", " one two three four"),
        ("wire_close", " one two"),
    ],
)
def test_the_bytes_of_a_real_server(driver, server, name, text):
    server.on("/api/chat", wire(name))
    stream = name != "wire_native"
    reply = ask(driver, Ollama(Target(base_url=server.url)), chat(), stream=stream)
    assert reply.text == text
    assert reply.finish_reason == "length"


def test_a_long_whole_answer_comes_chunked(driver, server):
    """Above 2 KiB there is no Content-Length even without streaming."""
    server.on("/api/chat", wire("wire_native_long"))
    reply = ask(driver, Ollama(Target(base_url=server.url)), chat(), stream=False)
    assert reply.text.startswith(" one two three")
    assert len(reply.text) > 2048


def test_the_same_program_gets_the_same_calls_on_both_template_paths(driver, server):
    engine = probed(driver, server)
    server.on("/api/chat", lambda seen: recorded(
        "native/n_tools_stream" if seen.json["model"] == "native" else "n_tools_stream"
    ))  # fmt: skip
    for model in ("llama3.1", "native"):
        reply = ask(driver, engine, chat(model, tools=(WEATHER, ADD)))
        assert [(call.name, call.parsed()) for call in reply.tool_calls] == [
            ("get_weather", {"city": "Oslo"}),
            ("add", {"a": 2, "b": 3}),
        ]
        assert reply.finish_reason == "tool_calls"


def test_a_forced_call_by_schema(driver, server):
    """The recording is of a constrained answer; the request had `format` and no `tools`."""

    def answer(seen: Seen) -> Scripted:
        assert "tools" not in seen.json
        assert seen.json["format"]["allOf"][0]["properties"]["name"] == {"const": "add"}
        text = '{"name": "add", "arguments": {"a": 2, "b": 3}}'
        return json_reply(
            {
                "model": "m",
                "message": {"role": "assistant", "content": text},
                "done": True,
                "done_reason": "stop",
                "eval_count": 9,
            }
        )

    server.on("/api/chat", answer)
    choice = ToolChoice(mode="named", name="add")
    request = chat(tools=(WEATHER, ADD), tool_choice=choice)
    reply = ask(driver, probed(driver, server), request, stream=False)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [
        ("add", '{"a": 2, "b": 3}')
    ]
    assert reply.text == ""
    assert any("lifted" in repair for repair in reply.receipt.repairs)


def test_a_schema(driver, server):
    server.on("/api/chat", recorded("random/n_format_stream"))
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    wish = Constraint(kind="json_schema", value=schema)
    reply = ask(driver, probed(driver, server), chat(constraint=wish))
    assert json.loads(reply.text) == {"ok": False, "level": "low"}
    assert server.requests[-1].json["format"] == schema


def test_a_completion_and_thinking(driver, server):
    engine = Ollama(Target(base_url=server.url))
    server.on("/api/generate", recorded("n_generate_stream"))
    reply = ask(driver, engine, CompletionRequest(model="llama3.1", prompt="San Francisco is a"))
    assert reply.text == "Hello there! A café"
    server.on("/api/chat", recorded("thinker/n_think_stream"))
    reply = ask(driver, engine, chat("thinker", reasoning=True))
    assert reply.reasoning == "Greet them back."
    assert reply.text == "Hello there! A café is near."


def test_embeddings(driver, server):
    server.on("/api/embed", recorded("embed/n_embed"))
    engine = Ollama(Target(base_url=server.url))
    made = driver.run(engine.embed(EmbedRequest(model="embed", texts=("a", "b c"))))
    assert [len(vector) for vector in made.vectors] == [128, 128]


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n_truncate_false", ContextOverflow),
        ("n_overflow_both_false_stream", ContextOverflow),
        ("native/n_overflow_both_false", ContextOverflow),
        ("n_images", Unsupported),
        ("native/n_tools_forced", EngineDied),
        ("random-native/n_tools_stream", BadOutput),
        ("random-native/n_logprobs_stream", BadOutput),
        ("random/n_chat", StreamTruncated),
        ("random/n_chat_stream", StreamTruncated),
        ("random/n_tools_stream", StreamTruncated),
        ("n_same_token_stream", StreamTruncated),
    ],
)
def test_a_recorded_failure_is_the_same_error_on_both_drivers(driver, server, name, expected):
    server.on("/api/chat", recorded(name))
    stream = "ndjson" in load("ollama", name).headers.get("content-type", "")
    with pytest.raises(expected) as caught:
        ask(driver, Ollama(Target(base_url=server.url)), chat(), stream=stream)
    if expected is ContextOverflow:
        assert caught.value.limit == 512
        assert caught.value.requested > 45_000


def test_an_unknown_model_is_told_with_its_nearest_names(driver, server):
    server.on("/api/chat", wire("wire_error"))
    with pytest.raises(ModelNotFound) as caught:
        ask(driver, Ollama(Target(base_url=server.url)), chat("lama3.1"))
    assert caught.value.near


def test_a_busy_server_is_asked_again_and_only_as_often_as_said(driver, server):
    server.on("/api/chat", json_reply(
        {"error": "server busy, please try again.  maximum pending requests exceeded"},
        503, headers={"retry-after": "0"},
    ), recorded("n_chat_stream"))  # fmt: skip
    engine = Ollama(Target(base_url=server.url))
    assert ask(driver, engine, chat(), retries=1).text == "Hello there! A café is near."
    assert len(server.requests) == 2
    server.on("/api/chat", json_reply({"error": "server busy"}, 503, headers={"retry-after": "0"}))
    with pytest.raises(Overloaded):
        ask(driver, engine, chat(), retries=1)
    assert len(server.requests) == 4


def test_a_runner_that_dies_mid_stream(driver, server):
    server.on("/api/chat", fault("kill_native_stream"))
    with pytest.raises(EngineDied) as caught:
        ask(driver, Ollama(Target(base_url=server.url)), chat(), retries=2)
    assert caught.value.partial.startswith(" one two")
    assert len(server.requests) == 1, "nothing is retried after the first token"


def test_a_runner_that_goes_silent_costs_the_wait_between_tokens(driver, server):
    server.on("/api/chat", fault("term_native_stream", fault="silence"))
    with pytest.raises(EngineTimeout) as caught:
        ask(driver, Ollama(Target(base_url=server.url)), chat(), between_tokens=0.2)
    assert caught.value.phase == "between tokens"
    assert caught.value.partial.startswith(" one two")
    assert server.wait_hung_up()


@pytest.mark.parametrize("broken", ["clean_eof", "reset"])
def test_a_stream_cut_on_the_wire_is_never_a_short_answer(driver, server, broken):
    """Twenty offsets of a recorded stream, by an orderly and a torn connection."""
    recording = load("ollama", "n_tools_stream")
    size = len(recording.body)
    whole = decoded(recording)
    engine = Ollama(Target(base_url=server.url))
    request = chat(tools=(WEATHER, ADD))
    for cut in [*range(0, size - 1, size // 20), size - 2]:
        server.on("/api/chat", recorded("n_tools_stream", cut=cut, fault=broken))
        with pytest.raises((StreamTruncated, Unreachable)) as caught:
            ask(driver, engine, request)
        assert whole.text.startswith(getattr(caught.value, "partial", ""))


def test_a_stream_that_ends_badly_after_its_last_line_is_whole(driver, server):
    server.on("/api/chat", recorded("n_tools_stream", fault="clean_eof"))
    reply = ask(driver, Ollama(Target(base_url=server.url)), chat(tools=(WEATHER, ADD)))
    assert len(reply.tool_calls) == 2
    assert reply.finish_reason == "tool_calls"


def test_hanging_up_early_reaches_the_server(driver, server):
    """That is what makes Ollama stop generating, within 0.1 s on a real one."""
    server.on("/api/chat", recorded("n_chat_stream", cut=300, fault="silence"))
    engine = Ollama(Target(base_url=server.url))
    opened = driver.run(open_reply(engine, chat(), stream=True, budgets=Budgets()))
    assert driver.next(opened).text == "Hello"
    driver.hang_up(opened)
    assert server.wait_hung_up()


def test_refused_before_anything_is_sent(driver, server):
    with pytest.raises(Unsupported):
        ask(driver, Ollama(Target(base_url=server.url)), chat(lora="x"))
    assert server.requests == []


# ------------------------------------------------------------------------------------ readiness


def test_waiting_until_ready_loads_the_model(driver, server):
    server.on("/api/ps", json_reply({"models": []}))
    server.on("/api/generate", recorded("n_load_generate"))
    engine = Ollama(Target(base_url=server.url))
    driver.run(wait_ready(engine, "llama3.1", budgets=Budgets(load=5)))
    assert server.paths() == ["GET /api/ps", "POST /api/generate"]


def test_a_model_that_cannot_be_loaded_is_not_waited_for(driver, server):
    server.on("/api/ps", json_reply({"models": []}))
    server.on("/api/generate", recorded("broken/n_generate"))
    with pytest.raises(EngineKitError, match=r"output_norm\.weight"):
        driver.run(
            wait_ready(Ollama(Target(base_url=server.url)), "broken", budgets=Budgets(load=5))
        )
    assert len(server.requests) == 2
