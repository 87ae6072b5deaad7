"""Requests to bodies: what goes out, what is translated, emulated, omitted, refused."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from enginekit.engine import Budgets, Encoded, Target
from enginekit.engines.ollama import Ollama
from enginekit.engines.ollama.probe import card, server_facts
from enginekit.errors import BadOutput, BadRequest, ContextOverflow, Unsupported
from enginekit.facts.engine import ServerFacts
from enginekit.operations import open_reply
from enginekit.types import (
    AudioPart,
    ChatRequest,
    CompletionRequest,
    Constraint,
    FilePart,
    ImagePart,
    Message,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.engines.recordings import decode, load

TARGET = Target(base_url="http://127.0.0.1:11434")
USER = Message(role="user", content="Say hi.")
WEATHER = Tool(
    name="get_weather",
    description="Weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
ADD = Tool(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})


def shown(name: str) -> dict[str, Any]:
    return json.loads(load("ollama", name).body)


def facts(
    name: str = "m:latest",
    capabilities: tuple[str, ...] = ("completion", "tools"),
    show: str | None = "n_show",
    version: str = "0.33.0-rc2",
    loaded: int | None = None,
    **more: Any,
) -> ServerFacts:
    value = {**(shown(show) if show else {}), "capabilities": list(capabilities), **more}
    running = {"name": name, "context_length": loaded} if loaded else None
    one = card({"name": name}, running, value if show else None)
    return server_facts(version, [one], one)


def ollama(**more: Any) -> Ollama:
    return Ollama(TARGET, facts=facts(**more))


BARE = Ollama(TARGET)


def encode(engine: Ollama = BARE, *, stream: bool = False, **more: Any) -> Encoded:
    more.setdefault("messages", (USER,))
    return engine.encode(ChatRequest(model="m", **more), stream=stream)


def body(engine: Ollama = BARE, **more: Any) -> dict[str, Any]:
    value: dict[str, Any] = encode(engine, **more).call.json
    return value


def outcomes(encoded: Encoded) -> dict[str, str]:
    return {entry.field: entry.outcome for entry in encoded.receipt.entries if entry.field != "-"}


# ---------------------------------------------------------------------------------- the base


def test_the_smallest_chat():
    """What the caller left alone is not sent; truncation is switched off and the receipt says so."""
    encoded = encode(stream=True)
    assert encoded.call.method == "POST"
    assert encoded.call.path == "/api/chat"
    assert encoded.call.framing == "ndjson"
    assert encoded.call.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hi."}],
        "stream": True,
        "truncate": False,
        "shift": False,
    }
    assert encoded.receipt.defaults["temperature"] == 0.8
    assert encoded.receipt.defaults["max_tokens"] == -1


def test_stream_is_always_sent_because_the_servers_default_is_true():
    assert body()["stream"] is False
    assert encode().call.framing == "json"


def test_sampling_is_nested_in_options():
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        typical_p=0.9,
        seed=7,
        max_tokens=16,
        stop=("a", "b"),
        repetition_penalty=1.1,
        repetition_window=32,
        frequency_penalty=0.2,
        presence_penalty=0.3,
    )
    assert body(sampling=sampling)["options"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "seed": 7,
        "num_predict": 16,
        "stop": ["a", "b"],
        "repeat_penalty": 1.1,
        "repeat_last_n": 32,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
    }


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=0),
        Sampling(max_tokens=-1),
        Sampling(temperature=-0.1),
        Sampling(top_p=7),
        Sampling(top_logprobs=21),
        Sampling(logprobs=False, top_logprobs=2),
        Sampling(temperature=float("nan")),
    ],
)
def test_values_the_server_would_take_in_silence_are_refused(sampling):
    """0 tokens is endless on Ollama, a top_p of 7 is accepted: neither is what anyone means."""
    with pytest.raises(BadRequest):
        encode(sampling=sampling)


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(n=2), "n"),
        (Sampling(logit_bias={1: 2.0}), "logit_bias"),
    ],
)
def test_what_changes_the_answer_and_does_not_exist_is_refused(sampling, field):
    with pytest.raises(Unsupported) as caught:
        encode(sampling=sampling)
    assert caught.value.feature == field


def test_tuning_that_does_not_exist_is_omitted_and_under_error_refused():
    sampling = Sampling(mirostat=2, min_tokens=3, ignore_eos=True)
    encoded = encode(sampling=sampling)
    assert encoded.receipt.omitted == (
        "sampling.min_tokens",
        "sampling.ignore_eos",
        "sampling.mirostat",
    )
    assert "options" not in encoded.call.json
    with pytest.raises(Unsupported):
        encode(sampling=sampling, lossy="error")


def test_empty_stop_strings_are_left_out():
    encoded = encode(sampling=Sampling(stop=("", "x")))
    assert encoded.call.json["options"]["stop"] == ["x"]
    assert outcomes(encoded)["sampling.stop"] == "translated"


def test_top_logprobs_alone_switches_logprobs_on():
    value = body(sampling=Sampling(top_logprobs=2))
    assert (value["logprobs"], value["top_logprobs"]) == (True, 2)


def test_old_servers_have_no_logprobs():
    with pytest.raises(Unsupported, match="version"):
        encode(ollama(version="0.12.10"), sampling=Sampling(logprobs=True))


@pytest.mark.parametrize(
    ("version", "streams"), [("0.3.0", False), ("0.4.5", False), ("0.4.6", True)]
)
def test_calls_are_asked_for_whole_where_a_stream_would_bring_raw_text(version, streams):
    """`ChatHandler` of server/routes.go looked for calls in whole replies only (ollama/ollama
    v0.4.5; issues 5796 and 7825); without tools everything streams."""
    encoded = encode(ollama(version=version), stream=True, tools=(WEATHER,))
    assert encoded.call.json["stream"] is streams
    assert encoded.call.framing == ("ndjson" if streams else "json")
    assert any("in one piece" in note for note in encoded.receipt.notes) is not streams
    assert encode(ollama(version=version), stream=True).call.json["stream"] is True


def test_a_version_without_schemas_is_not_sent_one():
    """api/types.go, `ChatRequest.Format`: a string until v0.4.7, JSON from v0.5.0 on."""
    old = ollama(version="0.4.7")
    for more in (
        {"constraint": Constraint(kind="json_schema", value={"type": "object"})},
        {"constraint": Constraint(kind="choice", value=("a", "b"))},
        {"tools": (WEATHER,), "tool_choice": ToolChoice(mode="required")},
    ):
        with pytest.raises(Unsupported, match=r"0\.4\.7 knows no schemas") as caught:
            encode(old, **more)
        assert "0.5.0" in (caught.value.hint or "")
        assert "format" in encode(ollama(version="0.5.0"), **more).call.json


def test_a_version_without_think_is_not_sent_it():
    """api/types.go, `ChatRequest.Think`: since v0.9.0; what Go does not know it drops."""
    thinks = ("completion", "thinking")
    for wish in (True, False, "low"):
        encoded = encode(ollama(version="0.8.0", capabilities=thinks), reasoning=wish)
        assert "think" not in encoded.call.json
        (entry,) = [one for one in encoded.receipt.entries if one.field == "reasoning"]
        assert entry.outcome == "omitted"
        assert "no think" in entry.note
    assert encode(ollama(version="0.9.0", capabilities=thinks), reasoning=True).call.json["think"]


@pytest.mark.parametrize("seen", [True, False])
def test_a_model_without_tools_of_a_version_that_does_not_say_so(seen):
    """api/types.go, `ShowResponse.Capabilities`: since v0.6.4. Before it the refusal of
    `CheckCapabilities` (server/images.go) is the first to tell; it comes before anything is
    generated, and a model beside it is not concerned."""
    engine = ollama(version="0.6.3", capabilities=())
    if not seen:
        engine.facts = replace(engine.facts, models=())
    request = ChatRequest(
        model="m", messages=(Message(role="user", content="x"),), tools=(WEATHER,)
    )
    said = {"error": "registry.ollama.ai/library/m:latest does not support tools"}
    refusal = engine.failure(400, {}, json.dumps(said).encode(), path="/api/chat")
    operation = open_reply(engine, request, stream=False, budgets=Budgets())
    assert next(operation).encoded.call.json["tools"]
    again = operation.throw(refusal).encoded.call.json
    assert "tools" not in again
    assert "get_weather" in json.dumps(again["format"])
    with pytest.raises(StopIteration):
        operation.send("the stream")
    later = next(open_reply(engine, request, stream=False, budgets=Budgets()))
    assert later.encoded.call.json == again
    other = replace(request, model="another")
    beside = next(open_reply(engine, other, stream=False, budgets=Budgets()))
    assert "tools" in beside.encoded.call.json


def test_pinned_defaults_are_sent_for_what_is_unset():
    options = body(defaults="pinned", sampling=Sampling(temperature=0.2))["options"]
    assert options["temperature"] == 0.2
    assert (options["top_k"], options["top_p"], options["repeat_penalty"]) == (0, 1.0, 1.0)


def test_defaults_of_the_modelfile_beat_the_servers():
    receipt = encode(ollama(), sampling=Sampling(top_k=3)).receipt
    assert receipt.defaults["temperature"] == 0.5
    assert receipt.defaults["stop"] == ["<|eot_id|>", "<|start_header_id|>"]
    assert receipt.defaults["context_window"] == 4096
    assert receipt.defaults["top_p"] == 0.9
    assert "top_k" not in receipt.defaults
    assert any("Modelfile" in note for note in receipt.notes)


def test_context_keep_alive_and_request_id():
    encoded = encode(context_window=8192, keep_alive=90.0, request_id="r-1")
    assert encoded.call.json["options"] == {"num_ctx": 8192}
    assert encoded.call.json["keep_alive"] == 90
    assert encoded.call.headers == (("x-request-id", "r-1"),)
    assert body(keep_alive=-5.0)["keep_alive"] == -1
    assert body(keep_alive=1.5)["keep_alive"] == 1.5


def test_a_window_beyond_the_trained_one_is_refused_because_the_server_caps_it_silently():
    with pytest.raises(BadRequest, match="4096"):
        encode(ollama(), context_window=100_000)
    note = encode(ollama(loaded=2048), context_window=1024).receipt.notes
    assert any("loaded again" in line for line in note)


def test_loras_and_template_variables_are_refused():
    with pytest.raises(Unsupported, match="baked"):
        encode(lora="x")
    with pytest.raises(Unsupported, match="template_options"):
        encode(template_options={"enable_thinking": False})


def test_engine_options_merge_and_may_not_contradict():
    value = body(
        engine_options={"options": {"num_gpu": 0}, "truncate": True},
        sampling=Sampling(temperature=0.1),
    )
    assert value["options"] == {"temperature": 0.1, "num_gpu": 0}
    assert value["truncate"] is True
    encoded = encode(engine_options={"shift": True})
    assert any("silently" in note for note in encoded.receipt.notes)
    with pytest.raises(BadRequest):
        encode(engine_options={"options": {"temperature": 1}}, sampling=Sampling(temperature=0.1))


def test_no_messages_is_refused_because_the_server_would_only_load_the_model():
    with pytest.raises(BadRequest, match="empty"):
        encode(messages=())
    with pytest.raises(BadRequest, match="empty"):
        BARE.encode(CompletionRequest(model="m", prompt=""))


# ---------------------------------------------------------------------------------- overflow


def test_old_servers_that_cut_silently_get_no_prompt_that_certainly_does_not_fit():
    """Before 0.12.6 the chat route had no `truncate`: count words, a lower bound of tokens."""
    old = ollama(version="0.11.4")
    with pytest.raises(ContextOverflow) as caught:
        encode(old, messages=(Message(role="user", content="word " * 4097),))
    assert (caught.value.limit, caught.value.requested) == (4096, 4097)
    fits = encode(old, messages=(Message(role="user", content="word " * 100),))
    assert any("silently" in note for note in fits.receipt.notes)
    with pytest.raises(ContextOverflow):
        old.encode(CompletionRequest(model="m", prompt="word " * 513, context_window=512))


def test_new_servers_are_trusted_to_refuse_by_themselves():
    long = (Message(role="user", content="word " * 9000),)
    encoded = encode(ollama(), messages=long)
    assert encoded.call.json["truncate"] is False
    assert not any("silently" in note for note in encoded.receipt.notes)


# ---------------------------------------------------------------------------------- messages


def test_roles_tool_history_and_reasoning():
    call = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Rome"}')
    messages = (
        Message(role="developer", content="Be brief."),
        Message(role="user", content="Weather?", name="ann"),
        Message(role="assistant", tool_calls=(call,), reasoning="look it up"),
        Message(role="tool", tool_call_id="call_1", content="sunny"),
        Message(role="tool", tool_name="other", content="boom", tool_error=True),
    )
    encoded = encode(messages=messages)
    assert encoded.call.json["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "function": {"name": "get_weather", "arguments": {"city": "Rome"}},
                }
            ],
            "thinking": "look it up",
        },
        {
            "role": "tool",
            "content": "sunny",
            "tool_call_id": "call_1",
            "tool_name": "get_weather",
        },
        {"role": "tool", "content": "Error: boom", "tool_name": "other"},
    ]
    entry = next(e for e in encoded.receipt.entries if e.field == "messages")
    assert entry.outcome == "translated"
    for word in ("developer", "names", "name of the tool", "failed tool result"):
        assert word in entry.note


def test_broken_arguments_in_the_history_become_an_object():
    """A string there is a 400 on Ollama."""
    call = ToolCall(id="c", name="f", arguments='{"city": ')
    value = body(messages=(USER, Message(role="assistant", tool_calls=(call,)), USER))
    arguments = value["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"invalid_arguments": '{"city": '}


PIXEL = b"\x89PNG\r\n"


def test_images_are_base64_beside_the_text():
    data = base64.b64encode(PIXEL).decode()
    content = (
        TextPart(text="What is "),
        ImagePart(data=PIXEL),
        TextPart(text="this?"),
        ImagePart(url=f"data:image/png;base64,{data}"),
        ImagePart(url="data:image/svg+xml,%3Csvg%3E", detail="low"),
    )
    encoded = encode(messages=(Message(role="user", content=content),))
    assert encoded.call.json["messages"] == [
        {
            "role": "user",
            "content": "What is this?",
            "images": [data, data, base64.b64encode(b"<svg>").decode()],
        }
    ]
    note = next(e.note for e in encoded.receipt.entries if e.field == "messages")
    assert "before it" in note
    assert "detail" in note


def test_audio_travels_with_the_images():
    content = (TextPart(text="Hear"), AudioPart(data=b"RIFF"))
    value = body(messages=(Message(role="user", content=content),))
    assert value["messages"][0]["images"] == [base64.b64encode(b"RIFF").decode()]


@pytest.mark.parametrize(
    ("part", "feature"),
    [
        (ImagePart(url="https://example.org/x.png"), "image_urls"),
        (ImagePart(), "images"),
        (ImagePart(url="data:nothing"), "images"),
        (AudioPart(url="https://example.org/x.wav"), "audio"),
        (FilePart(data=b"%PDF", mime_type="application/pdf"), "files"),
    ],
)
def test_what_cannot_go_out_is_refused_by_name(part, feature):
    with pytest.raises(Unsupported) as caught:
        encode(messages=(Message(role="user", content=(part,)),))
    assert caught.value.feature == feature


def test_a_model_without_vision_gets_no_image():
    with pytest.raises(Unsupported) as caught:
        encode(ollama(), messages=(Message(role="user", content=(ImagePart(data=PIXEL),)),))
    assert caught.value.feature == "images"
    seeing = ollama(capabilities=("completion", "vision"))
    encode(seeing, messages=(Message(role="user", content=(ImagePart(data=PIXEL),)),))


def test_prefill_is_stripped_where_the_server_repeats_it():
    """Models with a Jinja template repeat the prefilled text at the start of their answer."""
    messages = (USER, Message(role="assistant", content="The"))
    native = encode(ollama(show="native/n_show"), messages=messages)
    got = decode(native.decoder(), [load("ollama", "native/n_prefill").body])
    assert got.text == " there! A café is near."
    rendered = encode(ollama(), messages=messages)
    got = decode(rendered.decoder(), [load("ollama", "n_prefill").body])
    assert got.text == "Hello there! A café is near."


def test_inline_thinking_of_a_model_that_is_not_known_to_think_is_split():
    encoded = encode(ollama(capabilities=("completion",)))
    got = decode(encoded.decoder(), [load("ollama", "n_num_ctx_tiny").body])
    assert got.reasoning == "Greet them back."
    assert got.text == "Hello there! A café is near."


THINKER = {"show": "thinker/n_show", "capabilities": ("completion", "tools", "thinking")}


def test_thinking_that_was_switched_off_and_came_all_the_same_is_split():
    """The server then looks for no tags: they come as text."""
    encoded = encode(ollama(**THINKER), reasoning=False, stream=True)
    recording = load("ollama", "thinker/n_think_off_thinks")
    assert encoded.call.json["think"] is recording.request["think"] is False
    got = decode(encoded.decoder(), [recording.body])
    assert (got.reasoning, got.text) == ("Greet them back.", "Hello there! A café is near.")


@pytest.mark.parametrize("name", ["n_format_unthought", "n_format_unthought_stream"])
def test_a_choice_that_was_not_applied_is_no_answer(name):
    """A thinking model that answers at once is never constrained: HTTP 200, done, and prose."""
    recording = load("ollama", f"thinker/{name}")
    choice = Constraint(kind="choice", value=("red", "blue"))
    encoded = encode(ollama(**THINKER), constraint=choice, stream=recording.request["stream"])
    assert encoded.call.json["format"] == recording.request["format"]
    got = decode(encoded.decoder(), [recording.body])
    assert isinstance(got.failure, BadOutput)
    assert got.text == ""
    assert "reasoning=False" in (got.failure.hint or "")
    again = encode(ollama(**THINKER), constraint=choice, reasoning=False)
    recorded = load("ollama", "thinker/n_format_think_off")
    assert again.call.json["think"] is recorded.request["think"] is False
    assert decode(again.decoder(), [recorded.body]).text == "red"


# ---------------------------------------------------------------------------------- thinking


@pytest.mark.parametrize(
    ("wish", "think"),
    [(True, True), (False, False), ("low", "low"), ("minimal", "low"), ("none", False),
     ("xhigh", "max"), ("max", "max")],
)  # fmt: skip
def test_thinking(wish, think):
    assert body(reasoning=wish)["think"] == think


def test_thinking_on_a_model_that_cannot():
    """Off is fine, on is tuning: left out and named, or refused under `lossy="error"`."""
    assert body(ollama(), reasoning=False)["think"] is False
    encoded = encode(ollama(), reasoning=True)
    assert "think" not in encoded.call.json
    assert encoded.receipt.omitted == ("reasoning",)
    with pytest.raises(Unsupported):
        encode(ollama(), reasoning="high", lossy="error")
    with pytest.raises(BadRequest, match="extreme"):
        encode(reasoning="extreme")


def test_unset_thinking_of_a_thinking_model_is_on_and_the_receipt_says_so():
    thinker = ollama(show="thinker/n_show", capabilities=("completion", "thinking"))
    encoded = encode(thinker)
    assert "think" not in encoded.call.json
    assert encoded.receipt.defaults["reasoning"] is True


# ---------------------------------------------------------------------------------- tools


def test_auto_tools_are_sent():
    encoded = encode(tools=(WEATHER,), tool_choice=ToolChoice(mode="auto"))
    assert encoded.call.json["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Weather of a city",
                "parameters": dict(WEATHER.parameters),
            },
        }
    ]
    assert outcomes(encoded)["tools"] == "sent"
    assert outcomes(encoded)["tool_choice"] == "translated"


def test_references_are_written_out_and_dropped_keywords_named():
    """Ollama rebuilds the schema from a few keywords: `$ref` would leave the model a blank."""
    tool = Tool(
        name="book",
        parameters={
            "type": "object",
            "properties": {
                "who": {"$ref": "#/$defs/Person"},
                "nights": {"type": "integer", "minimum": 1, "default": 2},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}},
            },
            "$defs": {
                "Person": {"type": "object", "properties": {"name": {"type": "string"}}},
                "Tag": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        },
        strict=True,
    )
    encoded = encode(tools=(tool,))
    sent = encoded.call.json["tools"][0]["function"]["parameters"]
    assert sent["properties"]["who"] == {
        "type": "object",
        "properties": {"name": {"type": "string"}},
    }
    assert sent["properties"]["tags"]["items"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    entry = next(e for e in encoded.receipt.entries if e.field == "tools")
    assert entry.outcome == "translated"
    assert "default, minimum" in entry.note
    assert "strict" in entry.note


def test_a_recursive_schema_ends():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    tool = Tool(
        name="t",
        parameters={
            "type": "object",
            "properties": {"head": {"$ref": "#/$defs/Node"}},
            "$defs": {"Node": node},
        },
    )
    assert json.dumps(body(tools=(tool,))).count('"next"') < 20


def test_none_sends_no_tools():
    encoded = encode(tools=(WEATHER,), tool_choice=ToolChoice(mode="none"))
    assert "tools" not in encoded.call.json
    assert outcomes(encoded) == {
        "model": "sent",
        "tools": "emulated",
        "tool_choice": "emulated",
        "messages": "sent",
    }


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        (ToolChoice(mode="required"), ["get_weather", "add"]),
        (ToolChoice(mode="named", name="add"), ["add"]),
    ],
)
def test_a_forced_call_is_emulated_by_format_and_never_together_with_tools(choice, offered):
    """`tools` and `format` in one request killed the runner in 5 of 5 recordings."""
    encoded = encode(tools=(WEATHER, ADD), tool_choice=choice)
    value = encoded.call.json
    assert "tools" not in value
    forms = value["format"].get("anyOf", [value["format"]])
    assert [form["allOf"][0]["properties"]["name"]["const"] for form in forms] == offered
    system = value["messages"][0]
    assert system["role"] == "system"
    assert ("get_weather" in system["content"]) is ("get_weather" in offered)
    assert outcomes(encoded)["tools"] == outcomes(encoded)["tool_choice"] == "emulated"


def stream_of(text: str, reason: str = "stop") -> list[bytes]:
    lines = [
        {"model": "m", "message": {"role": "assistant", "content": piece}, "done": False}
        for piece in text
    ]
    last = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True}
    lines.append({**last, "done_reason": reason, "prompt_eval_count": 1, "eval_count": 2})
    return [json.dumps(line).encode() + b"\n" for line in lines]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"a": 1}}',
        '{\n "arguments": {"a": 1}, "name": "add"}',  # Jinja templates: keys come sorted
    ],
)
def test_the_forced_call_is_lifted_out_of_the_text(text):
    encoded = encode(tools=(WEATHER, ADD), tool_choice=ToolChoice(mode="required"), stream=True)
    got = decode(encoded.decoder(), stream_of(text))
    assert got.text == ""
    assert got.calls == [("add", '{"a": 1}')]
    assert got.end is not None
    assert got.end.finish_reason == "tool_calls"


def test_a_forced_call_that_did_not_come_is_bad_output():
    encoded = encode(tools=(ADD,), tool_choice=ToolChoice(mode="required"), stream=True)
    assert isinstance(decode(encoded.decoder(), stream_of("{}")).failure, BadOutput)
    cut = decode(encoded.decoder(), stream_of('{"name": "a', "length"))
    assert isinstance(cut.failure, BadOutput)
    assert "max_tokens" in (cut.failure.hint or "")


def test_a_model_whose_template_has_no_tools_gets_them_emulated():
    """Ollama would answer 400; the history is told as text, and a plain answer stays possible."""
    plain = ollama(capabilities=("completion",))
    call = ToolCall(id="c", name="add", arguments='{"a": 1}')
    history = (
        USER,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", tool_call_id="c", tool_name="add", content="2"),
    )
    encoded = encode(plain, tools=(ADD,), messages=history, stream=True)
    value = encoded.call.json
    assert "tools" not in value
    assert [m["role"] for m in value["messages"]] == ["system", "user", "assistant", "user"]
    got = decode(encoded.decoder(), stream_of('{"answer": "It is 2."}'))
    assert got.text == "It is 2."
    assert got.end is not None
    assert got.end.finish_reason == "stop"


def test_parallel_calls_off_keeps_the_first():
    encoded = encode(tools=(WEATHER, ADD), parallel_tool_calls=False)
    assert outcomes(encoded)["parallel_tool_calls"] == "emulated"
    got = decode(encoded.decoder(), [load("ollama", "n_tools").body])
    assert got.calls == [("get_weather", '{"city": "Oslo"}')]
    assert got.end is not None
    assert len(got.end.tool_calls) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": ToolChoice(mode="required")},
        {"tools": (ADD,), "tool_choice": ToolChoice(mode="named", name="nope")},
        {"tools": (ADD, ADD)},
    ],
)
def test_contradictory_tools_are_bad_requests(fields):
    with pytest.raises(BadRequest):
        encode(**fields)


def test_tools_with_a_constraint_are_refused():
    with pytest.raises(Unsupported, match="kills the runner"):
        encode(tools=(ADD,), constraint=Constraint(kind="json"))
    encode(tools=(ADD,), tool_choice=ToolChoice(mode="none"), constraint=Constraint(kind="json"))


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_with_tools_are_refused_on_jinja_models(stream):
    """Ollama streams from its runner whatever was asked, and the runner refuses the two together."""
    sampling = Sampling(logprobs=True)
    native = ollama(show="native/n_show")
    with pytest.raises(Unsupported, match="log-probabilities together with tools"):
        encode(native, tools=(ADD,), sampling=sampling, stream=stream)
    assert body(ollama(), tools=(ADD,), sampling=sampling, stream=stream)["stream"] is stream
    forced = ToolChoice(mode="required")
    assert body(native, tools=(ADD,), tool_choice=forced, sampling=sampling)["logprobs"] is True


# ---------------------------------------------------------------------------------- constraints


def test_plain_json_is_a_schema_unless_the_model_is_known_to_heed_the_word():
    """`format: "json"` is ignored (200, prose) by models with a Jinja template."""
    wish = Constraint(kind="json")
    assert body(ollama(), constraint=wish)["format"] == "json"
    assert body(ollama(show="native/n_show"), constraint=wish)["format"] == {"type": "object"}
    assert body(constraint=wish)["format"] == {"type": "object"}


def test_a_schema_is_format():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    encoded = encode(constraint=Constraint(kind="json_schema", value=schema))
    assert encoded.call.json["format"] == schema
    assert outcomes(encoded)["constraint"] == "translated"
    got = decode(encoded.decoder(), [load("ollama", "random/n_format").body])
    assert json.loads(got.text) == {"ok": False, "level": "low"}
    with pytest.raises(BadRequest):
        encode(constraint=Constraint(kind="json_schema", value="no schema"))


def test_prose_where_json_was_asked_for_is_bad_output():
    """What a Jinja model answers to `"json"`, recorded."""
    encoded = encode(constraint=Constraint(kind="json"))
    got = decode(encoded.decoder(), [load("ollama", "native/n_format_json").body])
    assert isinstance(got.failure, BadOutput)


def test_choice_and_regex_are_json_strings_without_their_quotes():
    encoded = encode(constraint=Constraint(kind="choice", value=("yes", "no")), stream=True)
    assert encoded.call.json["format"] == {"type": "string", "enum": ["yes", "no"]}
    got = decode(encoded.decoder(), stream_of('"yes"'))
    assert got.text == "yes"
    encoded = encode(constraint=Constraint(kind="regex", value="[0-9]{3}"), stream=True)
    assert encoded.call.json["format"] == {"type": "string", "pattern": "^[0-9]{3}$"}
    assert outcomes(encoded)["constraint"] == "emulated"


def test_grammars_are_refused():
    with pytest.raises(Unsupported, match="grammar"):
        encode(constraint=Constraint(kind="grammar", value="root ::= 'a'"))


def test_a_constraint_on_a_thinking_model_is_noted():
    thinker = ollama(show="thinker/n_show", capabilities=("completion", "thinking"))
    notes = encode(thinker, constraint=Constraint(kind="json")).receipt.notes
    assert any("token counts" in note for note in notes)


# ---------------------------------------------------------------------------------- completions


def complete(engine: Ollama = BARE, *, stream: bool = False, **more: Any) -> Encoded:
    return engine.encode(CompletionRequest(model="m", prompt="abc", **more), stream=stream)


def test_a_completion_is_raw_and_honest():
    encoded = complete(sampling=Sampling(max_tokens=7))
    assert encoded.call.path == "/api/generate"
    assert encoded.call.json == {
        "model": "m",
        "prompt": "abc",
        "raw": True,
        "options": {"num_predict": 7},
        "stream": False,
        "truncate": False,
        "shift": False,
    }
    got = decode(encoded.decoder(), [load("ollama", "n_generate_raw").body])
    assert got.text == " four five six seven eight one two"


def test_a_suffix_goes_through_the_models_template():
    """raw:true would leave the suffix out without a word."""
    value = complete(suffix="xyz").call.json
    assert value["suffix"] == "xyz"
    assert "raw" not in value
    with pytest.raises(Unsupported, match="suffix"):
        complete(ollama(), suffix="xyz")


def test_echo_is_made_here():
    got = decode(complete(echo=True).decoder(), [load("ollama", "n_generate_raw").body])
    assert got.text == "abc four five six seven eight one two"


def test_plain_json_works_in_completions_of_every_model():
    jinja = ollama(show="native/n_show")
    assert complete(jinja, constraint=Constraint(kind="json")).call.json["format"] == "json"


def test_an_embedding_model_neither_chats_nor_completes():
    model = ollama(show="embed/n_show", capabilities=("embedding",))
    with pytest.raises(Unsupported):
        encode(model)
    with pytest.raises(Unsupported):
        complete(model)


def test_cloud_models_are_named_in_the_receipt():
    request = ChatRequest(model="gpt-oss:120b-cloud", messages=(USER,))
    assert any("ollama.com" in note for note in BARE.encode(request).receipt.notes)
