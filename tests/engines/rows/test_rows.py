"""Engines that are known from their documentation only: what their fixtures say is understood."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from enginekit import registry
from enginekit.config import load as load_config
from enginekit.drivers.async_ import AsyncDriver
from enginekit.drivers.sync import SyncDriver
from enginekit.engine import Answer, Engine, Target
from enginekit.errors import (
    BadOutput,
    BadRequest,
    ContextOverflow,
    EngineDied,
    EngineError,
    EngineFault,
    EngineLoading,
    ModelNotFound,
    Overloaded,
    StreamTruncated,
    Unauthorized,
    Unsupported,
)
from enginekit.facts.engine import ServerFacts
from enginekit.kit.client import Client
from enginekit.kit.discover import identify, meant
from enginekit.types import (
    ChatRequest,
    CompletionRequest,
    Constraint,
    EmbedRequest,
    Message,
    RerankRequest,
    Sampling,
    Tool,
    ToolChoice,
)
from tests.contract.replayed import ENGINES, ROWS
from tests.engines.recordings import Decoded, decode, play
from tests.engines.rows.documented import NOWHERE, ROOT, cases, load, stored
from tests.support.server import Reply, Server

TARGET = Target(base_url="http://server")
USER = Message(role="user", content="Say hi.")
WEATHER = Tool(name="get_weather", parameters={"type": "object"})
PROBES: dict[str, tuple[str, ...]] = {
    "sglang": ("models", "model_info", "server_info"),
    "lmstudio": ("v1_models",),
    "lmdeploy": ("models",),
    "mlxlm": ("models",),
    "modelrunner": ("models", "version"),
}
SIGNATURES: dict[str, tuple[str, ...]] = {
    "sglang": ("models",),
    "lmstudio": ("v1_models",),
    "lmdeploy": ("models",),
    "mlxlm": ("health",),
    "modelrunner": ("root",),
}


def engine(row: str, facts: ServerFacts | None = None, **options: Any) -> Engine:
    return registry.engine_class(row)(TARGET, facts=facts, options=options)


def answers(row: str, *names: str) -> dict[str, Any]:
    loaded = [load(row, name) for name in names]
    return {f"{stored(row, r.name)['request']['method']} {r.path}": r for r in loaded}


def probed(row: str, *names: str, **options: Any) -> ServerFacts:
    facts = play(engine(row, **options).probe(), answers(row, *(names or PROBES[row])))
    assert isinstance(facts, ServerFacts)
    return facts


def chat(**more: Any) -> ChatRequest:
    return ChatRequest(model="tiny", messages=(USER,), **more)


def read(row: str, case: str, **more: Any) -> Decoded:
    fixture = load(row, case)
    encoded = engine(row).encode(chat(**more), stream=fixture.streamed)
    return decode(encoded.decoder(), [fixture.body])


def failure(row: str, case: str) -> EngineError:
    fixture = load(row, case)
    error = engine(row).failure(fixture.status, fixture.headers, fixture.body, path=fixture.path)
    assert isinstance(error, EngineError)
    return error


# ------------------------------------------------------------------------------------ fixtures


def test_every_row_is_here_and_says_what_was_read():
    assert set(ROWS) == set(PROBES) == {path.name for path in ROOT.iterdir()}
    for row in ROWS:
        profile = registry.engine_class(row).profile
        assert profile.sources
        assert not profile.tested
        assert {fact.evidence for fact in profile.capabilities.values()} == {"documented"}


@pytest.mark.parametrize("row", ROWS)
def test_every_fixture_names_its_source(row):
    for case in cases(row):
        source = stored(row, case)["source"]
        assert source["repository"].partition("@")[0]
        assert source["files"], case
        # The profile and the fixture were read in the same version.
        version = source["repository"].rpartition("@")[2][:7]
        assert any(version in told for told in registry.engine_class(row).profile.sources), case


# ------------------------------------------------------------------------------------ recognising


@pytest.mark.parametrize("row", ROWS)
def test_a_row_recognises_its_own_server_and_no_other(row):
    def recognised_by(name: str, signature: dict[str, Any]) -> bool:
        operation = registry.engine_class(name).recognise(TARGET)
        try:
            effect = next(operation)
            while True:
                key = f"{effect.method} {effect.path}"
                reply = signature.get(key, NOWHERE)
                effect = operation.send(reply if isinstance(reply, Answer) else reply.answer)
        except StopIteration as stop:
            return bool(stop.value)

    mine = answers(row, *SIGNATURES[row])
    assert recognised_by(row, mine)
    assert [name for name in (*ENGINES, *ROWS) if recognised_by(name, mine)] == [row]


def serve(server: Server, row: str) -> None:
    """All GET fixtures of a row, at their paths."""
    for case in cases(row):
        fixture, request = load(row, case), stored(row, case)["request"]
        if request["method"] == "GET" and not case.startswith(("err_", "health_", "model_info_")):
            server.on(
                fixture.path,
                Reply(status=fixture.status, headers=dict(fixture.headers), body=[fixture.body]),
            )


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_is_identified_among_all_engines(row, kind):
    """Docker Model Runner answers Ollama's and vLLM's routes as well, and is told apart."""
    with Server() as server:
        serve(server, row)
        operation = identify(Target(base_url=server.url), deadline=10.0)
        if kind == "sync":
            found = SyncDriver().run(operation)
        else:

            async def once() -> Any:
                return await AsyncDriver().run(operation)

            found = asyncio.run(once())
    assert found.engine is not None, found.why
    assert found.engine.name == row
    assert found.facts is not None


def test_who_imitates_is_meant():
    def cls(name: str) -> type[Engine]:
        return registry.engine_class(name)

    assert meant([cls("ollama"), cls("vllm"), cls("modelrunner")]) is cls("modelrunner")
    assert meant([cls("ollama"), cls("vllm")]) is cls("ollama")
    assert meant([]) is None


def test_default_addresses_do_not_collide_but_where_they_really_do():
    places: dict[str, list[str]] = {}
    for name in (*ENGINES, *ROWS):
        url = registry.engine_class(name).profile.default_url
        places.setdefault(url.rpartition(":")[2], []).append(name)
    assert places["8080"] == ["llamacpp", "mlxlm"]
    assert {port for port, names in places.items() if set(names) & set(ROWS)} == {
        "30000",
        "1234",
        "23333",
        "8080",
        "12434",
    }


# ------------------------------------------------------------------------------------ using one


@pytest.mark.parametrize("row", ROWS)
def test_a_name_and_an_address_are_enough(row, monkeypatch):
    """ENGINEKIT_ENGINE and ENGINEKIT_BASE_URL, a whole reply and a stream, over sockets."""
    with Server() as server:
        serve(server, row)
        whole, path = load(row, "chat"), engine(row).encode(chat()).call.path
        server.on(path, Reply(status=200, headers=dict(whole.headers), body=[whole.body]))
        monkeypatch.setenv("ENGINEKIT_ENGINE", row)
        monkeypatch.setenv("ENGINEKIT_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("ENGINEKIT_MODEL", "tiny")
        client = Client()
        reply = client.chat(chat())
        assert reply.text == "Hi there"
        assert reply.receipt.engine == row
        assert client.facts is not None
        assert client.facts.verified is False
        assert any("documentation only" in note for note in client.facts.notes)


@pytest.mark.parametrize("row", [*ROWS, "vllm"])
def test_a_box_that_is_like_one_needs_no_code(row, tmp_path, monkeypatch):
    """`[engines.attic] like = …` with a URL: the receipt says attic, the wire is the row's."""
    with Server() as server:
        if row == "vllm":
            server.always(Reply(status=404, headers={}, body=[b""]))
            whole = load("lmstudio", "chat")
        else:
            serve(server, row)
            whole = load(row, "chat")
        path = engine(row).encode(chat()).call.path
        server.on(path, Reply(status=200, headers=dict(whole.headers), body=[whole.body]))
        (tmp_path / "enginekit.toml").write_text(
            f'engine = "attic"\nmodel = "tiny"\n[engines.attic]\nlike = "{row}"\n'
            f'url = "{server.url}"\n'
        )
        monkeypatch.chdir(tmp_path)
        assert load_config().custom_engines() == ("attic",)
        reply = Client().chat(chat())
        assert (reply.text, reply.receipt.engine) == ("Hi there", "attic")
        assert [seen.path for seen in server.requests if seen.method == "POST"] == [path]


# ------------------------------------------------------------------------------------ probing


def test_sglang_says_what_it_has():
    facts = probed("sglang")
    assert facts.version == "0.5.23"
    assert [card.id for card in facts.models] == ["tiny", "pirate"]
    assert facts.context_window == 4096
    assert facts.capabilities["tools"].support == "native"
    assert facts.capabilities["images"].support == "none"
    assert facts.capabilities["embeddings"].support == "none"
    assert {fact.evidence for fact in facts.capabilities.values()} == {"probed"}


def test_sglang_without_a_tool_parser_has_its_calls_emulated():
    facts = probed("sglang", "models", "model_info_no_parser", "server_info")
    encoded = engine("sglang", facts).encode(chat(tools=(WEATHER,)))
    assert "tools" not in encoded.call.json
    assert encoded.receipt.outcome("tools") == "emulated"


def test_sglang_that_embeds_does_not_chat():
    facts = probed("sglang", "models", "model_info_embedding", "server_info")
    assert facts.capabilities["chat"].support == "none"
    assert facts.capabilities["embeddings"].support == "native"


def test_sglang_newer_than_what_was_read_says_so():
    server = {**answers("sglang", "models", "model_info")}
    server["GET /server_info"] = Answer(status=200, headers={}, body=b'{"version": "0.7.1"}')
    facts = play(engine("sglang").probe(), server)
    assert any("0.7.1 is newer than 0.5" in note for note in facts.notes)


def test_lmstudio_tells_by_model():
    facts = probed("lmstudio", model="maker/sees-4b")
    assert facts.context_window == 4096
    assert facts.capabilities["images"].support == "native"
    assert [card.loaded for card in facts.models] == [True, False, False]
    blind = probed("lmstudio", model="blind-70b")
    assert blind.context_window is None
    assert blind.capabilities["images"].support == "none"
    embeds = probed("lmstudio", model="text-embedding-small")
    assert embeds.capabilities["chat"].support == "none"
    assert embeds.capabilities["embeddings"].support == "native"


def test_an_older_lmstudio_is_asked_by_its_older_route():
    old = {"GET /api/v1/models": NOWHERE, **answers("lmstudio", "v0_models")}
    facts = play(engine("lmstudio", model="sees-7b").probe(), old)
    assert [card.id for card in facts.models] == ["sees-7b", "text-embedding-small"]
    assert facts.models[0].loaded is True
    assert facts.capabilities["images"].support == "native"


def test_modelrunner_tells_windows_and_short_names():
    facts = probed("modelrunner")
    assert facts.version == "v1.1.0"
    (card,) = facts.models
    assert card.aliases == ("ai/smollm2",)
    assert card.context_window == facts.context_window == 8192


@pytest.mark.parametrize("base", ["", "/engines", "/engines/llama.cpp"])
def test_modelrunner_takes_every_form_of_its_address(base):
    made = registry.engine_class("modelrunner")(Target(base_url=f"http://server{base}"))
    call = made.encode(chat()).call
    assert call.target.base_url + call.path == (
        f"http://server{base or '/engines'}/v1/chat/completions"
    )


@pytest.mark.parametrize(
    ("row", "case", "yes"),
    [
        ("sglang", "health", True),
        ("sglang", "health_starting", False),
        ("lmdeploy", "health", True),
        ("lmdeploy", "health_unhealthy", False),
        ("mlxlm", "health", True),
    ],
)
def test_ready(row, case, yes):
    server = {**answers(row, "models"), "GET /health": load(row, case)}
    model = load(row, "models").body.decode().partition('"id": "')[2].partition('"')[0]
    assert play(engine(row).ready(model), server) is yes


def test_a_model_that_is_not_listed_is_not_found():
    with pytest.raises(ModelNotFound):
        play(engine("lmdeploy").ready("other"), answers("lmdeploy", "models", "health"))
    # mlx-lm loads whatever it is asked for, from the Hub too.
    assert play(engine("mlxlm").ready("other"), answers("mlxlm", "models", "health")) is True


# ------------------------------------------------------------------------------------ replies


@pytest.mark.parametrize("row", ROWS)
def test_a_whole_reply(row):
    whole = read(row, "chat")
    assert whole.failure is None
    assert whole.text == "Hi there"
    assert whole.end is not None
    assert whole.end.finish_reason == "stop"
    assert whole.end.usage is not None
    assert whole.end.usage.completion_tokens == 3


STREAMING = [row for row in ROWS if "chat_stream" in cases(row)]


@pytest.mark.parametrize("row", STREAMING)
def test_a_stream_and_its_thinking(row):
    whole = read(row, "chat_stream")
    assert whole.failure is None
    assert (whole.reasoning, whole.text) == ("Greet.", "Hi thére")
    assert whole.end is not None
    assert whole.end.usage is not None
    assert whole.end.usage.total_tokens == whole.end.usage.prompt_tokens + 3


@pytest.mark.parametrize("row", STREAMING)
def test_a_stream_cut_at_every_byte(row):
    body = load(row, "chat_stream").body
    whole = read(row, "chat_stream")
    for cut in range(len(body)):
        encoded = engine(row).encode(chat(), stream=True)
        part = decode(encoded.decoder(), [body[:cut]])
        if part.failure is None:
            assert part.text == whole.text, cut
            assert part.end is not None
        else:
            assert isinstance(part.failure, StreamTruncated), cut
            assert whole.text.startswith(part.failure.partial), cut


@pytest.mark.parametrize("row", STREAMING)
def test_a_streamed_call(row):
    called = read(row, "tools_stream", tools=(WEATHER,))
    assert called.failure is None
    assert called.end is not None
    (call,) = called.end.tool_calls
    assert call.name == "get_weather"
    assert call.problem is None
    assert '"Paris"' in call.arguments
    assert called.end.finish_reason == "tool_calls"


def test_a_call_in_a_plain_reply_without_content():
    called = read("lmstudio", "tools", tools=(WEATHER,))
    assert called.end is not None
    assert [(c.id, c.name) for c in called.end.tool_calls] == [("365174485", "get_weather")]


def test_an_aborted_stream_is_no_answer():
    """SGLang ends a stream that was aborted on the server as any other: only the reason tells."""
    cut = read("sglang", "chat_stream_aborted")
    assert isinstance(cut.failure, StreamTruncated)
    assert cut.failure.partial == "Hi"


def test_a_parse_error_is_no_answer():
    cut = read("lmdeploy", "chat_parse_error")
    assert isinstance(cut.failure, StreamTruncated)
    assert cut.failure.partial == "Hi"


@pytest.mark.parametrize(("row", "error"), [("sglang", Overloaded), ("lmdeploy", EngineDied)])
def test_an_error_inside_a_stream(row, error):
    broken = read(row, "chat_stream_error")
    assert isinstance(broken.failure, error)


def test_a_call_that_mlxlm_lost_is_bad_output():
    """What its parser cannot read is dropped: finish reason tool_calls, and nothing else."""
    lost = read("mlxlm", "tools_lost_stream", tools=(WEATHER,))
    assert isinstance(lost.failure, BadOutput)


def test_logprobs_of_mlxlm_come_without_a_stream():
    wanted = chat(sampling=Sampling(logprobs=True, top_logprobs=2))
    encoded = engine("mlxlm").encode(wanted, stream=True)
    assert encoded.call.json["stream"] is False
    whole = decode(encoded.decoder(), [load("mlxlm", "chat_logprobs").body])
    assert whole.failure is None
    found = [entry for chunk in whole.chunks for entry in chunk.logprobs or ()]
    assert [entry.token for entry in found] == ["Hi", ""]
    assert [other.token for other in found[0].top] == ["Hi", "Ho"]


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("row", "case", "error", "facts"),
    [
        ("sglang", "err_overflow_input", ContextOverflow, {"limit": 4096, "requested": 5000}),
        ("sglang", "err_overflow_total", ContextOverflow, {"limit": 4096, "requested": 4800}),
        ("sglang", "err_overflow_output", ContextOverflow, {"limit": 4096, "requested": 9000}),
        ("sglang", "err_queue", Overloaded, {}),
        ("sglang", "err_unauthorized", Unauthorized, {}),
        ("sglang", "err_value", BadRequest, {}),
        ("sglang", "err_fault", EngineFault, {}),
        ("sglang", "err_model", ModelNotFound, {"model": "other"}),
        ("sglang", "err_not_embedding", Unsupported, {"feature": "embeddings"}),
        ("lmdeploy", "err_model", ModelNotFound, {"model": "other"}),
        ("lmdeploy", "err_overflow", ContextOverflow, {"limit": 4096, "requested": 5000}),
        ("lmdeploy", "err_tools", Unsupported, {"feature": "tools"}),
        ("lmdeploy", "err_logprobs", Unsupported, {"feature": "logprobs"}),
        ("lmdeploy", "err_asleep", EngineLoading, {}),
        ("lmdeploy", "err_value", BadRequest, {}),
        ("lmdeploy", "err_unauthorized", Unauthorized, {}),
        ("lmdeploy", "err_embeddings", Unsupported, {"feature": "embeddings"}),
        ("lmdeploy", "err_fault", EngineFault, {}),
        ("mlxlm", "err_model", ModelNotFound, {}),
        ("mlxlm", "err_any", EngineFault, {}),
        ("mlxlm", "err_route", Unsupported, {}),
        ("mlxlm", "err_json", BadRequest, {}),
        ("modelrunner", "err_model", ModelNotFound, {}),
        ("modelrunner", "err_backend", Unsupported, {}),
        ("modelrunner", "err_not_installed", Unsupported, {}),
        ("modelrunner", "err_unavailable", EngineLoading, {}),
        ("modelrunner", "err_runner", EngineFault, {}),
        ("modelrunner", "err_large", BadRequest, {}),
        ("modelrunner", "err_no_model", BadRequest, {}),
        ("modelrunner", "err_route", Unsupported, {}),
    ],
)
def test_what_a_refusal_means(row, case, error, facts):
    found = failure(row, case)
    assert type(found) is error, repr(found)
    assert {name: getattr(found, name) for name in facts} == facts


def test_every_refusal_has_a_row_above():
    (mark,) = [m for m in test_what_a_refusal_means.pytestmark if m.name == "parametrize"]
    assert {(row, case) for row, case, *_ in mark.args[1]} == {
        (row, case) for row in ROWS for case in cases(row, "err_")
    }


# ------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("mode", ["required", "named"])
def test_a_forced_call_is_one_or_an_error(row, mode):
    choice = ToolChoice(mode=mode, name="get_weather" if mode == "named" else None)
    wanted = chat(tools=(WEATHER,), tool_choice=choice)
    if row == "mlxlm":
        with pytest.raises(Unsupported, match="constrains no output"):
            engine(row).encode(wanted)
        return
    encoded = engine(row).encode(wanted)
    prose = decode(encoded.decoder(), [load(row, "chat").body])
    assert isinstance(prose.failure, BadOutput)


def test_mlxlm_has_no_hidden_length_and_no_choice_of_tools():
    encoded = engine("mlxlm").encode(chat(tools=(WEATHER,)))
    assert encoded.call.json["max_tokens"] > 10**6
    none = engine("mlxlm").encode(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="none")))
    assert "tools" not in none.call.json
    assert none.receipt.outcome("tool_choice") == "emulated"
    auto = engine("mlxlm").encode(chat(tools=(WEATHER,), tool_choice=ToolChoice(mode="auto")))
    assert "tool_choice" not in auto.call.json
    assert auto.call.json["tools"]


def test_no_completion_is_cut_by_sglangs_sixteen_tokens():
    with pytest.raises(Unsupported, match="16 tokens"):
        engine("sglang").encode(CompletionRequest(model="tiny", prompt="a"))


@pytest.mark.parametrize(
    ("row", "kind", "path"),
    [
        ("sglang", "regex", "regex"),
        ("sglang", "grammar", "ebnf"),
        ("lmdeploy", "regex", "response_format"),
    ],
)
def test_constraints_of_their_own(row, kind, path):
    encoded = engine(row).encode(chat(constraint=Constraint(kind=kind, value="(a|b)")))
    assert encoded.call.json[path] in (
        "(a|b)",
        {"type": "regex_schema", "regex_schema": "(a|b)"},
    )
    assert encoded.receipt.outcome("constraint") == "translated"


def test_names_that_differ():
    sampling = Sampling(min_tokens=3, repetition_penalty=1.1, top_k=0, repetition_window=9)
    bodies = {row: engine(row).encode(chat(sampling=sampling)).call.json for row in ROWS}
    assert bodies["sglang"]["top_k"] == -1
    assert bodies["lmdeploy"]["min_new_tokens"] == 3
    assert bodies["lmstudio"]["repeat_penalty"] == 1.1
    assert bodies["mlxlm"]["repetition_context_size"] == 9
    assert "repetition_penalty" not in bodies["modelrunner"]


def test_keep_alive_is_lmstudios_ttl():
    assert engine("lmstudio").encode(chat(keep_alive=60.0)).call.json["ttl"] == 60


# ------------------------------------------------------------------------------------ other routes


@pytest.mark.parametrize("row", ["sglang", "lmstudio"])
def test_embeddings(row):
    model = "tiny" if row == "sglang" else "text-embedding-small"
    made = play(
        engine(row).embed(EmbedRequest(model=model, texts=("a",))), answers(row, "embeddings")
    )
    assert len(made.vectors[0]) == 2


def test_sglang_reranks_tokenizes_and_counts():
    request = RerankRequest(model="tiny", query="a", documents=("b", "c"))
    ranking = play(engine("sglang").rerank(request), answers("sglang", "rerank"))
    assert [(score.index, score.score) for score in ranking.scores] == [(1, 0.9), (0, 0.1)]
    tokenizer = answers("sglang", "tokenize")
    assert play(engine("sglang").tokenize("hi", model="tiny"), tokenizer) == (5, 6)
    assert play(engine("sglang").count_tokens(chat()), tokenizer) == 2
    assert play(engine("sglang").detokenize([5, 6]), answers("sglang", "detokenize")) == "hi"


def test_lmdeploy_encodes_sleeps_and_wakes():
    assert play(engine("lmdeploy").tokenize("hi"), answers("lmdeploy", "encode")) == (5, 6)
    assert play(engine("lmdeploy").unload("tiny"), answers("lmdeploy", "sleep")) is None
    assert play(engine("lmdeploy").load("tiny"), answers("lmdeploy", "wakeup")) is None


def test_lmstudio_loads_and_unloads_every_instance():
    assert play(engine("lmstudio").load("blind-70b"), answers("lmstudio", "load")) is None
    both = answers("lmstudio", "v1_models", "unload")
    assert play(engine("lmstudio").unload("maker/sees-4b"), both) is None
    with pytest.raises(ModelNotFound):
        play(engine("lmstudio").unload("blind-70b"), both)


def test_modelrunner_unloads():
    assert (
        play(engine("modelrunner").unload("ai/smollm2"), answers("modelrunner", "unload")) is None
    )


@pytest.mark.parametrize("row", ["sglang", "lmdeploy"])
def test_metrics_in_the_common_shape(row):
    load_ = play(engine(row).load_state(), answers(row, "metrics"))
    assert (load_.running, load_.waiting, load_.kv_cache_usage) == (2, 1, 0.25)
    assert (load_.prompt_tokens_total, load_.generated_tokens_total) == (40, 12)


def test_metrics_of_several_runners_are_summed():
    load_ = play(engine("modelrunner").load_state(), answers("modelrunner", "metrics"))
    assert (load_.prompt_tokens_total, load_.generated_tokens_total) == (40, 12)
    assert load_.running is None
