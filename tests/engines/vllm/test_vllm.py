"""The vLLM engine: bodies, probing and routes, on recordings of the real server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Answer, Target
from enginekit.engines.vllm import VLLM
from enginekit.engines.vllm.facts import facts_of, judge_version, tool_capabilities
from enginekit.errors import BadRequest, ModelNotFound, Unauthorized, Unreachable, Unsupported
from enginekit.facts.engine import ModelCard, ServerFacts
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    EmbedRequest,
    Message,
    RerankRequest,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.engines import recordings
from tests.engines.recordings import answer, decode, load, play

TARGET = Target(base_url="http://server")
USER = Message(role="user", content="Say hi.")
WEATHER = Tool(name="get_weather", parameters={"type": "object"}, strict=True)
PROBE = {
    "GET /version": load("vllm", "version"),
    "GET /v1/models": load("vllm", "models"),
}
FACTS: ServerFacts = play(VLLM(TARGET).probe(), PROBE)


def engine(facts: ServerFacts = FACTS, **options: Any) -> VLLM:
    return VLLM(TARGET, facts=facts, options=options)


def chat(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=messages or (USER,), **more)


def body(request: Any, **more: Any) -> dict[str, Any]:
    return dict(engine().encode(request, **more).call.json)


# ------------------------------------------------------------------------------------ bodies


def test_the_plainest_chat() -> None:
    """A whole reply is asked for whole: this server notices when a caller leaves."""
    assert body(chat()) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say hi."}],
        "stream": False,
    }
    assert body(chat(), stream=True)["stream_options"] == {"include_usage": True}


def test_tools_in_every_mode() -> None:
    """All four are the server's own, `strict` included."""
    for mode in ("auto", "none", "required"):
        sent = body(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode=mode)))
        assert sent["tool_choice"] == mode
        assert sent["tools"][0]["function"]["strict"] is True
    named = body(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="named", name="get_weather")))
    assert named["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    with pytest.raises(BadRequest, match="names 'other'"):
        body(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="named", name="other")))
    with pytest.raises(BadRequest, match="has no tools"):
        body(chat(tool_choice=ToolChoice(mode="required")))


def test_a_forced_call_is_made_strict_and_the_receipt_says_so() -> None:
    """Without `strict` this server forces the form of a call around any JSON, as seen live."""
    loose = Tool(name="f", parameters={"type": "object"})
    free = replace(loose, name="g", strict=False)
    forced = engine().encode(chat(tools=(loose, free), tool_choice=ToolChoice(mode="required")))
    sent = [item["function"]["strict"] for item in forced.call.json["tools"]]
    assert sent == [True, False]
    assert forced.receipt.outcome("tools") == "translated"
    auto = engine().encode(chat(tools=(loose,)))
    assert "strict" not in auto.call.json["tools"][0]["function"]
    assert auto.receipt.outcome("tools") == "sent"


def test_one_call_only_is_sent_and_enforced() -> None:
    """A server that makes two all the same is kept to the first."""
    encoded = engine().encode(chat(tools=(WEATHER,), parallel_tool_calls=False), stream=True)
    assert encoded.call.json["parallel_tool_calls"] is False
    decoded = decode(encoded.decoder(), [load("vllm", "s_calls_parallel_stream").body])
    assert decoded.end is not None
    assert [call.name for call in decoded.end.tool_calls] == ["get_weather"]
    assert "1 further tool call dropped" in decoded.end.repairs[0]


def test_without_a_tool_parser_tools_are_emulated() -> None:
    """Once the probe knows: by a schema, also for a forced call."""
    server = engine(replace(FACTS, capabilities=tool_capabilities(False)))
    for choice in (ToolChoice(mode="auto"), ToolChoice(mode="required")):
        encoded = server.encode(chat(tools=(WEATHER,), tool_choice=choice))
        assert "tools" not in encoded.call.json
        assert encoded.call.json["response_format"]["type"] == "json_schema"
        assert encoded.receipt.outcome("tools") == "emulated"


def test_the_refusal_names_the_flags() -> None:
    """Before the probe knows, the server's 400 becomes Unsupported with the flags."""
    refused = recordings.scene("vllm", "scene_tools_without_flags")[0]
    error = engine().failure(refused.status, refused.headers, refused.body)
    assert isinstance(error, Unsupported)
    assert error.hint is not None
    assert "--tool-call-parser" in error.hint


def test_probe_may_try_a_tool() -> None:
    """One call of one token settles it, either way, if the option asks for it."""
    refused = recordings.scene("vllm", "scene_tools_without_flags")[0]
    for reply, support in ((refused, "emulated"), (load("vllm", "chat_tools_auto"), "native")):
        answers = {**PROBE, "POST /v1/chat/completions": reply}
        facts = play(VLLM(TARGET, options={"probe_tools": True}).probe(), answers)
        assert facts.capabilities["tools"].support == support
        assert facts.capabilities["tools"].evidence == "probed"


def test_more_than_four_stop_strings() -> None:
    """Four go out, all of them are enforced on the text: the server would refuse five."""
    stops = ("zz", "yy", "xx", "ww", "there")
    encoded = engine().encode(chat(sampling=Sampling(stop=stops)), stream=True)
    assert encoded.call.json["stop"] == list(stops[:4])
    assert encoded.receipt.outcome("sampling.stop") == "emulated"
    decoded = decode(encoded.decoder(), [load("vllm", "s_greet_with_tools_stream").body])
    assert decoded.text == "Hello "
    assert decoded.end is not None
    assert decoded.end.finish_reason == "stop"
    assert body(chat(sampling=Sampling(stop=("a", ""))))["stop"] == ["a"]


@pytest.mark.parametrize(
    ("constraint", "key", "value"),
    [
        (Constraint(kind="json"), "response_format", {"type": "json_object"}),
        (Constraint(kind="regex", value="a+"), "structured_outputs", {"regex": "a+"}),
        (Constraint(kind="choice", value=("a", "b")), "structured_outputs", {"choice": ["a", "b"]}),
        (Constraint(kind="grammar", value="g"), "structured_outputs", {"grammar": "g"}),
        (
            Constraint(kind="json_schema", value={"type": "object"}, name=""),
            "response_format",
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}},
            },
        ),
    ],
)
def test_constraints(constraint: Constraint, key: str, value: Any) -> None:
    """Never the old `guided_*`, which are ignored with 200; a schema always has a name."""
    assert body(chat(constraint=constraint))[key] == value


def test_reasoning_switches() -> None:
    """Both names that templates use; levels as they are, others refused."""
    off = {"enable_thinking": False, "thinking": False}
    assert body(chat(reasoning=False))["chat_template_kwargs"] == off
    assert body(chat(reasoning="low"))["reasoning_effort"] == "low"
    with pytest.raises(BadRequest, match="one of none, minimal"):
        body(chat(reasoning="loud"))


def test_prefill_and_history() -> None:
    """A last assistant turn is continued; reasoning goes back; broken JSON is made valid."""
    sent = body(chat(USER, Message(role="assistant", content="Hi th", reasoning="hm")))
    assert sent["continue_final_message"] is True
    assert sent["add_generation_prompt"] is False
    assert sent["messages"][1]["reasoning_content"] == "hm"
    broken = Message(role="assistant", tool_calls=(ToolCall(id="1", name="f", arguments="{x"),))
    encoded = engine().encode(
        chat(USER, broken, Message(role="tool", content="e", tool_call_id="1"))
    )
    call = encoded.call.json["messages"][1]["tool_calls"][0]
    assert call["function"]["arguments"] == '{"invalid_arguments": "{x"}'
    assert encoded.receipt.outcome("messages") == "translated"


def test_completions_are_never_cut_after_sixteen_tokens() -> None:
    """The server's default is a hidden cut: the whole window is asked for instead."""
    request = CompletionRequest(model="tiny", prompt="a", sampling=Sampling(top_logprobs=2))
    encoded = engine().encode(request)
    assert encoded.call.json["max_tokens"] == 2048
    assert encoded.call.json["logprobs"] == 2
    entry = next(entry for entry in encoded.receipt.entries if entry.wire == "max_tokens")
    assert (entry.field, entry.rule) == ("-", "vllm.max_tokens.rest")
    with pytest.raises(Unsupported, match="16 tokens"):
        VLLM(TARGET).encode(request)
    limited = replace(request, sampling=Sampling(max_tokens=5))
    assert VLLM(TARGET).encode(limited).call.json["max_tokens"] == 5


def test_completion_logprobs_of_a_recorded_reply() -> None:
    """The old shape of completions is read, alternatives included."""
    request = CompletionRequest(
        model="tiny", prompt="a", sampling=Sampling(logprobs=True, max_tokens=4)
    )
    encoded = engine().encode(request, stream=True)
    decoded = decode(encoded.decoder(), [load("vllm", "v_completion_logprobs_stream").body])
    first = (decoded.chunks[0].logprobs or ())[0]
    assert (first.token, first.top[0].token) == ("48", "48")


def test_an_adapter_is_a_model() -> None:
    """Its name takes the place of the model's, and both entries say so."""
    encoded = engine().encode(chat(lora="pirate"))
    assert encoded.call.json["model"] == "pirate"
    assert encoded.receipt.outcome("model") == encoded.receipt.outcome("lora") == "translated"
    with pytest.raises(Unsupported):
        body(chat(lora=((0, 0.5),)))


def test_an_answer_taken_for_thinking_is_repaired() -> None:
    """Recorded: with a reasoning parser a reply without tags has null content."""
    encoded = engine().encode(chat())
    decoded = decode(encoded.decoder(), [load("vllm", "s_greet").body])
    assert decoded.text == "Hello there! A café is near."
    assert decoded.end is not None
    assert "reasoning parser" in decoded.end.repairs[0]


def test_request_id_is_sent() -> None:
    """It becomes the id of the reply."""
    assert body(chat(request_id="r-1"))["request_id"] == "r-1"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=2.5),
        Sampling(top_p=0.0),
        Sampling(min_p=2.0),
        Sampling(repetition_penalty=0.0),
        Sampling(presence_penalty=3.0),
        Sampling(max_tokens=0),
        Sampling(n=0),
        Sampling(temperature=float("nan")),
        Sampling(temperature="hot"),  # type: ignore[arg-type]
    ],
)
def test_values_that_the_server_refuses_cost_no_request(sampling: Sampling) -> None:
    """Each was recorded as a 400; here it is BadRequest before anything is sent."""
    with pytest.raises(BadRequest):
        body(chat(sampling=sampling))


# ------------------------------------------------------------------------------------ probing


def test_probe_reads_a_recorded_server() -> None:
    """Version, window and names."""
    assert FACTS.version == "0.32.0"
    assert FACTS.verified
    assert FACTS.context_window == 2048
    assert FACTS.context_source == "max_model_len of GET /v1/models"
    assert [card.id for card in FACTS.models] == ["tiny"]
    assert FACTS.capabilities == {}


def test_versions() -> None:
    """Newer than tested is unverified; a patch release of a tested one is not."""
    assert judge_version("0.32.7")[0]
    assert judge_version("0.29.0")[0]
    verified, notes = judge_version("0.41.0")
    assert not verified
    assert "newer than 0.32" in notes[0]
    assert not facts_of({"version": "1.0.0"}, {}).verified


def test_ready() -> None:
    """Health and the name; a refused connection is not yet."""
    healthy = Answer(status=200, headers={}, body=b"")
    answers = {"GET /health": healthy, "GET /v1/models": load("vllm", "models")}
    assert play(engine().ready("tiny"), answers) is True
    with pytest.raises(ModelNotFound):
        play(engine().ready("nope"), answers)
    dead = Answer(status=503, headers={}, body=b"")
    assert play(engine().ready("tiny"), {"GET /health": dead}) is False
    waiting = engine().ready("tiny")
    next(waiting)
    with pytest.raises(StopIteration) as stop:
        waiting.throw(Unreachable("refused"))
    assert stop.value.value is False


def test_wrong_key() -> None:
    """The error is a string there, not an object."""
    refused = recordings.scene("vllm", "scene_api_key")[0]
    with pytest.raises(Unauthorized):
        play(engine().models(), {"GET /v1/models": refused})


# ------------------------------------------------------------------------------------ routes


def test_tokens_of_recorded_answers() -> None:
    """Ids, text, and the count of a conversation with its template."""
    ids = play(engine().tokenize("hello world"), {"POST /tokenize": load("vllm", "v_tokenize")})
    assert ids == (279, 300, 85, 847, 82, 74)
    text = play(engine().detokenize([1]), {"POST /detokenize": load("vllm", "v_detokenize")})
    assert text == "<|end_of_text|><|start_header_id|>ll"
    count = {"POST /tokenize": load("vllm", "v_tokenize_chat")}
    assert play(engine().count_tokens(chat()), count) == 52


def test_metrics() -> None:
    """The recorded metrics in the common shape."""
    now = play(engine().load_state(), {"GET /metrics": load("vllm", "metrics")})
    assert (now.running, now.waiting) == (0, 0)
    assert 0.0 <= now.kv_cache_usage <= 1.0
    assert now.prompt_tokens_total > 0
    assert now.generated_tokens_total > 0
    assert not any(name.endswith("_bucket") for name in now.extra)


def test_fractions_of_several_engines_are_averaged() -> None:
    """Data parallel: one series an engine; counts add up, fractions do not."""
    text = (
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.7\n'
        'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3\n'
    )
    reply = Answer(status=200, headers={}, body=text.encode())
    now = play(engine().load_state(), {"GET /metrics": reply})
    assert now.running == 5
    assert now.kv_cache_usage == pytest.approx(0.6)


def test_pooling_routes_are_absent_from_a_generating_server() -> None:
    """404 there means the model, not the address: the hint names the flag."""
    absent = load("vllm", "embeddings")
    with pytest.raises(Unsupported) as caught:
        embed = EmbedRequest(model="tiny", texts=("a",), truncate=True, dimensions=8)
        play(engine().embed(embed), {"POST /v1/embeddings": absent})
    assert (caught.value.feature, caught.value.hint) == (
        "embeddings",
        "--runner pooling --convert embed",
    )
    with pytest.raises(Unsupported):
        rerank = RerankRequest(model="tiny", query="q", documents=("a",), top_n=1)
        play(engine().rerank(rerank), {"POST /v1/rerank": absent})


def test_sleep_and_wake() -> None:
    """Unload puts to sleep, load wakes; where it is off, the flags are named."""
    done = Answer(status=200, headers={}, body=b"")
    play(engine().unload("tiny"), {"POST /sleep?level=1": done})
    play(engine().load("tiny"), {"POST /wake_up": done})
    with pytest.raises(Unsupported) as caught:
        play(engine().unload("tiny"), {"POST /sleep?level=1": load("vllm", "v_sleep_absent")})
    assert "--enable-sleep-mode" in (caught.value.hint or "")
    assert play(engine().asleep(), {"GET /is_sleeping": answer({"is_sleeping": True})}) is True
    assert play(engine().asleep(), {"GET /is_sleeping": load("vllm", "err_route")}) is False


def test_the_window_is_the_models_own() -> None:
    """Several models have several windows: a completion takes its own, the facts the smallest."""
    facts = facts_of(
        {}, {"data": [{"id": "a", "max_model_len": 100}, {"id": "b", "max_model_len": 50}]}
    )
    assert facts.context_window == 50
    assert facts.models[0] == ModelCard(
        id="a", context_window=100, loaded=True, extra={"root": None, "parent": None}
    )
    request = CompletionRequest(model="a", prompt="x")
    assert engine(facts).encode(request).call.json["max_tokens"] == 100
