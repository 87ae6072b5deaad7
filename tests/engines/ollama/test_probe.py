"""What the server says of itself, and the operations beside chat, on recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from enginekit.engine import Answer, Call, Gather, Operation, Target
from enginekit.engines.ollama import Ollama
from enginekit.engines.ollama.probe import full_name, is_cloud, read_parameters
from enginekit.engines.ollama.profile import PROFILE, older_than, version_tuple
from enginekit.errors import (
    BadRequest,
    ContextOverflow,
    EngineFault,
    EngineKitError,
    MalformedReply,
    ModelNotFound,
    Unsupported,
)
from enginekit.types import EmbedRequest
from tests.engines.recordings import answer, load

TARGET = Target(base_url="http://127.0.0.1:11434")

Answers = Mapping[str, Answer | Callable[[Call], Answer]]


def play(operation: Operation[Any], answers: Answers, log: list[Call] | None = None) -> Any:
    """Run an operation on answers by `"METHOD path"`, gathered ones side by side."""

    def outcome(effect: Any) -> Any:
        if isinstance(effect, Gather):
            results: list[Any] = []
            for one in effect.operations:
                try:
                    results.append(play(one, answers, log))
                except EngineKitError as error:
                    results.append(error)
            return results
        assert isinstance(effect, Call), effect
        if log is not None:
            log.append(effect)
        found = answers[f"{effect.method} {effect.path}"]
        return found(effect) if callable(found) else found

    try:
        effect = next(operation)
        while True:
            effect = operation.send(outcome(effect))
    except StopIteration as stop:
        return stop.value


def rec(name: str) -> Answer:
    return load("ollama", name).answer


NONE_LOADED = {"GET /api/ps": answer({"models": []})}


SHOWS = {
    "llama3.1:latest": "n_show",
    "native:latest": "native/n_show",
    "thinker:latest": "thinker/n_show",
    "embed:latest": "embed/n_show",
    "broken:latest": "broken/n_show",
}


def show(call: Call) -> Answer:
    name = call.json["model"]
    return rec(SHOWS[name]) if name in SHOWS else rec("n_show_missing")


def server(ps: str | Answer = "n_ps", **more: Any) -> dict[str, Any]:
    return {
        "GET /api/version": rec("n_version"),
        "GET /api/tags": rec("n_tags"),
        "GET /api/ps": rec(ps) if isinstance(ps, str) else ps,
        "POST /api/show": show,
        **more,
    }


NOTHING = answer({"models": []})


# ------------------------------------------------------------------------------------- probe


def test_probe_of_a_server_with_one_loaded_model():
    facts = play(Ollama(TARGET).probe(), server())
    assert facts.version == "0.33.0-rc2"
    assert facts.verified
    assert facts.context_window == 4096
    assert "/api/ps" in facts.context_source
    assert facts.trained_context == 4096
    assert facts.template_tools is True
    assert facts.extra["focus"] == "llama3.1:latest"
    assert {card.id for card in facts.models} >= set(SHOWS) - {"broken:latest", "embed:latest"}
    loaded = facts.model("llama3.1")
    assert loaded is not None
    assert loaded.loaded
    assert loaded.context_window == 4096
    assert facts.capabilities["tools"].support == "native"
    assert facts.capabilities["reasoning"].support == "none"
    assert all(known.evidence == "probed" for known in facts.capabilities.values())


def test_probe_tells_the_two_template_paths_apart():
    facts = play(Ollama(TARGET).probe(), server())
    engine = Ollama(TARGET, facts=facts)
    assert engine.model_facts("llama3.1").path == "rendered"
    assert engine.model_facts("native").path == "native"
    assert engine.model_facts("no-such-model").path is None


def test_the_configured_model_is_the_one_in_focus():
    facts = play(Ollama(TARGET, options={"model": "Thinker"}).probe(), server())
    assert facts.extra["focus"] == "thinker:latest"
    assert facts.capabilities["reasoning"].support == "native"
    assert facts.context_window == 4096
    assert "not loaded" in facts.context_source
    assert "23 GiB" in facts.context_source


def test_a_window_of_the_modelfile_counts_before_the_rule():
    tags = answer({"models": [{"name": "made:latest"}]})
    answers = server(NOTHING, **{"GET /api/tags": tags, "POST /api/show": rec("n_show_made")})
    facts = play(Ollama(TARGET).probe(), answers)
    assert facts.context_window == 2048
    assert "Modelfile" in facts.context_source


def test_a_server_without_models():
    answers = server(NOTHING, **{"GET /api/tags": answer({"models": None})})
    facts = play(Ollama(TARGET).probe(), answers)
    assert facts.models == ()
    assert facts.context_window is None
    assert facts.capabilities == {}


def test_an_embedding_model_in_focus_cannot_chat():
    tags = answer({"models": [{"name": "embed:latest"}]})
    facts = play(Ollama(TARGET).probe(), server(NOTHING, **{"GET /api/tags": tags}))
    assert facts.capabilities["embeddings"].support == "native"
    assert facts.capabilities["chat"].support == "none"
    assert facts.capabilities["tools"].support == "none"
    assert facts.modalities == ("text",)


def test_a_model_that_cannot_be_shown_is_listed_all_the_same():
    answers = server(**{"POST /api/show": rec("n_show_missing")})
    facts = play(Ollama(TARGET).probe(), answers)
    assert facts.model("llama3.1") is not None
    assert Ollama(TARGET, facts=facts).model_facts("llama3.1").has("tools"), "the list knows it"


@pytest.mark.parametrize(
    ("version", "verified", "note"),
    [
        ("0.33.4", True, ""),
        ("0.34.0", False, "newer than"),
        ("0.11.2", True, "without saying so"),
        ("0.0.0", True, ""),
    ],
)
def test_versions(version, verified, note):
    answers = server(**{"GET /api/version": answer({"version": version})})
    facts = play(Ollama(TARGET).probe(), answers)
    assert facts.verified is verified
    assert note in " ".join(facts.notes)


def test_cloud_models_are_noted():
    shown = {**json.loads(rec("n_show").body), "remote_host": "https://ollama.com:443"}
    tags = answer({"models": [{"name": "gpt-oss:120b-cloud"}]})
    answers = server(NOTHING, **{"GET /api/tags": tags, "POST /api/show": answer(shown)})
    facts = play(Ollama(TARGET).probe(), answers)
    assert "ollama.com" in facts.context_source
    assert any("ollama.com" in note for note in facts.notes)


def test_garbage_for_a_list_is_malformed():
    for body in (b"<html>", b"[]", b'{"models": 7}', b'{"models": ["x"]}'):
        answers = server(**{"GET /api/tags": Answer(status=200, headers={}, body=body)})
        with pytest.raises(MalformedReply):
            play(Ollama(TARGET).probe(), answers)


def test_a_probe_asks_about_a_handful_of_models_only():
    """Servers with a hundred models are common; each question reads a file."""
    tags = answer({"models": [{"name": f"m{number}:latest"} for number in range(100)]})
    log: list[Call] = []
    play(Ollama(TARGET).probe(), server(NOTHING, **{"GET /api/tags": tags}), log)
    assert sum(call.path == "/api/show" for call in log) == 8


def test_recognise():
    assert play(Ollama.recognise(TARGET), {"GET /api/version": rec("n_version")}) is True
    for other in (
        answer({"detail": "Not Found"}, 404),
        answer({"version": 3}),
        Answer(status=200, headers={}, body=b"OK"),
    ):
        assert play(Ollama.recognise(TARGET), {"GET /api/version": other}) is False


def test_names():
    assert full_name("Llama3.1") == "llama3.1:latest"
    assert full_name("registry.ollama.ai/library/llama3.1:8b") == "llama3.1:8b"
    assert full_name("hf.co/User/Repo-GGUF:Q4_K_M") == "hf.co/user/repo-gguf:q4_k_m"
    assert full_name("host:5000/x") == "host:5000/x:latest"
    assert is_cloud("gpt-oss:120b-cloud")
    assert is_cloud("x:cloud")
    assert not is_cloud("cloudy")


def test_parameters_text():
    text = json.loads(rec("n_show").body)["parameters"]
    assert read_parameters(text) == {
        "num_ctx": 4096,
        "stop": ["<|eot_id|>", "<|start_header_id|>"],
        "temperature": 0.5,
    }
    assert read_parameters('use_mmap true\nstop "a b"\n\n') == {"use_mmap": True, "stop": ["a b"]}


def test_version_order():
    assert version_tuple("0.33.0-rc2") == (0, 33, 0)
    assert version_tuple("unknown") is None
    assert older_than("0.12.5", (0, 12, 6))
    assert not older_than("0.12.6", (0, 12, 6))
    assert not older_than(None, (0, 12, 6))


def test_every_capability_of_the_profile_says_why():
    for feature, known in PROFILE.capabilities.items():
        assert known.note or known.support == "native", feature


# ------------------------------------------------------------------------------------- others


def test_ready_when_loaded_and_otherwise_by_loading():
    assert play(Ollama(TARGET).ready("llama3.1"), {"GET /api/ps": rec("n_ps")}) is True
    log: list[Call] = []
    answers = {"GET /api/ps": NOTHING, "POST /api/generate": rec("n_load_generate")}
    assert play(Ollama(TARGET).ready("llama3.1"), answers, log) is True
    assert log[-1].json == {"model": "llama3.1", "shift": False, "stream": False}
    assert log[-1].timeout >= 300, "hanging up would cancel the load"


def test_ready_names_the_nearest_models():
    answers = server(NOTHING, **{"POST /api/generate": rec("n_unload_missing")})
    with pytest.raises(ModelNotFound) as caught:
        play(Ollama(TARGET).ready("lama3.1"), answers)
    assert caught.value.near[0] == "llama3.1"
    assert "llama3.1:latest" not in caught.value.near, "a model is named once"
    assert "ollama pull" in (caught.value.hint or "")


def test_ready_raises_what_waiting_would_not_mend():
    answers = {"GET /api/ps": NOTHING, "POST /api/generate": rec("broken/n_generate")}
    with pytest.raises(EngineFault) as caught:
        play(Ollama(TARGET).ready("broken"), answers)
    assert caught.value.retryable is False


def test_an_embedding_model_is_loaded_by_its_own_route():
    answers = {
        "POST /api/generate": rec("embed/n_generate"),
        "POST /api/embed": rec("embed/n_embed_no_input"),
    }
    log: list[Call] = []
    play(Ollama(TARGET).load("embed"), answers, log)
    assert [call.path for call in log] == ["/api/generate", "/api/embed"]


def test_unload():
    log: list[Call] = []
    play(Ollama(TARGET).unload("m"), {"POST /api/generate": rec("n_unload_generate")}, log)
    assert log[0].json["keep_alive"] == 0


def test_load_state_is_what_is_loaded():
    state = play(Ollama(TARGET).load_state(), {"GET /api/ps": rec("n_ps")})
    assert (state.running, state.waiting) == (None, None)
    assert state.extra["models_loaded"] == 1.0
    assert state.extra["bytes_loaded"] == 8650751.0


def test_models_mark_those_loaded():
    cards = play(Ollama(TARGET).models(), server())
    assert {card.id: card.loaded for card in cards}["llama3.1:latest"] is True
    assert any(card.loaded is False for card in cards)


def test_embed():
    log: list[Call] = []
    request = EmbedRequest(model="embed", texts=("a", "b c"))
    made = play(Ollama(TARGET).embed(request), {"POST /api/embed": rec("embed/n_embed")}, log)
    assert log[0].json == {"model": "embed", "input": ["a", "b c"], "truncate": False}
    assert len(made.vectors) == 2
    assert len(made.vectors[0]) == 128
    assert made.usage is not None
    assert made.usage.prompt_tokens == 4
    assert made.receipt.outcome("texts") == "translated"


def test_embed_dimensions_that_were_not_heeded_are_an_error():
    """The server ignores a number that is too large."""
    request = EmbedRequest(model="embed", texts=("a",), dimensions=8)
    made = play(Ollama(TARGET).embed(request), {"POST /api/embed": rec("embed/n_embed_dimensions")})
    assert len(made.vectors[0]) == 8
    larger = EmbedRequest(model="embed", texts=("a",), dimensions=999)
    with pytest.raises(Unsupported, match="128"):
        play(Ollama(TARGET).embed(larger), {"POST /api/embed": rec("embed/n_embed_one")})
    with pytest.raises(BadRequest):
        play(Ollama(TARGET).embed(EmbedRequest(model="e", texts=("a",), dimensions=0)), {})


def test_embed_errors():
    request = EmbedRequest(model="embed", texts=("a",))
    with pytest.raises(ContextOverflow):
        play(
            Ollama(TARGET).embed(request),
            {**NONE_LOADED, "POST /api/embed": rec("embed/n_embed_long")},
        )
    with pytest.raises(Unsupported):
        play(Ollama(TARGET).embed(request), {"POST /api/embed": rec("n_embed")})
    short = answer({"model": "embed", "embeddings": []})
    with pytest.raises(MalformedReply, match="0 vectors"):
        play(Ollama(TARGET).embed(request), {"POST /api/embed": short})
    facts = play(Ollama(TARGET).probe(), server())
    with pytest.raises(Unsupported):
        chat = EmbedRequest(model="llama3.1", texts=("a",))
        play(Ollama(TARGET, facts=facts).embed(chat), {})


def test_an_overflow_of_an_embedding_names_the_limit_that_is_known():
    """A window of 4096, but a model that takes its text in one batch."""
    tags = answer({"models": [{"name": "embed:latest"}]})
    facts = play(Ollama(TARGET).probe(), server(NOTHING, **{"GET /api/tags": tags}))
    request = EmbedRequest(model="embed", texts=("a",))
    with pytest.raises(ContextOverflow) as caught:
        play(
            Ollama(TARGET, facts=facts).embed(request),
            {**NONE_LOADED, "POST /api/embed": rec("embed/n_embed_long")},
        )
    assert caught.value.limit == 2048


def test_an_overflow_of_an_embedding_names_the_window_the_call_was_loaded_with():
    """Trained on 16384 tokens, loaded with 4096 by the very call that did not fit."""
    recorded = {"POST /api/embed": rec("embed/n_embed_over"), "GET /api/ps": rec("embed/n_ps")}
    with pytest.raises(ContextOverflow) as caught:
        play(Ollama(TARGET).embed(EmbedRequest(model="Embed", texts=("a",))), recorded)
    assert caught.value.limit == 4096


@pytest.mark.parametrize("name", ["tokenize", "detokenize"])
def test_there_is_no_tokenizer_route(name):
    with pytest.raises(Unsupported):
        play(getattr(Ollama(TARGET), name)("x"), {})
