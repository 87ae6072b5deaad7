"""Every field of every request is accounted for, and the body is what the receipt says."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginekit.engine import Encoded, Engine, Target
from enginekit.engines._params import TUNING
from enginekit.engines.llamacpp import LlamaCpp
from enginekit.engines.vllm import VLLM
from enginekit.errors import BadRequest, Unsupported
from enginekit.facts.engine import Capability, ModelCard, ServerFacts
from enginekit.types import (
    UNSET,
    ChatRequest,
    CompletionRequest,
    Constraint,
    ImagePart,
    Message,
    Receipt,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

TARGET = Target(base_url="http://server")
CARDS = (ModelCard(id="m", context_window=2048),)
BARE = ServerFacts(
    version="b1",
    models=CARDS,
    context_window=2048,
    slots=2,
    template_tools=False,
    capabilities={
        "tools": Capability(support="emulated"),
        "tool_choice_required": Capability(support="emulated"),
        "tool_choice_named": Capability(support="emulated"),
        "reasoning": Capability(support="none"),
        "images": Capability(support="none"),
    },
    extra={"defaults": {"temperature": 0.5}, "lora": ((0, "/models/a.gguf"),)},
)
ENGINES: dict[str, Engine] = {
    "llamacpp": LlamaCpp(TARGET),
    "llamacpp, no tools in the template": LlamaCpp(TARGET, facts=BARE),
    "vllm": VLLM(TARGET, facts=ServerFacts(models=CARDS, context_window=2048)),
    "vllm, no tool parser": VLLM(TARGET, facts=BARE),
}

maybe = lambda strategy: st.one_of(st.just(UNSET), strategy)  # noqa: E731
words = st.text(st.characters(codec="utf-8"), max_size=12)

sampling = st.builds(
    Sampling,
    temperature=maybe(st.floats(-0.5, 2.5)),
    top_p=maybe(st.floats(0, 1.2)),
    top_k=maybe(st.integers(-1, 60)),
    min_p=maybe(st.floats(0, 1)),
    typical_p=maybe(st.floats(0, 1)),
    seed=maybe(st.integers(-1, 2**33)),
    max_tokens=maybe(st.integers(0, 4096)),
    min_tokens=maybe(st.integers(0, 10)),
    stop=maybe(st.lists(words, max_size=6).map(tuple)),
    repetition_penalty=maybe(st.floats(0, 2)),
    repetition_window=maybe(st.integers(-1, 99)),
    frequency_penalty=maybe(st.floats(-2, 2)),
    presence_penalty=maybe(st.floats(-2, 2)),
    logit_bias=maybe(st.dictionaries(st.integers(0, 99), st.floats(-9, 9), max_size=2)),
    ignore_eos=maybe(st.booleans()),
    mirostat=maybe(st.integers(0, 2)),
    mirostat_tau=maybe(st.floats(0, 9)),
    mirostat_eta=maybe(st.floats(0, 1)),
    logprobs=maybe(st.booleans()),
    top_logprobs=maybe(st.integers(0, 21)),
    n=maybe(st.integers(1, 3)),
)
tool = st.sampled_from(
    [
        Tool(name="f"),
        Tool(name="g", description="adds", parameters={"type": "object"}, strict=True),
    ]
)
constraint = st.sampled_from(
    [
        Constraint(kind="json"),
        Constraint(kind="json_schema", value={"type": "object"}, name="answer", strict=True),
        Constraint(kind="regex", value="[a-z]+"),
        Constraint(kind="choice", value=("yes", "no")),
        Constraint(kind="grammar", value='root ::= "a"'),
    ]
)
message = st.sampled_from(
    [
        Message(role="system", content="Be brief."),
        Message(role="developer", content="Be brief."),
        Message(role="user", content="Hi", name="ann"),
        Message(role="user", content=(TextPart(text="a"), TextPart(text="b"))),
        Message(role="user", content=(TextPart(text="see"), ImagePart(data=b"\x89PNG"))),
        Message(role="assistant", content="Hello", reasoning="greet"),
        Message(role="assistant", tool_calls=(ToolCall(id="1", name="f", arguments="{bro"),)),
        Message(role="tool", content="42", tool_call_id="1", tool_name="f", tool_error=True),
    ]
)
common: dict[str, Any] = {
    "model": st.sampled_from(["m", "other"]),
    "sampling": sampling,
    "constraint": maybe(constraint),
    "context_window": maybe(st.sampled_from([1024, 4096])),
    "keep_alive": maybe(st.just(60.0)),
    "lora": maybe(st.sampled_from(["a", "b", ((0, 0.5),)])),
    "lossy": st.sampled_from(["warn", "error"]),
    "defaults": st.sampled_from(["server", "pinned"]),
    "engine_options": st.sampled_from(
        [{}, {"cache_prompt": True}, {"chat_template_kwargs": {"x": 1}}, {"temperature": 1}]
    ),
    "request_id": st.sampled_from([None, "r-1"]),
}
chats = st.builds(
    ChatRequest,
    messages=st.lists(message, min_size=1, max_size=4).map(tuple),
    tools=st.lists(tool, max_size=2, unique_by=lambda t: t.name).map(tuple),
    tool_choice=maybe(
        st.sampled_from(
            [ToolChoice(mode=mode) for mode in ("auto", "none", "required")]
            + [ToolChoice(mode="named", name="f")]
        )
    ),
    parallel_tool_calls=maybe(st.booleans()),
    reasoning=maybe(st.sampled_from([True, False, "low", "none"])),
    template_options=st.sampled_from([{}, {"date": "today"}]),
    **common,
)
completions = st.builds(
    CompletionRequest,
    prompt=words,
    suffix=st.sampled_from([None, "end"]),
    echo=maybe(st.booleans()),
    **common,
)


def set_names(request: ChatRequest | CompletionRequest) -> list[str]:
    """The fields that the caller set, as the receipt names them; `lossy` and `defaults` steer."""
    names = ["model"]
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in ("model", "lossy", "defaults", "sampling") or value is UNSET:
            continue
        if field.name in ("engine_options", "template_options"):
            names += [f"{field.name}.{key}" for key in value]
        elif value is not None and value != ():
            names.append(field.name)
    names += [
        f"sampling.{field.name}"
        for field in fields(Sampling)
        if getattr(request.sampling, field.name) is not UNSET
    ]
    return sorted(names)


def encode(
    engine: Engine, request: ChatRequest | CompletionRequest, stream: bool
) -> Encoded | None:
    """None for what is refused; a refusal names its feature and its rule."""
    refusal: Unsupported | None = None
    try:
        return engine.encode(request, stream=stream)
    except Unsupported as error:
        refusal = error
    except BadRequest:
        return None
    assert refusal.feature
    assert refusal.rule
    return None


def check(request: ChatRequest | CompletionRequest, receipt: Receipt, body: Any) -> None:
    asked = set_names(request)
    pinned = {entry.field for entry in receipt.entries if entry.rule.endswith(".pinned")}
    accounted = [e.field for e in receipt.entries if e.field != "-" and e.field not in pinned]
    assert sorted(accounted) == asked
    for entry in receipt.entries:
        assert entry.outcome != "refused"
        if entry.outcome == "omitted":
            assert entry.field.rpartition(".")[2] in TUNING
            assert request.lossy == "warn"
            assert entry.wire == ""
        if entry.outcome != "sent":
            assert entry.note
    left = copy.deepcopy(dict(body))
    for path in {path for entry in receipt.entries for path in entry.wire.split()}:
        *parents, last = path.split(".")
        here = left
        for key in parents:
            here = here[key]
        assert last in here, f"the receipt names {path}, the body lacks it"
        del here[last]
    assert not any(left.values()), f"the body has what no entry names: {left}"
    unset = {field.name for field in fields(Sampling)} - {
        entry.field.removeprefix("sampling.") for entry in receipt.entries
    }
    assert set(receipt.defaults) <= unset


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=60, deadline=None)
@given(request=chats, stream=st.booleans())
def test_chat(name: str, request: ChatRequest, stream: bool) -> None:
    """Random chats: refused with a rule, or every field in exactly one entry."""
    encoded = encode(ENGINES[name], request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=60, deadline=None)
@given(request=completions, stream=st.booleans())
def test_completion(name: str, request: CompletionRequest, stream: bool) -> None:
    """The same for completions and fill-in-the-middle."""
    encoded = encode(ENGINES[name], request, stream)
    if encoded is not None:
        check(request, encoded.receipt, encoded.call.json)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "field",
    [field.name for field in fields(Sampling)],
)
def test_each_sampling_field_alone(name: str, field: str) -> None:
    """One field at a time, so that refusals of others hide none of them."""
    values: dict[str, Any] = {
        "stop": ("a", "b"),
        "logit_bias": {5: 1.0},
        "ignore_eos": True,
        "logprobs": True,
        "seed": 3,
        "top_k": 3,
        "n": 1,
        "max_tokens": 9,
    }
    chat = ChatRequest(
        model="m",
        messages=(Message(role="user", content="Hi"),),
        sampling=replace(Sampling(), **{field: values.get(field, 1)}),
    )
    encoded = ENGINES[name].encode(chat)
    check(chat, encoded.receipt, encoded.call.json)


def test_pinned_sends_the_neutral_set() -> None:
    """`defaults="pinned"` is one set everywhere, and what the caller set wins."""
    for engine in ENGINES.values():
        chat = ChatRequest(
            model="m",
            messages=(Message(role="user", content="Hi"),),
            sampling=Sampling(temperature=0.2),
            defaults="pinned",
        )
        body = engine.encode(chat).call.json
        assert body["temperature"] == 0.2
        assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)


def test_server_defaults_are_stated_for_what_is_unset() -> None:
    """What the server said of itself beats what the profile knows."""
    chat = ChatRequest(model="m", messages=(Message(role="user", content="Hi"),))
    defaults = ENGINES["llamacpp, no tools in the template"].encode(chat).receipt.defaults
    assert defaults["temperature"] == 0.5
    assert defaults["top_k"] == 40


def test_two_settings_of_one_path_are_an_error() -> None:
    """An engine option does not silently beat a parameter."""
    chat = ChatRequest(
        model="m",
        messages=(Message(role="user", content="Hi"),),
        sampling=Sampling(temperature=0.2),
        engine_options={"temperature": 1},
    )
    with pytest.raises(BadRequest, match=r"'temperature'.*sampling\.temperature sets as well"):
        ENGINES["vllm"].encode(chat)


def test_lossy_error_refuses_what_would_be_left_out() -> None:
    """Under `lossy="error"` nothing is dropped at all."""
    chat = ChatRequest(
        model="m",
        messages=(Message(role="user", content="Hi"),),
        sampling=Sampling(mirostat=1),
        lossy="error",
    )
    with pytest.raises(Unsupported) as caught:
        ENGINES["vllm"].encode(chat)
    assert (caught.value.feature, caught.value.rule) == ("mirostat", "vllm.mirostat")
