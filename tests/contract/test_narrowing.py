"""What a server lacks is found out once, and from then on refused or emulated before it is asked.

Recorded refusals of real servers, over sockets, through the client and both drivers. "Found out"
means here: by a request without any text of the caller, or by the first refusal.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest

from enginekit import registry
from enginekit.engine import Target
from enginekit.errors import (
    BadRequest,
    EngineKitError,
    EngineTimeout,
    MalformedReply,
    Unsupported,
)
from enginekit.facts.engine import NONE, Evidence, Feature, ModelCard, ServerFacts
from enginekit.kit.client import Client
from enginekit.kit.server_facts import forget_facts
from enginekit.operations import asked
from enginekit.types import (
    ChatRequest,
    EmbedRequest,
    ImagePart,
    Message,
    RerankRequest,
    TextPart,
    Tool,
)
from tests.contract.replayed import ALL, engine_at
from tests.contract.test_flags import OPERATIONS
from tests.engines.recordings import Recording, load, play, scene
from tests.support.server import Reply, Seen, Server, json_reply

SECRET = "the caller's own text"
WEATHER = Tool(name="get_weather", parameters={"type": "object"})
CHAT = ChatRequest(model="", messages=(Message(role="user", content=SECRET),), tools=(WEATHER,))
EMBED = EmbedRequest(model="", texts=(SECRET,))
RERANK = RerankRequest(model="", query=SECRET, documents=(SECRET,))
CALL = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
NOT_FOUND = json_reply({"detail": "Not Found"}, 404)


def reply(recording: Recording) -> Reply:
    """As it was recorded; how long the body is and how it is framed is this server's affair."""
    hops = ("content-length", "transfer-encoding", "connection", "keep-alive")
    headers = {name: value for name, value in recording.headers.items() if name not in hops}
    return Reply(status=recording.status, headers=headers, body=[recording.body])


def carrying(server: Server) -> list[Seen]:
    """Requests that have the caller's text in them."""
    return [seen for seen in server.requests if SECRET.encode() in seen.body]


def whole(content: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return {"id": "c", "choices": [{**choice, "finish_reason": "stop"}], "usage": usage}


def streamed(content: str) -> Reply:
    delta = {"id": "c", "choices": [{"index": 0, "delta": {"content": content}}]}
    end = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in (delta, end)]
    body = [*lines, b"data: [DONE]\n\n"]
    return Reply(status=200, headers={"content-type": "text/event-stream"}, body=body)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A method of the client, blocking or on an event loop."""
    if request.param == "sync":
        return lambda client, name, *args: getattr(client, name)(*args)
    return lambda client, name, *args: asyncio.run(getattr(client, f"a{name}")(*args))


@pytest.fixture
def vllm() -> Iterator[Server]:
    """A vLLM that generates, started without a tool parser; what routes say to GET is vLLM's."""
    refusal = scene("vllm", "scene_tools_without_flags")[0]

    def chats(seen: Seen) -> Reply:
        body = json.loads(seen.body)
        return reply(refusal) if "tools" in body else json_reply(whole(CALL))

    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/version", reply(load("vllm", "version")))
        server.on("/v1/models", reply(load("vllm", "models")))
        server.on("/v1/chat/completions", chats)
        server.on("/v1/chat/completions/", Reply(status=307, headers={"location": "/"}, body=[]))
        server.on("/v1/embeddings", reply(load("vllm", "embeddings")))
        yield server


def client(engine: str, server: Server, **options: Any) -> Client:
    return Client({"engine": engine, "base_url": server.url, "model": "tiny", **options})


# ------------------------------------------------------------------------------------ tools


@pytest.mark.parametrize("asks", [True, False])
def test_a_tool_parser_that_lacks_is_learnt_and_emulated_from_then_on(
    vllm: Server, run, asks, tmp_path, monkeypatch
):
    """Once per server and process, before any prompt is sent natively.

    Where nobody may ask beforehand the refusal itself tells, which costs one request.
    """
    if not asks:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "enginekit.toml").write_text("[engines.vllm.options]\nprobe_tools = false\n")
    first = client("vllm", vllm)
    made = run(first, "chat", CHAT)
    assert [call.name for call in made.tool_calls] == ["get_weather"]
    assert made.receipt.outcome("tools") == "emulated"
    assert any("--enable-auto-tool-choice" in note for note in made.receipt.notes)
    natively = [b'"tools"' in seen.body for seen in carrying(vllm)]
    assert natively == ([False] if asks else [True, False])
    trials = [seen for seen in vllm.requests if b'"temperature"' in seen.body]
    assert len(trials) == (1 if asks else 0)
    assert first.facts is not None
    fact = first.facts.capabilities["tools"]
    assert (fact.support, fact.evidence) == ("emulated", "probed" if asks else "observed")

    for again in (first, client("vllm", vllm)):
        before = len(carrying(vllm))
        made = run(again, "chat", CHAT)
        assert made.receipt.outcome("tools") == "emulated"
        (only,) = carrying(vllm)[before:]
        assert b'"tools"' not in only.body


@pytest.mark.parametrize(
    ("case", "yes"),
    [("scene_tools_without_flags", False), ("v_chat_template", True), ("err_temp_range", True)],
)
def test_a_tool_parser_is_asked_for_without_generating(case, yes):
    """With `probe_tools`: the recorded refusals tell, and neither generates a token."""
    from enginekit.engines.vllm import VLLM

    told = scene("vllm", case)[0] if case.startswith("scene") else load("vllm", case)
    engine = VLLM(Target(base_url="http://server"), options={"probe_tools": True})
    answers = {
        "GET /version": load("vllm", "version"),
        "GET /v1/models": load("vllm", "models"),
        "POST /v1/chat/completions": told,
    }
    facts = play(engine.probe(), answers)
    assert facts.capabilities["tools"].support == ("native" if yes else "emulated")
    assert facts.capabilities["tools"].evidence == "probed"


def test_a_trial_that_came_too_late_is_made_again():
    """A server that was busy once is not for ever one of which nobody knows whether it calls tools."""
    from enginekit.engines.vllm import VLLM

    engine = VLLM(Target(base_url="http://server"))
    engine.facts = play(engine.probe(), {
        "GET /version": load("vllm", "version"),
        "GET /v1/models": load("vllm", "models"),
    })  # fmt: skip
    model = engine.facts.models[0].id
    late = engine.settle("tools", model)
    next(late)
    with pytest.raises(EngineTimeout):
        late.throw(EngineTimeout("nothing within 10 s", phase="whole reply"))
    assert engine.facts.told("tools", model) is None
    told = {"POST /v1/chat/completions": load("vllm", "v_chat_template")}
    play(engine.settle("tools", model), told)
    assert engine.facts.told("tools", model).support == "native"


def test_llamacpp_without_jinja_has_its_tools_emulated(run):
    """500 `tools param requires --jinja flag`, recorded: then the calls are made by a schema."""
    refusal = next(r for r in scene("llamacpp", "scene_no_jinja") if r.status == 500)

    def chats(seen: Seen) -> Reply:
        return reply(refusal) if b'"tools"' in seen.body else streamed(CALL)

    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/props", reply(load("llamacpp", "l_props")))
        server.on("/v1/models", reply(load("llamacpp", "models")))
        server.on("/v1/chat/completions", chats)
        one = client("llamacpp", server)
        for count in (2, 1):
            before = len(carrying(server))
            made = run(one, "chat", CHAT)
            assert [call.name for call in made.tool_calls] == ["get_weather"]
            assert len(carrying(server)) - before == count


def old_llama_server(jinja: bool) -> Callable[[Seen], Reply]:
    """`oaicompat_completion_params_parse` of ggml-org/llama.cpp, examples/server/utils.hpp at 15ae7dd
    (February 2025): tools are refused in a stream first, and then without `--jinja`."""

    def chats(seen: Seen) -> Reply:
        body = json.loads(seen.body)
        refusal = ""
        if body.get("tools") and body.get("stream"):
            refusal = "Cannot use tools with stream"
        elif body.get("tools") and not jinja:
            refusal = "tools param requires --jinja flag"
        if refusal:
            return json_reply(
                {"error": {"code": 500, "message": refusal, "type": "server_error"}}, 500
            )
        if not body.get("tools"):
            return streamed(CALL)
        function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
        call = {"type": "function", "function": function, "id": ""}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return json_reply({"id": "c", "choices": [choice], "usage": USAGE})

    return chats


USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


@pytest.mark.parametrize("jinja", [True, False])
def test_a_llamacpp_that_cannot_stream_tools_is_asked_for_them_in_one_piece(run, jinja):
    """Until June 2025. Each refusal costs one request, once; without `--jinja` there are two."""
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/props", json_reply({"default_generation_settings": {"n_ctx": 512}}))
        server.on("/v1/models", json_reply({"data": [{"id": "tiny", "object": "model"}]}))
        server.on("/v1/chat/completions", old_llama_server(jinja))
        one = client("llamacpp", server)
        for count in (2 if jinja else 3, 1):
            before = len(carrying(server))
            made = run(one, "chat", CHAT)
            assert [call.name for call in made.tool_calls] == ["get_weather"]
            assert made.receipt.outcome("tools") == ("sent" if jinja else "emulated")
            assert len(carrying(server)) - before == count
        last = json.loads(carrying(server)[-1].body)
        assert bool(last.get("stream")) is not jinja  # without tools it streams as ever
        assert one.facts is not None
        assert one.facts.capabilities["stream_tools"].support == "emulated"


def test_a_tool_parser_that_nobody_can_tell_of_is_believed_once_tools_were_taken(vllm: Server, run):
    """A gateway that swallows the trial: it is asked once, the next call sends the tools at once."""

    def chats(seen: Seen) -> Reply:
        trial = SECRET.encode() not in seen.body
        return json_reply({"error": {"message": "no"}}, 400) if trial else json_reply(whole("hi"))

    vllm.on("/v1/chat/completions", chats)
    one = client("vllm", vllm)
    for count in (2, 1):
        before = len(vllm.paths())
        assert run(one, "chat", CHAT).receipt.outcome("tools") == "sent"
        assert vllm.paths()[before:].count("POST /v1/chat/completions") == count


def test_what_is_counted_is_what_would_be_sent(vllm: Server, run):
    """Of emulated tools the description in the prompt: found out before the first count, too."""
    vllm.on("/tokenize", lambda seen: json_reply({"count": 7, "tokens": [1] * 7}))
    assert run(client("vllm", vllm), "count_tokens", CHAT) == 7
    (asked,) = [json.loads(seen.body) for seen in vllm.requests if seen.path == "/tokenize"]
    assert "tools" not in asked
    assert "get_weather" in asked["messages"][0]["content"]


def test_connecting_tells_whether_there_is_a_tool_parser(vllm: Server, run):
    facts = run(client("vllm", vllm), "connect")
    assert facts.capabilities["tools"].support == "emulated"
    assert facts.capabilities["tools"].evidence == "probed"
    assert carrying(vllm) == []


def test_what_is_learnt_of_one_model_holds_for_no_other(run):
    """Ray Serve with a model that has a tool parser, one without, and one that embeds."""
    parser, bare, pools = "parser", "bare", "pools"
    no_parser = scene("vllm", "scene_tools_without_flags")[0]
    taken = load("rayserve", "err_temp_range")
    no_vectors = load("rayserve", "embeddings")

    def chats(seen: Seen) -> Reply:
        body = json.loads(seen.body)
        if "tools" in body and body["model"] == bare:
            return reply(no_parser)
        if body.get("temperature") == -1:
            return reply(taken)
        return json_reply(whole(CALL if body["model"] == bare else "hi"))

    def embeds(seen: Seen) -> Reply:
        body = json.loads(seen.body)
        if body["model"] != pools:
            return reply(no_vectors)
        if not body["input"]:  # as on the cassette rayserve-embeddings
            return json_reply({"error": {"message": "You must pass at least one prompt"}}, 400)
        return json_reply({"data": [{"index": 0, "embedding": [0.5]}]})

    with Server() as server:
        server.always(NOT_FOUND)
        listed = [{"id": name, "metadata": {}} for name in (parser, bare, pools)]
        server.on("/v1/models", json_reply({"data": listed}))
        server.on("/v1/completions", reply(load("rayserve", "completion")))
        server.on("/v1/chat/completions", chats)
        server.on("/v1/embeddings", embeds)
        one = client("rayserve", server)
        for _ in range(2):
            for model, outcome in ((bare, "emulated"), (parser, "sent")):
                made = run(one, "chat", replace(CHAT, model=model))
                assert made.receipt.outcome("tools") == outcome
        # One trial for each of the two models, and no tool was ever sent to the one without.
        chatted = [json.loads(seen.body) for seen in server.requests if "/chat/" in seen.path]
        trials = [body["model"] for body in chatted if body.get("temperature") == -1]
        assert sorted(trials) == [bare, parser]
        natively = [b["model"] for b in chatted if "tools" in b and b.get("temperature") != -1]
        assert natively == [parser, parser]

        for _ in range(2):
            with pytest.raises(Unsupported):
                run(one, "embed", replace(EMBED, model=bare))
            assert len(run(one, "embed", replace(EMBED, model=pools)).vectors) == 1
        embedded = [json.loads(seen.body) for seen in server.requests if "embed" in seen.path]
        assert [body["model"] for body in embedded if body["input"]] == [pools, pools]
        assert sorted(body["model"] for body in embedded if not body["input"]) == [bare, pools]


# ------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize(("name", "request_"), [("embed", EMBED), ("rerank", RERANK)])
def test_a_vllm_that_generates_is_sent_no_texts(vllm: Server, run, name, request_):
    one = client("vllm", vllm)
    for _ in range(2):
        with pytest.raises(Unsupported, match="pooling"):
            run(one, name, request_)
    assert carrying(vllm) == []
    # Nor is it asked a second time whether the route is there.
    assert len([seen for seen in vllm.requests if seen.path.endswith("/")]) == 2


def test_behind_a_gateway_that_tells_no_routes_the_refusal_itself_is_remembered(run):
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/version", reply(load("vllm", "version")))
        server.on("/v1/models", reply(load("vllm", "models")))
        one = client("vllm", server)
        for _ in range(2):
            with pytest.raises(Unsupported):
                run(one, "embed", EMBED)
        assert len(carrying(server)) == 1


@pytest.mark.parametrize(
    ("name", "request_", "path", "case"),
    [
        ("embed", EMBED, "/embedding", "embeddings"),
        ("rerank", RERANK, "/reranking", "l_rerank"),
    ],
)
def test_a_llamacpp_that_generates_is_sent_no_texts(run, name, request_, path, case):
    """501 comes before the body is read, so an empty one is enough to find out."""
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/props", reply(load("llamacpp", "l_props")))
        server.on("/v1/models", reply(load("llamacpp", "models")))
        server.on(path, reply(load("llamacpp", case)))
        one = client("llamacpp", server)
        for _ in range(2):
            with pytest.raises(Unsupported, match="does not support"):
                run(one, name, request_)
        assert carrying(server) == []
        assert [seen.body for seen in server.requests if seen.path == path] == [b"{}"]


def test_a_llamacpp_that_embeds_is_found_out_once(run):
    exchanges = scene("llamacpp", "scene_embeddings_mean")
    vectors = next(r for r in exchanges if r.status == 200 and r.path == "/v1/embeddings")
    empty = next(r for r in exchanges if r.status == 400 and b"must be provided" in r.body)
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/props", reply(load("llamacpp", "l_props")))
        server.on("/v1/models", reply(load("llamacpp", "models")))
        server.on("/embedding", reply(empty))
        server.on("/reranking", reply(load("llamacpp", "l_ranks_reranking_off")))
        server.on("/v1/embeddings", reply(vectors))
        one = client("llamacpp", server)
        texts = EmbedRequest(model="", texts=(SECRET, "b"))
        for _ in range(2):
            assert len(run(one, "embed", texts).vectors) == 2
        assert server.paths().count("POST /embedding") == 1
        assert one.facts is not None
        assert one.facts.capabilities["embeddings"].evidence == "probed"


def test_a_llamacpp_that_reranks_is_not_asked_for_vectors(run):
    """It would answer 200 with nothing but zeros."""
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/props", reply(load("llamacpp", "l_props")))
        server.on("/v1/models", reply(load("llamacpp", "models")))
        server.on("/embedding", reply(load("llamacpp", "l_ranks_embedding_empty")))
        server.on("/reranking", reply(load("llamacpp", "l_ranks_reranking_empty")))
        server.on("/v1/embeddings", reply(load("llamacpp", "l_ranks_embeddings")))
        server.on("/v1/rerank", reply(load("llamacpp", "l_ranks_rerank")))
        one = client("llamacpp", server)
        for _ in range(2):
            with pytest.raises(Unsupported, match="--reranking"):
                run(one, "embed", EMBED)
        assert carrying(server) == []
        assert (
            len(run(one, "rerank", RerankRequest(model="", query="a", documents=("b", "c"))).scores)
            == 2
        )


def test_vectors_of_zeros_are_never_an_answer():
    engine = engine_at("llamacpp")
    with pytest.raises(MalformedReply, match="zeros"):
        play(engine.embed(EMBED), {"POST /v1/embeddings": load("llamacpp", "l_ranks_embeddings")})


@pytest.mark.parametrize("engine", ["vllm", "rayserve"])
def test_a_model_that_reads_text_only_is_sent_one_image(engine, run):
    """400 `… is not a multimodal model`, recorded: the next image stays here, by URL as well."""
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/version", reply(load("vllm", "version")))
        server.on("/v1/models", reply(load(engine, "models")))
        server.on("/v1/completions", reply(load("rayserve", "completion")))
        server.on("/v1/chat/completions", reply(load(engine, "chat_image")))
        one = client(engine, server)
        parts = (ImagePart(data=b"\x89PNG\r\n\x1a\n"), ImagePart(url="https://host.invalid/a.png"))
        for part in parts:
            message = Message(role="user", content=(TextPart(text=SECRET), part))
            with pytest.raises(Unsupported) as caught:
                run(one, "chat", ChatRequest(model="", messages=(message,)))
            assert caught.value.feature in ("images", "image_urls")
            assert "multimodal" in str(caught.value)
        assert len(carrying(server)) == 1


@pytest.mark.parametrize("case", ["chat_json_schema_bad", "v_structured_regex_bad"])
def test_a_constraint_that_cannot_be_compiled_is_said_to_be_at_fault(vllm: Server, run, case):
    vllm.on("/v1/chat/completions", reply(load("vllm", case)))
    with pytest.raises(BadRequest) as caught:
        run(client("vllm", vllm), "chat", ChatRequest(model="", messages=CHAT.messages))
    assert "cannot be compiled" in str(caught.value)
    assert "--structured-outputs-config" in (caught.value.hint or "")


def test_a_server_without_sleep_mode_is_asked_once(vllm: Server, run):
    one = client("vllm", vllm)
    told = []
    for _ in range(2):
        with pytest.raises(Unsupported, match="sleep") as caught:
            run(one, "unload")
        told.append(f"{caught.value} {caught.value.hint}")
    assert all("--enable-sleep-mode" in text for text in told)
    assert told[1].count("cannot do this") == 1
    assert vllm.paths().count("POST /sleep?level=1") == 1


# ------------------------------------------------------------------------------------ every engine


@pytest.mark.parametrize("feature", OPERATIONS)
@pytest.mark.parametrize("name", ALL)
def test_an_operation_that_the_server_is_known_to_lack_yields_nothing(name, feature):
    """Not a single effect: the driver is not even asked to open a connection."""
    engine = engine_at(name)
    cards = (ModelCard(id="tiny", context_window=2048),)
    engine.facts = ServerFacts(models=cards, capabilities={feature: NONE})
    operation = asked(engine, feature, OPERATIONS[feature](engine))
    with pytest.raises(Unsupported) as caught:
        next(operation)
    assert caught.value.engine == name
    assert caught.value.rule


@pytest.mark.parametrize("name", ALL)
def test_every_capability_knows_on_what_it_stands(name):
    for feature, fact in registry.engine_class(name).profile.capabilities.items():
        assert feature in get_args(Feature)
        assert fact.evidence in get_args(Evidence)
        if fact.support in ("server", "none", "emulated"):
            assert fact.note, f"{feature} is {fact.support} and nobody says why"


# ------------------------------------------------------------------------------------ versions


def test_a_version_newer_than_any_that_was_tested_is_warned_of_once(run):
    """Documented facts, marked unverified; one warning, and the call itself goes on."""
    with Server() as server:
        server.always(NOT_FOUND)
        server.on("/version", json_reply({"version": "99.1.0"}))
        server.on("/v1/models", reply(load("vllm", "models")))
        server.on("/v1/chat/completions", json_reply(whole("hi")))
        plain = ChatRequest(model="", messages=CHAT.messages)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(2):
                one = client("vllm", server)
                assert run(one, "chat", plain).text == "hi"
        told = [str(w.message) for w in seen if "newer than" in str(w.message)]
        assert len(told) == 1
        assert "vLLM 99.1.0" in told[0]
        assert one.facts is not None
        assert one.facts.verified is False
        assert one.facts.version == "99.1.0"


def test_a_probe_that_fails_teaches_nothing(vllm: Server):
    """A refusal of a server that could not be probed is not kept for the next client."""
    vllm.on("/v1/models", json_reply({"error": {"message": "boom"}}, 500))
    vllm.on("/version", json_reply({"error": {"message": "boom"}}, 500))
    forget_facts()
    for _ in range(2):
        with pytest.raises(EngineKitError):
            client("vllm", vllm).unload()
    assert vllm.paths().count("POST /sleep?level=1") == 2
