"""What TGI's source says it can send and no recording has.

Files are those of huggingface/text-generation-inference at db931fc (version 3.3.7).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginekit.engine import Target
from enginekit.engines.tgi import TGI
from enginekit.engines.tgi.decode import GenerateDecoder, GenerateWholeDecoder, TGIDecoder
from enginekit.engines.tgi.engine import bare
from enginekit.engines.tgi.facts import facts_of
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineFault,
    Overloaded,
    StreamTruncated,
    Unsupported,
)
from enginekit.types import UNSET, ChatRequest, ImagePart, Message, Tool, ToolChoice
from tests.engines.recordings import answer, decode, load, play

TARGET = Target(base_url="http://server")

VALIDATION = {  # the `ValidationError`s of router/src/validation.rs
    "`best_of` must be > 0 and <= 2. Given: 3": BadRequest,
    "`best_of` != 1 is not allowed for this endpoint": Unsupported,
    "you must use sampling when `best_of` is > 1": BadRequest,
    "`seed` must not be set when `best_of` > 1": BadRequest,
    "`best_of` != 1 is not supported when streaming tokens": BadRequest,
    "`top_n_tokens` must be >= 0 and <= 5. Given: 6": BadRequest,
    "`top_n_tokens` != 0 is not allowed for this endpoint": Unsupported,
    "`decoder_input_details` == true is not supported when streaming tokens": BadRequest,
    "`temperature` must be strictly positive": BadRequest,
    "`repetition_penalty` must be strictly positive": BadRequest,
    "`frequency_penalty` must be >= -2.0 and <= 2.0": BadRequest,
    "`top_p` must be > 0.0 and < 1.0": BadRequest,
    "`top_k` must be strictly positive": BadRequest,
    "`truncate` must be strictly positive and less than 1024. Given: 0": BadRequest,
    "`typical_p` must be > 0.0 and < 1.0": BadRequest,
    "one of `max_new_tokens` or `truncate` must be set if a fast tokenizer is not in use": BadRequest,
    "`max_new_tokens` must be strictly positive": BadRequest,
    "`max_new_tokens` must be <= 512. Given: 513": BadRequest,
    "`inputs` tokens + `max_new_tokens` must be <= 60. Given: 9 `inputs` tokens and 52 "
    "`max_new_tokens`": ContextOverflow,
    "`inputs` must have less than 40 tokens. Given: 41": ContextOverflow,
    "`inputs` cannot be empty": BadRequest,
    "`stop` supports up to 4 stop sequences. Given: 5": BadRequest,
    "tokenizer error cannot encode": BadRequest,
    "grammar is not supported": Unsupported,
    'grammar is not valid: "a" is not of type "object"': BadRequest,
    "cannot compile regex from schema: Unsupported JSON Schema structure": BadRequest,
    "base64 encoding is invalid: Invalid symbol 33, offset 0.": BadRequest,
    "invalid image: The image format could not be determined": BadRequest,
    "invalid integer: out of range integral type conversion attempted": BadRequest,
    "invalid image content: text/plain;base64": BadRequest,
    "Could not fetch image: error sending request for url (http://x/)": BadRequest,
    "Image size 2 bytes exceeds maximum allowed size of 1 bytes": BadRequest,
    "Failed to read image data: unexpected end of file": BadRequest,
    "image modality is not supported": Unsupported,
    "No token provided modality is not supported": BadRequest,
}
INFER = [  # the `InferError`s of router/src/infer/mod.rs with the status of router/src/server.rs
    (
        424,
        "generation",
        "Request failed during generation: Server error: out of memory",
        EngineFault,
    ),
    (424, "generation", "Request failed during generation: Bad request", EngineFault),
    (429, "overloaded", "Model is overloaded", Overloaded),
    (500, "incomplete_generation", "Incomplete generation", EngineFault),
    (500, "incomplete_generation_stream", "Incomplete generation stream", EngineFault),
    (422, "template_error", "Template error: invalid operation: (in <string>:1)", BadRequest),
    (422, "template_error", "Template error: template not found", Unsupported),
    (422, "missing_template_variable", "Missing template vatiable: messages", BadRequest),
    (422, "tool_error", "Tool error: Grammar and tools are mutually exclusive", BadRequest),
    (422, "tool_error", "Tool error: Failed to parse generated text: EOF {}", BadOutput),
    (422, "tool_error", "Tool error: Tool with name x not found", BadRequest),
    (500, "stream_serialization_error", "Stream event serialization error", EngineFault),
    (500, "headers", "Failed to get headers", EngineFault),
    (500, "no details", "No details in generation", EngineFault),
    (422, "suffix not supported", "Suffix is not supported and can be achieved by", Unsupported),
    (422, "batch size exceeded", "Number of prompts exceeds the maximum allowed", BadRequest),
    *(
        (422, "validation", f"Input validation error: {text}", kind)
        for text, kind in VALIDATION.items()
    ),
]


@pytest.mark.parametrize(("status", "type", "text", "kind"), INFER)
def test_every_error_of_the_router(
    status: int, type: str, text: str, kind: type[Exception]
) -> None:
    """The same meaning as a plain answer, as a native event and as an event of `/v1`."""
    told = json.dumps({"error": text, "error_type": type}).encode()
    engine = TGI(TARGET)
    assert type_of(engine.failure(status, {}, told)) is kind
    native = decode(GenerateDecoder(engine), [b"data: " + told + b"\n\n"])
    assert type_of(native.failure) is kind
    event = {"error": {"message": text, "http_status_code": 422}}  # whatever happened
    chat = decode(
        TGIDecoder(engine), [b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(event).encode()]
    )
    assert type_of(chat.failure) is kind


def type_of(error: Any) -> type:
    assert error is not None
    assert "http://server" in str(error)
    return type(error)


def test_an_event_that_could_not_be_written_is_no_event() -> None:
    """`Event::default()` of router/src/server.rs: an empty line, and no terminal fact."""
    body = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n\n\n'
    lost = decode(TGIDecoder(TGI(TARGET)), [body + b"data: [DONE]\n\n"])
    assert isinstance(lost.failure, StreamTruncated)
    assert lost.failure.partial == "Hi"


def token(text: str, logprob: float | None = -0.5, special: bool = False) -> dict[str, Any]:
    return {"id": 7, "text": text, "logprob": logprob, "special": special}


def test_a_logprob_that_is_no_number() -> None:
    """serde_json writes NaN and infinities of `Token.logprob` (router/src/lib.rs) as null."""
    event = {
        "index": 1,
        "token": token("a", None),
        "top_tokens": [token("b", None)],
        "generated_text": "a",
        "details": {
            "finish_reason": "length",
            "generated_tokens": 1,
            "seed": None,
            "input_length": 3,
        },
    }
    read = decode(GenerateDecoder(TGI(TARGET), logprobs=True), [b"data: %s\n\n" % dumped(event)])
    (entry,) = read.chunks[0].logprobs or ()
    assert entry.logprob != entry.logprob
    assert entry.top[0].logprob != entry.top[0].logprob


@pytest.mark.parametrize(
    ("reason", "told"), [("length", "length"), ("eos_token", "stop"), ("stop_sequence", "stop")]
)
def test_every_finish_reason(reason: str, told: str) -> None:
    """`FinishReason` of router/src/lib.rs has three; the whole reply has the same words."""
    details = {"finish_reason": reason, "generated_tokens": 1, "seed": 18446744073709551615}
    plain = {"generated_text": "a", "details": {**details, "prefill": [], "tokens": [token("a")]}}
    whole = decode(GenerateWholeDecoder(TGI(TARGET)), [dumped(plain)]).end
    event = {"token": token("a"), "generated_text": "a", "details": {**details, "input_length": 1}}
    stream = decode(GenerateDecoder(TGI(TARGET)), [b"data: %s\n\n" % dumped(event)]).end
    assert whole is not None
    assert stream is not None
    assert whole.finish_reason == stream.finish_reason == told
    assert whole.extra["seed"] == stream.extra["seed"] == 18446744073709551615


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


# ------------------------------------------------------------------------------------ routes


@pytest.mark.parametrize(
    ("before", "behind"), [((1,), ()), ((), (2,)), ((1,), (2,)), ((1, 1), (2,)), ((), ())]
)
@pytest.mark.parametrize("text", [(), (5,), (1,), (2,), (1, 5, 2), (5, 5, 5)])
def test_added_tokens_are_taken_off(
    before: tuple[int, ...], behind: tuple[int, ...], text: tuple[int, ...]
) -> None:
    """`add_special_tokens` is skipped by serde (router/src/lib.rs): the server always adds them."""
    around = [told(before, ""), told(behind, "")]
    operation = TGI(TARGET).tokenize("text")
    assert next(operation).json == {"inputs": "text"}
    with pytest.raises(StopIteration) as stop:
        operation.send(answer([*around[0], *told(text, "x"), *around[1]]))
        operation.send(answer([*around[0], *around[1]]))
    assert stop.value.value == text


def test_added_tokens_of_a_recorded_server_are_taken_off() -> None:
    """A tokenizer that begins every text with a token; `add_special_tokens: false` changes nothing."""
    plain, asked_not = load("tgi", "t_bos_tokenize"), load("tgi", "t_bos_tokenize_asked_not")
    assert plain.body == asked_not.body
    operation = TGI(TARGET).tokenize("Hello there")
    assert next(operation).json == plain.request
    assert operation.send(plain.answer).json == {"inputs": ""}
    with pytest.raises(StopIteration) as stop:
        operation.send(load("tgi", "t_bos_tokenize_empty").answer)
    ids = [token["id"] for token in json.loads(plain.body)]
    assert ids[0] == 0
    assert list(stop.value.value) == ids[1:]


def test_the_empty_text_is_asked_for_only_where_tokens_were_added() -> None:
    """One request where it is enough."""
    operation = TGI(TARGET).tokenize("text")
    next(operation)
    with pytest.raises(StopIteration):
        operation.send(answer(told((5, 6), "x")))
    operation = TGI(TARGET).tokenize("text")
    next(operation)
    again = operation.send(answer([*told((1,), ""), *told((5,), "x")]))
    assert again.json == {"inputs": ""}


def told(tokens: tuple[int, ...], text: str) -> list[dict[str, Any]]:
    """`SimpleToken`s as `encoding_to_tokens` of router/src/server.rs makes them."""
    return [{"id": token, "text": text, "start": 0, "stop": len(text)} for token in tokens]


def test_tokens_without_places() -> None:
    """A slow tokenizer gives no offsets: every token looks added, and the empty text settles it."""
    operation = TGI(TARGET).tokenize("text")
    next(operation)
    assert operation.send(answer(told((1, 9, 8), ""))).json == {"inputs": ""}
    with pytest.raises(StopIteration) as stop:
        operation.send(answer(told((1,), "")))
    assert stop.value.value == (9, 8)


def test_what_does_not_fit_is_left_alone() -> None:
    """Tokens that are not the added ones stay."""
    assert bare((5, 6), (1,)) == (5, 6)
    assert bare((1,), (1, 1)) == (1,)
    assert bare((), ()) == ()


INFO = {  # `Info` of router/src/lib.rs
    "model_id": "org/model",
    "model_sha": None,
    "model_pipeline_tag": None,
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1023,
    "max_total_tokens": 2048,
    "validation_workers": 2,
    "max_client_batch_size": 4,
    "router": "text-generation-router",
    "version": "3.3.7",
    "sha": None,
    "docker_label": None,
}
EMBEDDER = {  # `Info` of huggingface/text-embeddings-inference, router/src/lib.rs
    "model_id": "org/model",
    "model_sha": None,
    "model_dtype": "float16",
    "model_type": {"embedding": {"pooling": "cls"}},
    "max_concurrent_requests": 512,
    "max_input_length": 512,
    "max_batch_tokens": 16384,
    "max_batch_requests": None,
    "max_client_batch_size": 32,
    "auto_truncate": False,
    "tokenization_workers": 4,
    "version": "1.5.0",
    "sha": None,
    "docker_label": None,
}


def test_the_embedding_server_of_the_same_house_is_not_taken_for_this_one() -> None:
    """Both answer `/info` with a model and a number of requests."""
    assert play(TGI.recognise(TARGET), {"GET /info": answer(INFO)}) is True
    assert play(TGI.recognise(TARGET), {"GET /info": answer(EMBEDDER)}) is False
    assert facts_of(INFO).context_window == 2048


# ------------------------------------------------------------------------------------ bodies


def test_an_address_with_brackets_is_not_cut() -> None:
    r"""The router writes images as Markdown and finds them with `!\[\]\([^\)]*\)`
    (`TextMessage` in router/src/lib.rs, `prepare_input` in router/src/validation.rs).
    """
    see = Message(role="user", content=(ImagePart(url="https://host/a_(1).png"),))
    request = ChatRequest(model="m", messages=(see,))
    engine = TGI(TARGET, facts=facts_of({**INFO, "model_pipeline_tag": "image-text-to-text"}))
    (part,) = engine.encode(request).call.json["messages"][0]["content"]
    assert part["image_url"]["url"] == "https://host/a_(1%29.png"


@pytest.mark.parametrize(
    "tool",
    [
        Tool(name="no_tool"),
        Tool(name="f", parameters={"type": "object", "properties": {"_name": {"type": "string"}}}),
    ],
)
def test_names_that_the_grammar_of_calls_needs_itself(tool: Tool) -> None:
    """`no_tool` is its word for no call, `_name` the place of the name
    (`ToolGrammar` in router/src/infer/tool_grammar.rs, `parse_output` in router/src/chat.rs): such
    a call would be lost, or be one of another tool.
    """
    with pytest.raises(BadRequest):
        TGI(TARGET).encode(
            ChatRequest(model="m", messages=(Message(role="user", content="Hi"),), tools=(tool,))
        )


WEATHER = Tool(
    name="get_weather",
    description="d",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)


def called(name: str, arguments: dict[str, Any]) -> bytes:
    """A whole reply with one call, as server.rs of 2.0.1 to 2.3.0 makes it: arguments are an object."""
    call = {
        "id": "0",
        "type": "function",
        "function": {"description": None, "name": name, "arguments": arguments},
    }
    message = {"role": "assistant", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "eos_token"}
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    return json.dumps({"id": "", "choices": [choice], "usage": usage}).encode()


NOTE = called("notify_error", {"error": "no tool tells the time"})
"""`ToolGrammar::apply` (router/src/infer/mod.rs of 2.2.0) adds it to the tools of any choice."""


def offered(choice: ToolChoice | None = None, *tools: Tool) -> Any:
    request = ChatRequest(
        model="m",
        messages=(Message(role="user", content="what time is it?"),),
        tools=(WEATHER, *tools),
        tool_choice=UNSET if choice is None else choice,
    )
    return TGI(TARGET).encode(request).decoder()


def test_what_version_2_calls_when_no_tool_fits_is_an_answer_and_no_call() -> None:
    got = decode(offered(), [NOTE])
    assert got.failure is None
    assert got.text == "no tool tells the time"
    assert got.end is not None
    assert (got.end.tool_calls, got.end.finish_reason) == ((), "stop")
    assert not any(chunk.tool_calls for chunk in got.chunks)
    (repair,) = got.end.repairs
    assert "notify_error" in repair


@pytest.mark.parametrize("mode", ["required", "named"])
def test_where_a_call_was_required_it_is_none(mode: Any) -> None:
    choice = ToolChoice(mode=mode, name="get_weather" if mode == "named" else None)
    got = decode(offered(choice), [NOTE])
    assert isinstance(got.failure, BadOutput)
    assert "no tool tells the time" in str(got.failure)
    assert not any(chunk.tool_calls for chunk in got.chunks)


def test_a_note_without_a_word_is_no_answer() -> None:
    assert isinstance(decode(offered(), [called("notify_error", {})]).failure, BadOutput)


def test_a_tool_of_ones_own_of_that_name_is_a_tool() -> None:
    mine = Tool(name="notify_error", description="d", parameters=WEATHER.parameters)
    end = decode(offered(None, mine), [NOTE]).end
    assert end is not None
    assert [call.name for call in end.tool_calls] == ["notify_error"]
    real = decode(offered(), [called("get_weather", {"city": "Rome"})]).end
    assert real is not None
    assert [call.name for call in real.tool_calls] == ["get_weather"]
