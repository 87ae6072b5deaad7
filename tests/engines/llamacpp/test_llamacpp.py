"""The llama.cpp engine: bodies, probing and routes, on recordings of the real server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Answer, Target
from enginekit.engines.llamacpp import LlamaCpp
from enginekit.engines.llamacpp.facts import facts_of
from enginekit.engines.llamacpp.requests import anchored, choice_grammar
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineLoading,
    MalformedReply,
    Unauthorized,
    Unsupported,
)
from enginekit.facts.engine import ServerFacts
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    EmbedRequest,
    ImagePart,
    Message,
    RerankRequest,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.engines import recordings
from tests.engines.recordings import answer, decode, load, play

TARGET = Target(base_url="http://server")
WEATHER = Tool(
    name="get_weather",
    description="Weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)
USER = Message(role="user", content="Say hi.")


def props(**more: Any) -> dict[str, Any]:
    """The recorded `/props` with something changed."""
    return {**json.loads(load("llamacpp", "l_props").body), **more}


def listing() -> dict[str, Any]:
    return json.loads(load("llamacpp", "l_models_plain").body)


def engine(facts: ServerFacts | None = None, **options: Any) -> LlamaCpp:
    return LlamaCpp(TARGET, facts=facts or facts_of(props(), listing()), options=options)


def no_tools() -> LlamaCpp:
    """A server whose template knows neither tools nor thinking: SmolLM2's."""
    caps = {**props()["chat_template_caps"], "supports_tools": False}
    return engine(facts_of(props(chat_template_caps=caps), listing()))


def chat(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=messages or (USER,), **more)


def body(request: Any, server: LlamaCpp | None = None, **more: Any) -> dict[str, Any]:
    return dict((server or engine()).encode(request, **more).call.json)


# ------------------------------------------------------------------------------------ bodies


def test_the_plainest_chat() -> None:
    """Nothing is in the body that nobody asked for, but the stream and its usage."""
    encoded = engine().encode(chat())
    assert encoded.call.path == "/v1/chat/completions"
    assert encoded.call.framing == "sse"
    assert encoded.call.json == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say hi."}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "only then does the server stop" in encoded.receipt.notes[0]
    assert engine().encode(chat(), stream=True).receipt.notes == []


def test_sampling_goes_out_under_the_servers_names() -> None:
    """The server's own names, ids as pairs, empty stops left out."""
    sent = body(
        chat(
            sampling=Sampling(
                repetition_penalty=1.1,
                repetition_window=32,
                logit_bias={5: -1},
                stop=("a", ""),
                max_tokens=7,
                top_logprobs=2,
            )
        )
    )
    assert sent["repeat_penalty"] == 1.1
    assert sent["repeat_last_n"] == 32
    assert sent["logit_bias"] == [[5, -1.0]]
    assert sent["stop"] == ["a"]
    assert sent["max_tokens"] == 7
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)


def test_another_model_name_is_translated_to_the_one_there_is() -> None:
    """The server would ignore it; the receipt says what happened."""
    encoded = engine().encode(replace(chat(), model="llama3.1"))
    assert encoded.call.json["model"] == "tiny"
    assert encoded.receipt.entries[0].outcome == "translated"
    assert "ignores the name" in encoded.receipt.entries[0].note


@pytest.mark.parametrize("mode", ["required", "named"])
def test_a_forced_call_goes_out_as_a_schema_and_never_as_itself(mode: Any) -> None:
    """`required` may end in prose and can abort the server; tools and a schema together, too."""
    choice = ToolChoice(mode=mode, name="get_weather" if mode == "named" else None)
    encoded = engine().encode(chat(tools=(WEATHER,), tool_choice=choice))
    sent = encoded.call.json
    assert "tools" not in sent
    assert "tool_choice" not in sent
    schema = sent["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["name"] == {"const": "get_weather"}
    assert sent["messages"][0]["role"] == "system"
    assert "get_weather" in sent["messages"][0]["content"]
    assert encoded.receipt.outcome("tools") == "emulated"
    assert encoded.receipt.outcome("tool_choice") == "emulated"


def test_a_forced_call_is_read_from_a_recorded_constrained_reply() -> None:
    """The real server's output under such a schema becomes a call."""
    recording = load("llamacpp", "l_schema_emulated_tool")
    text = json.loads(recording.body)["choices"][0]["message"]["content"]
    encoded = engine().encode(
        chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="required")), stream=True
    )
    delta = {"id": "x", "choices": [{"index": 0, "delta": {"content": text}}]}
    last = {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    data = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in (delta, last))
    decoded = decode(encoded.decoder(), [data])
    assert decoded.end is not None
    call = decoded.end.tool_calls[0]
    assert (call.name, call.parsed()) == ("get_weather", {"city": "Rome", "days": 2})


def test_tools_go_out_natively_where_the_template_knows_them() -> None:
    """With `auto` and `none` as they are."""
    for choice in (ToolChoice(mode="auto"), ToolChoice(mode="none")):
        sent = body(chat(tools=(WEATHER,), tool_choice=choice))
        assert sent["tools"][0]["function"]["name"] == "get_weather"
        assert sent["tool_choice"] == choice.mode


def test_tools_are_emulated_where_the_template_does_not_know_them() -> None:
    """The server would drop them without a word. History is told as text, an answer stays possible."""
    history = (
        USER,
        Message(role="assistant", tool_calls=(ToolCall(id="1", name="f", arguments="{}"),)),
        Message(role="tool", content="42", tool_call_id="1", tool_name="f"),
    )
    encoded = no_tools().encode(chat(*history, tools=(WEATHER,)))
    sent = encoded.call.json
    assert "tools" not in sent
    assert [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    forms = sent["response_format"]["json_schema"]["schema"]["anyOf"]
    assert [next(iter(form["properties"])) for form in forms] == ["name", "answer"]


def test_tools_and_a_schema_are_refused_together() -> None:
    """Together they can abort the server process."""
    with pytest.raises(Unsupported, match="cannot be had in one request"):
        engine().encode(chat(tools=(WEATHER,), constraint=Constraint(kind="json")))
    sent = body(
        chat(
            tools=(WEATHER,),
            tool_choice=ToolChoice(mode="none"),
            constraint=Constraint(kind="json"),
        )
    )
    assert "tools" not in sent


def test_logprobs_with_tools_are_asked_for_without_a_stream() -> None:
    """The server refuses them in a stream (recorded): the receipt says that it comes in one piece."""
    request = chat(tools=(WEATHER,), sampling=Sampling(logprobs=True))
    encoded = engine().encode(request, stream=True)
    assert (encoded.call.json["stream"], encoded.call.framing) == (False, "json")
    assert "without streaming" in encoded.receipt.notes[0]


@pytest.mark.parametrize(
    ("constraint", "key", "value"),
    [
        (Constraint(kind="json"), "response_format", {"type": "json_object"}),
        (
            Constraint(kind="json_schema", value={"type": "object"}, name="n", strict=True),
            "response_format",
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
            },
        ),
        (Constraint(kind="grammar", value='root ::= "a"'), "grammar", 'root ::= "a"'),
        (Constraint(kind="choice", value=("a", 'b"\n')), "grammar", 'root ::= "a" | "b\\"\\n"'),
    ],
)
def test_constraints(constraint: Constraint, key: str, value: Any) -> None:
    """Each kind in the server's own form."""
    assert body(chat(constraint=constraint))[key] == value


def test_regex_is_the_pattern_of_a_string() -> None:
    """With the anchors that the server demands; the quotes come off the answer."""
    sent = body(chat(constraint=Constraint(kind="regex", value="a|b")))
    schema = sent["response_format"]["json_schema"]["schema"]
    assert schema == {"type": "string", "pattern": "^(a|b)$"}
    assert anchored("^x$") == "^x$"
    assert choice_grammar(["\\"]) == 'root ::= "\\\\"'


def test_reasoning_switches() -> None:
    """By a variable of the template; levels only where the template has them."""
    on = engine(facts_of(props(chat_template="{% if enable_thinking %}"), listing()))
    assert body(chat(reasoning=False), on)["chat_template_kwargs"] == {"enable_thinking": False}
    assert body(chat(reasoning="high"), on)["chat_template_kwargs"] == {"enable_thinking": True}
    off = engine(facts_of(props(chat_template="no switch"), listing()))
    assert "chat_template_kwargs" not in body(chat(reasoning=False), off)
    assert off.encode(chat(reasoning=True)).receipt.omitted == ("reasoning",)


def test_prefill_of_a_recorded_reply_is_taken_back() -> None:
    """The server repeats the last assistant turn; two of them are refused before it is asked."""
    turns = (USER, Message(role="assistant", content="Hi th"))
    recording = load("llamacpp", "l_prefill")
    encoded = engine().encode(chat(*turns, tools=(WEATHER,), sampling=Sampling(logprobs=True)))
    decoded = decode(encoded.decoder(), [recording.body])
    assert decoded.text == "ereereereplo\ufffd de MLC loop"
    assert decoded.end is not None
    assert "prefilled" in decoded.end.repairs[0]
    with pytest.raises(BadRequest, match="two assistant turns"):
        engine().encode(chat(*turns, turns[-1]))


def test_images_are_refused_by_a_text_model() -> None:
    """The server would answer 500; nothing is sent."""
    see = Message(role="user", content=(TextPart(text="?"), ImagePart(data=b"\x89PNG")))
    with pytest.raises(Unsupported, match="does not take images"):
        engine().encode(chat(see))
    eyes = engine(facts_of(props(modalities={"vision": True}), listing()))
    part = body(chat(see), eyes)["messages"][0]["content"][1]
    assert part == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}


def test_infill() -> None:
    """A suffix makes it fill-in-the-middle, on its own route and in its own format."""
    request = CompletionRequest(
        model="tiny", prompt="def f(", suffix="return x", sampling=Sampling(max_tokens=4)
    )
    encoded = engine().encode(request)
    assert encoded.call.path == "/infill"
    assert encoded.call.json["input_prefix"] == "def f("
    assert encoded.call.json["input_suffix"] == "return x"
    assert "stream_options" not in encoded.call.json
    decoded = decode(encoded.decoder(), [load("llamacpp", "l_completion_stream").body])
    assert decoded.end is not None
    assert decoded.end.finish_reason == "length"
    assert decoded.end.usage is not None
    with pytest.raises(Unsupported):
        engine().encode(replace(request, sampling=Sampling(n=2)))


def test_completion_echo_and_logprobs() -> None:
    """The server ignores echo: the prompt is put in front here. One number asks for logprobs."""
    request = CompletionRequest(
        model="tiny",
        prompt="San Francisco is a",
        echo=True,
        sampling=Sampling(logprobs=True),
    )
    encoded = engine().encode(request)
    assert encoded.call.json["logprobs"] == 1
    assert "echo" not in encoded.call.json
    decoded = decode(encoded.decoder(), [load("llamacpp", "completion_stream").body])
    assert decoded.text == "San Francisco is a48avurl\ufffdber 96 when"


def test_more_alternatives_than_slots_are_refused() -> None:
    """Two slots were recorded; the note says what the usage counts."""
    with pytest.raises(Unsupported, match="slots"):
        engine().encode(chat(sampling=Sampling(n=3)))
    notes = engine().encode(chat(sampling=Sampling(n=2)), stream=True).receipt.notes
    assert notes == ["the server counts the tokens of the first choice only"]


def test_window_keep_alive_and_adapters() -> None:
    """What is set at launch is refused with the flag, or found to be so already."""
    assert engine().encode(chat(context_window=512)).receipt.outcome("context_window")
    with pytest.raises(Unsupported) as caught:
        engine().encode(chat(context_window=9999))
    assert caught.value.hint == "start the server with -c 9999"
    assert engine().encode(chat(keep_alive=5.0)).receipt.omitted == ("keep_alive",)
    adapters = facts_of(props(), listing(), [{"id": 3, "path": "/m/pirate.gguf", "scale": 1}])
    assert body(chat(lora="pirate"), engine(adapters))["lora"] == [{"id": 3, "scale": 1.0}]
    with pytest.raises(Unsupported, match=r"pirate\.gguf"):
        engine(adapters).encode(chat(lora="other"))


def test_a_substituted_template_is_in_every_receipt() -> None:
    """The launcher says so by an option."""
    server = engine(substituted_template="chatml")
    assert "chatml" in server.encode(chat(), stream=True).receipt.notes[0]


def test_system_text_without_a_system_role_in_the_template() -> None:
    """It leads the first user turn, and the receipt says so."""
    caps = {**props()["chat_template_caps"], "supports_system_role": False}
    server = engine(facts_of(props(chat_template_caps=caps), listing()))
    encoded = server.encode(chat(Message(role="system", content="Be brief."), USER))
    assert encoded.call.json["messages"] == [{"role": "user", "content": "Be brief.\n\nSay hi."}]
    assert encoded.receipt.outcome("messages") == "translated"


# ------------------------------------------------------------------------------------ probing

PROBE = {
    "GET /props": load("llamacpp", "l_props"),
    "GET /v1/models": load("llamacpp", "l_models_plain"),
    "GET /lora-adapters": load("llamacpp", "l_lora"),
}


def test_probe_reads_a_recorded_server() -> None:
    """Version, window per slot, defaults, modalities and template, each with its source."""
    facts = play(LlamaCpp(TARGET).probe(), PROBE)
    assert facts.version == "b0-unknown"
    assert facts.verified
    assert facts.context_window == 1024
    assert facts.context_source == "default_generation_settings.n_ctx of GET /props"
    assert facts.trained_context == 4096
    assert facts.slots == 2
    assert facts.modalities == ()
    assert facts.template_tools is True
    assert [card.id for card in facts.models] == ["tiny"]
    assert facts.capabilities["images"].support == "none"
    assert facts.extra["defaults"]["temperature"] == 0.8
    assert len(facts.extra["chat_template_sha256"]) == 64


def test_newer_than_tested_is_marked() -> None:
    """Documented facts still hold, but nobody saw this build."""
    facts = facts_of(props(build_info="b99999-abcdef"), listing())
    assert not facts.verified
    assert "newer" in facts.notes[0]
    assert facts_of(props(build_info="b11434-abcdef"), listing()).verified


def test_probe_while_loading_and_without_a_key() -> None:
    """503 is loading, 401 is unauthorised: two different things to do."""
    loading = recordings.scene("llamacpp", "scene_loading")[0]
    with pytest.raises(EngineLoading):
        play(LlamaCpp(TARGET).probe(), {"GET /props": loading})
    refused = recordings.scene("llamacpp", "scene_api_key")[0]
    with pytest.raises(Unauthorized):
        play(LlamaCpp(TARGET).probe(), {"GET /props": refused})


HEALTHY = load("llamacpp", "l_health")


def test_ready() -> None:
    """`/health` decides; a server with one model has it loaded when it answers."""
    assert play(engine().ready("anything"), {"GET /health": HEALTHY}) is True
    loading = recordings.scene("llamacpp", "scene_loading")[0]
    assert play(engine().ready("anything"), {"GET /health": loading}) is False


# ------------------------------------------------------------------------------------ routes


def test_tokens_of_recorded_answers() -> None:
    """Token ids, text and the count of a conversation."""
    tokens = answer({"tokens": [279, 300]})
    assert play(engine().tokenize("hello"), {"POST /tokenize": tokens}) == (279, 300)
    text = play(engine().detokenize([1, 2]), {"POST /detokenize": load("llamacpp", "l_detokenize")})
    assert text == "<|end_of_text|><|start_header_id|>ll"
    count = {"POST /v1/chat/completions/input_tokens": load("llamacpp", "l_count")}
    assert play(engine().count_tokens(chat()), count) == 52


def test_count_on_an_older_server() -> None:
    """Without the counting route: the rendered template and its tokens."""
    answers = {
        "POST /v1/chat/completions/input_tokens": load("llamacpp", "err_route"),
        "POST /apply-template": load("llamacpp", "l_template"),
        "POST /tokenize": answer({"tokens": [1, 2, 3]}),
    }
    assert play(engine().count_tokens(chat()), answers) == 3


def test_metrics_and_slots() -> None:
    """The recorded metrics in the common shape; without them, the slots that are busy."""
    load_now = play(engine().load_state(), {"GET /metrics": load("llamacpp", "metrics")})
    assert (load_now.running, load_now.waiting, load_now.kv_cache_usage) == (0, 0, None)
    assert load_now.prompt_tokens_total == 2463 + 5128
    off = answer({"error": {"message": "This server does not support metrics endpoint."}}, 501)
    slots = {"GET /metrics": off, "GET /slots": load("llamacpp", "l_slots")}
    assert play(engine().load_state(), slots).running == 0
    with pytest.raises(Unsupported) as caught:
        play(engine().load_state(), {"GET /metrics": off, "GET /slots": off})
    assert caught.value.hint == "start the server with --metrics"


def test_embeddings_of_a_recorded_server() -> None:
    """Vectors in the order of the texts; too long is ContextOverflow with both numbers."""
    scene = recordings.scene("llamacpp", "scene_embeddings_mean")
    good = next(item for item in scene if item.request.get("input") == ["a", "b c"])
    request = EmbedRequest(model="tiny", texts=("a", "b c"))
    made = play(engine().embed(request), {"POST /v1/embeddings": good})
    assert len(made.vectors) == 2
    assert len(made.vectors[0]) == len(made.vectors[1]) > 100
    assert made.usage.prompt_tokens == 3
    long = next(item for item in scene if b"too large" in item.body)
    with pytest.raises(ContextOverflow) as caught:
        play(engine().embed(request), {"POST /v1/embeddings": long})
    assert (caught.value.limit, caught.value.requested) == (512, 601)
    with pytest.raises(Unsupported) as refused:
        play(engine().embed(request), {"POST /v1/embeddings": load("llamacpp", "embeddings")})
    assert "--embeddings" in (refused.value.hint or "")


def test_base64_embeddings_are_read() -> None:
    """Some servers answer so although it was not asked for."""
    data = {"data": [{"index": 0, "embedding": "AACAPwAAAEA="}]}
    request = EmbedRequest(model="tiny", texts=("a",))
    made = play(engine().embed(request), {"POST /v1/embeddings": answer(data)})
    assert list(made.vectors[0]) == [1.0, 2.0]


def test_embeddings_that_are_not_what_was_asked_for() -> None:
    """One vector for two texts, a vector a token, no JSON: never taken for an answer."""
    request = EmbedRequest(model="tiny", texts=("a", "b"))
    for wrong in (
        answer({"data": [{"index": 0, "embedding": [1.0]}]}),
        answer({"data": [{"embedding": [[1.0]]}, {"embedding": [[1.0]]}]}),
        answer({}),
        Answer(status=200, headers={}, body=b"<html>"),
    ):
        with pytest.raises(MalformedReply):
            play(engine().embed(request), {"POST /v1/embeddings": wrong})


def test_rerank() -> None:
    """Best first, at most `top_n`, in both forms that the server answers in."""
    rows = [{"index": 0, "relevance_score": -3.0}, {"index": 1, "relevance_score": 2.0}]
    request = RerankRequest(model="tiny", query="q", documents=("a", "b"))
    made = play(engine().rerank(request), {"POST /v1/rerank": answer({"results": rows})})
    assert [score.index for score in made.scores] == [1, 0]
    tei = answer([{"index": 0, "score": 0.5}, {"index": 1, "score": 0.1}])
    best = play(engine().rerank(replace(request, top_n=1)), {"POST /v1/rerank": tei})
    assert [(score.index, score.score) for score in best.scores] == [(0, 0.5)]
    with pytest.raises(Unsupported):
        play(engine().rerank(request), {"POST /v1/rerank": load("llamacpp", "l_rerank_v1")})


def test_load_and_unload_need_a_router() -> None:
    """A server with one model refuses before anything is sent."""
    with pytest.raises(Unsupported, match="as long as it runs"):
        play(engine().unload("tiny"), {})
